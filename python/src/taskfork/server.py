"""A server in Python, whose workers are forked from it.

::

    import hashlib
    import taskfork.server

    def digest(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    if __name__ == "__main__":
        taskfork.server.run([digest], listen="unix:/run/digests.sock")

What the program has imported, and what it has made, is memory that all workers share. A worker serves its connection
itself, so that nothing stands between it and its client.
"""

from __future__ import annotations

import faulthandler
import gc
import inspect
import logging
import os
import signal
import sys
import time
from typing import Any, Callable, Iterator, NoReturn, Optional, Sequence, TypeVar

from . import _keywords, _methods, _native, _server_options, _texts, worker
from ._emitter import STREAMS_NOTHING, TAKES_NOTHING, ItemError
from ._methods import Interface, Kind, Methods
from ._receiver import Input
from .worker import DEBUG, INFO, WARN, Context, DeadlineExceeded, context

__all__ = ["Context", "context", "run"]


def run(
    interface: Interface,
    *,
    listen: str,
    setup: Optional[Callable[[], Any]] = None,
    checkout_done: Optional[Callable[[], Any]] = None,
    name: str = "taskfork",
    max_workers: Optional[int] = None,
    spare_workers: int = 0,
    max_calls: Optional[int] = None,
    share_details: bool = False,
    hung_worker_timeout: Optional[float] = 300.0,
    max_frame: Optional[int] = None,
    shutdown_grace: float = 30.0,
    pickle: bool = False,
    quiet: bool = False,
) -> None:
    """Serves until SIGTERM or SIGINT ends the server. After SIGHUP a new process, with what the program's files contain
    then, takes over without losing a call.

    ``interface``, ``setup`` and ``checkout_done`` are those of :func:`taskfork.worker.serve`. ``setup`` runs in each
    worker. A method that is a generator streams its items, and what it returns is the result of the call. A parameter with the
    annotation ``Iterator[T]`` or ``AsyncIterator[T]`` takes the input that the caller streams.

    - ``listen``: ``unix:PATH`` or ``tcp:HOST:PORT``.
    - ``name``: the server's name in logs. Defaults to ``taskfork``.
    - ``max_workers``: the most workers at a time. Defaults to that of the server in Rust.
    - ``spare_workers``: how many workers are forked before a client connects. Defaults to 0.
    - ``max_calls``: after how many calls a worker is replaced. Defaults to None, for never.
    - ``share_details``: whether clients of other users get details of errors. Defaults to False.
    - ``hung_worker_timeout``: after how many seconds of one call, whatever its time limit, a worker is killed. Defaults to
      300; None is never.
    - ``max_frame``: the longest arguments and results in bytes, without long ``bytes``. Defaults to 64 MiB. That of the
      client must be as large.
    - ``shutdown_grace``: how many seconds running checkouts have when the server ends. Defaults to 30.
    - ``pickle``: as for :func:`taskfork.worker.serve`. Defaults to False.
    - ``quiet``: whether the server logs nothing but errors: no notices, and no warnings such as the death of a worker. What
      workers write to standard error is shown all the same. Defaults to False.

    The process must have one thread. Libraries that start threads when they are imported need an option that prevents
    that, such as the variable ``OPENBLAS_NUM_THREADS=1`` for NumPy. Call it from the main thread. ``RuntimeError`` if the
    server cannot be started, for example because another one listens there; ``TypeError`` or ``ValueError`` if the interface
    or an option cannot be so.
    """
    options = _server_options.checked(
        name=name,
        max_workers=max_workers,
        spare_workers=spare_workers,
        max_calls=max_calls,
        share_details=share_details,
        hung_worker_timeout=hung_worker_timeout,
        max_frame=max_frame,
        shutdown_grace=shutdown_grace,
        restarts=True,
        log_level="error" if quiet else "info",
        pickle=pickle,
    )
    _serve(listen, options, _Worker(interface, setup, checkout_done))


def _serve(listen: str, options: dict[str, Any], template: _Worker, is_forked: bool = False) -> None:
    # A fork has one thread.
    threads = 1 if is_forked else len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise RuntimeError(
            f"this process has {threads} threads, and workers can only be forked from a process with one: start threads in "
            "`setup`, which runs in each worker. A library that is imported may have started them; NumPy starts none with the "
            "variable OPENBLAS_NUM_THREADS=1, others with OMP_NUM_THREADS=1 or MKL_NUM_THREADS=1"
        )
    template.handle_signals()
    # The collector writes to each object that it visits, which would copy its page in each worker. What is there now is
    # left alone from here on.
    if not is_forked:
        gc.collect()
    gc.freeze()
    try:
        _native.serve(listen, {**options, "is_fork": is_forked}, template)
    finally:
        gc.unfreeze()


_T = TypeVar("_T")

_TIME_IS_OVER = "the call's time is over"

#: What the native module gets for a call; `crates/taskfork-python/src/interface.rs` says which there are.
_Answer = tuple[Any, ...]


class _Worker:
    """Runs the user's code for the native loop, which gets no exception."""

    def __init__(
        self,
        interface: Interface,
        setup: Optional[Callable[[], Any]],
        checkout_done: Optional[Callable[[], Any]],
    ) -> None:
        self._given = interface
        self._setup = setup
        self._checkout_done = checkout_done
        self._methods: Optional[Methods] = None
        self._in_call = False
        #: The time of the call was over while none of its code ran.
        self._is_due = False
        #: The input of the call that runs.
        self._input: Optional[Input[Any]] = None
        #: A wait for the input has been interrupted because the time was over.
        self._is_interrupted = False
        self._pid = 0
        self._root_level = logging.WARNING
        self._records = worker._Records()
        self._records.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        for what, function in (("setup", setup), ("checkout_done", checkout_done)):
            if function is not None and not callable(function):
                raise TypeError(f"{what} is {function!r:.100}: it takes a function")
        if not inspect.isclass(interface):
            self._methods = Methods(interface).read_all()

    def handle_signals(self) -> None:
        """Before workers are forked."""
        # The loop's own handler calls this one.
        signal.signal(signal.SIGALRM, self._on_alarm)
        faulthandler.enable()

    def names(self) -> list[str]:
        """The names of the methods, as far as they are known."""
        return [] if self._methods is None else self._methods.find("")[1]

    def streams(self, method: Optional[str]) -> bool:
        """Whether a method streams, or does not exist, which its call says."""
        kind = self._kind(method)
        return kind is None or kind.streams

    def takes_input(self, method: Optional[str]) -> bool:
        """Whether a method takes an input, or does not exist."""
        kind = self._kind(method)
        return kind is None or kind.input is not None

    def takes_views(self, method: Optional[str]) -> bool:
        """Whether long bytes of a method's arguments are views of the memory that they have arrived in."""
        kind = self._kind(method)
        return kind is not None and kind.arguments is not None and kind.arguments.takes_views

    def _kind(self, method: Optional[str]) -> Optional[Kind]:
        if self._methods is not None:
            return self._methods.kind(method)
        # An object of the class is made by the first call.
        call = getattr(self._given, method or "", None)
        return None if call is None else Kind(call)

    def set_up(self) -> list[str]:
        """Runs ``setup`` in a new worker. Returns the messages of its error and of the causes."""
        if self._pid == 0:
            self._pid = os.getpid()
            logging.getLogger().addHandler(self._records)
            worker._log._send = _log
            worker._context._find_peer = _native.peer

        def run() -> list[str]:
            made = _methods.resolve(self._setup()) if self._setup is not None else None
            given: Any = self._given
            if inspect.isclass(given):
                given = given(*([made] if self._setup is not None else []))
                self._methods = Methods(given).read_all()
            return []

        try:
            return self._run_user_code(run)
        except BaseException as error:
            return _messages_of(error)

    def end_checkout(self) -> list[str]:
        """Runs ``checkout_done`` in the same way."""

        # It follows each call of most clients, so there are no functions within functions.
        try:
            try:
                done = self._checkout_done or (self._methods and self._methods.checkout_done)
                if done:
                    _methods.resolve(done())
                # The process ends without the exit handlers of the interpreter.
                for stream in (sys.stdout, sys.stderr):
                    if stream is not None and not stream.closed:
                        stream.flush()
            finally:
                self._exit_if_forked()
        except BaseException as error:
            return _messages_of(error)
        return []

    def call(
        self,
        method: Optional[str],
        args: tuple[Any, ...],
        remaining: Optional[float],
        level: int,
        reads_items: bool,
        receiver: Optional[_native.Receiver],
    ) -> _Answer:
        """Runs a method, or begins one that streams. ``receiver`` has the input of the call; None if its caller streams none."""
        worker._begun_at = time.monotonic()
        worker._deadline = None if remaining is None else worker._begun_at + remaining
        worker._log.level = level
        worker._context._report = _report
        root = logging.root
        self._root_level = root.level
        if level >= INFO:
            wanted = logging.DEBUG if level >= DEBUG else logging.INFO
            if root.level > wanted:
                root.setLevel(wanted)
        try:
            # `DeadlineExceeded` may be raised anywhere in this block.
            try:
                self._in_call = True
                try:
                    if self._is_due:
                        self._raise_if_due()
                    answer = self._run(method, args, reads_items, receiver)
                finally:
                    self._exit_if_forked()
            finally:
                self._in_call = False
        except BaseException as error:
            answer = _fault(error)
        if answer[0] != "items":
            self._end()
        return answer

    def step(self, items: Iterator[Any], unsent: Optional[str]) -> _Answer:
        """Runs an iterator up to its next item. ``unsent`` says why its last item was not sent."""
        try:
            problem = None if unsent is None else ItemError(unsent)
            answer = self._run_user_code(lambda: self._step(items, problem))
        except BaseException as error:
            answer = _fault(error)
        if answer[0] != "item":
            self._end()
        return answer

    def _step(self, items: Iterator[Any], problem: Optional[BaseException]) -> _Answer:
        """The next item of an iterator. What is wrong with the last one is raised at its ``yield``."""
        throw = getattr(items, "throw", None)
        while True:
            try:
                try:
                    self._in_call = True
                    if self._is_due:
                        self._raise_if_due()
                    if problem is None:
                        return ("item", next(items))
                    if throw is None:
                        raise problem
                    return ("item", throw(problem))
                finally:
                    self._in_call = False
            except StopIteration as end:
                return ("ok", end.value)
            except DeadlineExceeded as error:
                # If it was raised before the generator went on, the generator gets it now. If the generator has ended by
                # it, the same exception comes back.
                if error is problem:
                    raise
                problem = error

    def close(self, items: Iterator[Any]) -> _Answer:
        """Ends an iterator whose caller reads no further."""

        def run() -> _Answer:
            close = getattr(items, "close", None)
            if close is not None:
                close()
            return ("ok", None)

        try:
            # `DeadlineExceeded` may be raised anywhere in this block.
            try:
                self._in_call = True
                answer = self._run_user_code(run)
            finally:
                self._in_call = False
        except BaseException as error:
            answer = _fault(error)
        self._end()
        return answer

    def _end(self) -> None:
        root = logging.root
        # It clears the caches of all loggers.
        if root.level != self._root_level:
            root.setLevel(self._root_level)
        worker._log.level, worker._deadline, worker._context._report = 0, None, None
        self._is_due = self._is_interrupted = False
        if self._input is not None:
            self._input._close()
            self._input = None

    def _run(
        self,
        method: Optional[str],
        args: tuple[Any, ...],
        reads_items: bool,
        receiver: Optional[_native.Receiver],
    ) -> _Answer:
        assert self._methods is not None
        plain = self._methods.plain.get("" if method is None else method)
        if plain is not None and not reads_items and receiver is None and not _keywords.has_mark(args):
            return self._result_of(plain, args, {}, method, False)
        call, known = self._methods.find(method)
        kind = self._methods.kind(method)
        if call is None or kind is None:
            return ("method", known)
        if kind.fault is not None:
            return ("arguments", kind.fault)
        if kind.streams and not reads_items:
            return ("unread",)
        if reads_items and not kind.streams:
            return ("arguments", STREAMS_NOTHING)
        if kind.needs_input and receiver is None:
            return ("unfed",)
        if receiver is not None and kind.input is None:
            return ("arguments", TAKES_NOTHING)
        try:
            positional, keywords = _keywords.split(args)
            if kind.arguments is not None:
                positional, keywords = kind.arguments.convert(positional, keywords)
            if receiver is not None:
                self._input = Input(receiver, self._late, kind.items())
                positional, keywords = kind.with_input(positional, keywords, self._input)
                receiver.open()
        except TypeError as error:
            return ("arguments", _texts.encodable(str(error)))
        return self._result_of(call, positional, keywords, method, kind.streams)

    def _result_of(
        self,
        call: Callable[..., Any],
        args: Sequence[Any],
        keywords: dict[str, Any],
        method: Optional[str],
        streams: bool,
    ) -> _Answer:
        assert self._methods is not None
        try:
            result = call(*args, **keywords)
        except TypeError as error:
            # Raised by the call itself, and not in the method.
            if error.__traceback__ is not None and error.__traceback__.tb_next is None:
                kind = self._methods.kind(method)
                wrong = None if kind is None else _methods.argument_error(kind.signature, args, keywords)
                if wrong is not None:
                    return ("arguments", wrong)
            raise
        return ("items", _methods.items_of(result)) if streams else ("ok", _methods.resolve(result))

    def _run_user_code(self, run: Callable[[], _T]) -> _T:
        """Runs user code. A child that it forks, and that returns from it, exits here: it shares the connection with the
        worker."""
        try:
            return run()
        finally:
            self._exit_if_forked()

    def _exit_if_forked(self) -> None:
        if os.getpid() != self._pid:
            worker._exit_child(sys.exc_info()[1])

    def _on_alarm(self, *_: Any) -> None:
        # The signal also asks what the worker does. A wait for the input ends without it.
        if self._is_interrupted or not _native.is_cancelled():
            return
        if self._in_call:
            self._in_call = False
            raise DeadlineExceeded(_TIME_IS_OVER)
        # Native code sends an item, for example.
        self._is_due = True

    def _late(self) -> NoReturn:
        """The time of the call was over while it waited for its input."""
        self._in_call, self._is_interrupted = False, True
        raise DeadlineExceeded(_TIME_IS_OVER)

    def _raise_if_due(self) -> None:
        if self._is_due:
            self._is_due = False
            raise DeadlineExceeded(_TIME_IS_OVER)


def _log(message: dict[str, Any]) -> None:
    try:
        _native.log(message)
    except ValueError:
        # It is no Log::Defer message, because of the level or a name. A line must not fail its call.
        _native.log({"start": message["start"], "logs": [[0.0, WARN, f"{message!r:.1000}"]]})


def _report(report: list[Any]) -> None:
    _native.progress(*report)


def _messages_of(error: BaseException) -> list[str]:
    causes, _ = worker._causes_of(error)
    return [worker._error_text(error), *causes]


def _fault(error: BaseException) -> _Answer:
    try:
        causes, omitted = worker._causes_of(error)
        stack = worker._stack_of(error, __file__)
        kind, ran_for = worker._type_of(error), worker._ran_until_deadline(error)
        notes = worker._notes_of(error)
        return ("error", worker._error_text(error), causes, omitted, stack, kind, notes, ran_for)
    except BaseException as problem:
        said = f"{worker._name_of(error)}, and its report failed: {worker._name_of(problem)}"
        return ("error", said, [], 0, None, None, [], None)
