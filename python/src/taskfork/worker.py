"""Workers in Python.

A program that calls :func:`serve` is a worker of ``taskfork serve``::

    import hashlib
    from taskfork.worker import serve

    def digest(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    if __name__ == "__main__":
        serve([digest])

It is started by ``taskfork serve --listen unix:/run/digests.sock -- python3 digests.py``.
"""

from __future__ import annotations

import builtins
import contextlib
import itertools
import logging
import os
import signal
import sys
import time
import traceback
from typing import Any, Callable, Iterator, NoReturn, Optional, Sequence

from . import _methods, _progress, _server_options, _texts
from ._deadline import DeadlineExceeded
from ._emitter import ItemError
from ._methods import Interface
from ._receiver import Input, InputClosed, InputFailed
from .errors import MAX_CAUSES, MAX_NOTES

__all__ = [
    "Context",
    "DeadlineExceeded",
    "Input",
    "InputClosed",
    "InputFailed",
    "ItemError",
    "Log",
    "Timer",
    "context",
    "default_signals",
    "logger",
    "remaining",
    "serve",
]

ERROR, WARN, INFO, DEBUG = 10, 20, 30, 40

#: The message and the exit status of a child that user code has forked and that returns from it.
_CHILD_RETURNED = (
    b"taskfork: a process that user code has forked came back from that code. It is no worker, "
    b"answers nothing, and ends here. End such a process with os._exit.\n"
)
_CHILD_RETURNED_STATUS = 70

#: Files whose frames a traceback leaves out.
_OWN_FILES = (
    *(
        os.path.join(os.path.dirname(__file__), f"{name}.py")
        for name in ("worker", "_methods", "_receiver")
    ),
    contextlib.__file__,
)

#: How deep exceptions of groups are shown, and in how many lines.
_MAX_GROUP_DEPTH, _MAX_GROUP_LINES = 8, 500


def serve(
    interface: Interface,
    *,
    setup: Optional[Callable[[], Any]] = None,
    checkout_done: Optional[Callable[[], Any]] = None,
    pickle: bool = False,
) -> None:
    """Serves calls until the connection ends.

    ``interface`` is one of these:

    - a mapping from names to functions;
    - a list of functions;
    - one function, which gets the method's name (or None) and the arguments of every call;
    - an object, whose public methods can be called;
    - a class, which is instantiated with the value that ``setup`` returns, if there is a ``setup``.

    ``setup`` runs once before the first call. If it fails, the first call fails with its error, and the next call runs
    it again. ``checkout_done`` runs at the end of each checkout; an object may have a method of that name instead.

    A generator function streams: each value that it yields is an item, and the value that it returns is the result of the
    call. So does a function whose annotation says that it returns an ``Iterator`` or a ``Generator``. ``yield`` waits
    while the caller is behind. It raises ``GeneratorExit`` if nobody reads on, ``ItemError`` if the item cannot be sent,
    and ``DeadlineExceeded`` if the call's time is over.

    A parameter with the annotation ``Iterator[T]``, ``AsyncIterator[T]`` or :class:`Input` takes what the caller streams to the
    method by ``input=``. Without a default, the method cannot be called without an input.

    ``pickle`` says whether results without another encoding are pickled, and pickled arguments are taken. Whoever can call a method
    can run any code in the worker then. The client needs the option too. Defaults to False.

    An exception is the error of its call, with causes and traceback. Records of ``logging``, and lines written to
    :func:`logger`, are sent to the caller's log.

    A child that one of these functions forks, and that returns from it, sends nothing and exits with status 70. After
    ``sys.exit`` it exits with that status.

    The program serves its connection itself: it takes the place of the process that has started it. So its process id is the
    worker's. The first program of a server ends when it calls this function, and is started once more, because the server learns
    only then what it is: what stands in front of the call runs twice there, and ``setup`` runs once. The package and the command
    ``taskfork`` must have the same version.

    Without a server, the function prints how to start the program, and exits with status 2.
    """
    _server_options.flag("pickle", pickle)
    state, descriptor = os.environ.pop("TASKFORK_WORKER", ""), os.environ.pop("TASKFORK_FD", "")
    if not (state or descriptor).isdigit():
        name = os.path.basename(sys.argv[0]) or "worker.py"
        sys.stderr.write(
            f"{name} is a worker: start it by `taskfork serve --listen unix:PATH -- python3 {name}`\n"
        )
        raise SystemExit(2)
    # It imports this module.
    from . import _program

    _program.serve(int(state) if state else None, int(descriptor or -1), interface, setup, checkout_done, pickle)


def default_signals() -> None:
    """Sets SIGTERM, SIGINT, SIGHUP, SIGQUIT and SIGTTOU to their default actions.

    A worker ignores these signals, and processes that it starts inherit that. So a signal that a service manager or a
    terminal sends to all processes ends neither the worker nor the processes of its call. Call this function in a
    process that such a signal should end::

        multiprocessing.Pool(2, initializer=default_signals)  # `terminate` sends SIGTERM
        subprocess.Popen(command, preexec_fn=default_signals)
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTTOU):
        signal.signal(number, signal.SIG_DFL)


def logger() -> Log:
    """The log of the running call, for lines with values, timers and data."""
    return _log


def remaining() -> Optional[float]:
    """The remaining seconds of the running call; None without a limit, and outside of calls."""
    if _deadline is None:
        return None
    return max(0.0, _deadline - time.monotonic())


class Context:
    """The running call; see :func:`context`."""

    def __init__(self) -> None:
        self._report: Optional[Callable[[list[Any]], None]] = None
        self._find_peer: Callable[[], Optional[str]] = lambda: None

    @property
    def remaining(self) -> Optional[float]:
        """The remaining seconds; None without a limit, and outside of calls."""
        return remaining()

    @property
    def is_cancelled(self) -> bool:
        """Whether the time of the call is over."""
        return remaining() == 0.0

    @property
    def peer(self) -> Optional[str]:
        """The client at the other end of the connection, with its process and user or its address. None in a process that
        is no worker."""
        return self._find_peer()

    def progress(self, done: int, total: Optional[int] = None, what: str = "") -> None:
        """Reports how far the call has got: ``done`` of ``total``, in any unit; None if the total is not known. ``what``
        says what is counted, or what is being done; it is cut to 64 bytes.

        The caller sees it at ``Call.progress``, and operators in the status of the server. A later report replaces an
        earlier one, and a caller gets at most 20 a second. The function never waits. It does nothing outside of calls.

        ``ValueError`` if a number is no unsigned integer of 64 bits."""
        for number in (done, 0 if total is None else total):
            if not _progress.is_count(number):
                raise ValueError(f"progress is counted in integers from 0 to 2**64 - 1, not by {number!r:.100}")
        if self._report is not None:
            self._report([done, total, _progress.cut(what)])


def context() -> Context:
    """The running call."""
    return _context


class Log:
    """The log of the running call. It ignores everything if the caller has no log."""

    def __init__(self) -> None:
        self.level = 0
        self._send: Optional[Callable[[dict[str, Any]], None]] = None

    def error(self, *items: Any) -> None:
        """Adds a line of level 10."""
        self.log(ERROR, *items)

    def warn(self, *items: Any) -> None:
        """Adds a line of level 20."""
        self.log(WARN, *items)

    def info(self, *items: Any) -> None:
        """Adds a line of level 30."""
        self.log(INFO, *items)

    def debug(self, *items: Any) -> None:
        """Adds a line of level 40."""
        self.log(DEBUG, *items)

    def log(self, level: int, *items: Any) -> None:
        """Adds a line of any level. Lower levels are more important."""
        if self.level > 0 and level <= self.level:
            self._note({"logs": [[0.0, level, *items]]})

    def data(self, name: str, value: Any) -> None:
        """Sets a named value."""
        if self.level > 0:
            self._note({"data": {name: value}})

    def timer(self, name: str) -> Timer:
        """Starts a timer, which runs until ``stop`` or the end of a ``with``. A timer takes at least a microsecond."""
        return Timer(self, name)

    def _note(self, message: dict[str, Any], start: Optional[float] = None) -> None:
        if self._send is not None:
            self._send({"start": time.time() if start is None else start, **_texts.loggable(message)})


class Timer:
    """A running timer; see :meth:`Log.timer`."""

    def __init__(self, log: Log, name: str) -> None:
        self._log, self._name = log, name
        self._start, self._since = time.time(), time.monotonic()
        self._running = True

    def stop(self) -> None:
        """Stops the timer."""
        if self._running and self._log.level > 0:
            # Viewers divide by the duration.
            took = max(time.monotonic() - self._since, 1e-6)
            self._log._note({"timers": [[self._name, 0.0, took]]}, self._start)
        self._running = False

    def __enter__(self) -> Timer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()


_log = Log()
_context = Context()
_deadline: Optional[float] = None
#: When the running call began.
_begun_at = 0.0


class _Records(logging.Handler):
    """Sends records of ``logging`` to the caller's log. Without a caller that has one, and without other handlers, warnings go
    to standard error, as they do in a program that has not configured ``logging``."""

    def emit(self, record: logging.LogRecord) -> None:
        last = logging.lastResort
        if _log.level == 0 and last is not None and record.levelno >= last.level:
            if logging.getLogger().handlers == [self]:
                last.handle(record)
            return
        level = DEBUG
        for least, known in ((logging.ERROR, ERROR), (logging.WARNING, WARN), (logging.INFO, INFO)):
            if record.levelno >= least:
                level = known
                break
        try:
            _log.log(level, self.format(record))
        except Exception:
            self.handleError(record)


def _exit_child(error: Optional[BaseException]) -> NoReturn:
    """Ends a child that user code has forked, without the exit handlers of the worker."""
    if isinstance(error, SystemExit):
        code = error.code
        if code is not None and not isinstance(code, int):
            sys.stderr.write(f"{code}\n")
            code = 1
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (AttributeError, OSError, ValueError):
                # The stream is closed or has no reader.
                pass
        os._exit((code or 0) & 0xFF)
    try:
        os.write(2, _CHILD_RETURNED)
    except OSError:
        pass
    os._exit(_CHILD_RETURNED_STATUS)


def _stack_of(error: BaseException, *own: str) -> str:
    """The traceback of an exception, without the frames of this package at its beginning. That of a group is followed by its
    exceptions."""
    tree = list(itertools.islice(_tree_of(error), _MAX_GROUP_LINES))
    return _texts.encodable(_frames_of(error, *own) + "".join(f"{line}\n" for line in tree))


def _frames_of(error: BaseException, *own: str) -> str:
    raised = error.__traceback__
    while raised is not None:
        file = raised.tb_frame.f_code.co_filename
        if file not in (*_OWN_FILES, *own) and "/asyncio/" not in file:
            break
        # The interface's own frames follow these.
        raised = raised.tb_next
    return "".join(traceback.format_tb(raised)[-30:])


def _tree_of(error: BaseException, depth: int = 0) -> Iterator[str]:
    """The exceptions of a group, as lines that are indented by their depth."""
    # Before Python 3.11 there are no groups.
    group = getattr(builtins, "BaseExceptionGroup", None)
    if group is None or not isinstance(error, group) or depth == _MAX_GROUP_DEPTH:
        return
    for number, each in enumerate(error.exceptions, 1):
        yield f"{number}. {_error_text(each)}"
        inner = itertools.chain(_notes_of(each), _frames_of(each).splitlines(), _tree_of(each, depth + 1))
        for text in inner:
            yield f"   {text}"


def _notes_of(error: BaseException) -> list[str]:
    """The texts that ``add_note`` has added to an exception: the first 64."""
    try:
        notes = getattr(error, "__notes__", None)
    except Exception:
        # Code of the user, which must not replace the error either.
        return []
    if not isinstance(notes, (list, tuple)):
        return []
    # What cannot be encoded must not replace the error.
    return [_texts.encodable(note) for note in notes[:MAX_NOTES] if isinstance(note, str)]


def _type_of(error: BaseException) -> str:
    """The name of an exception's class, with its module unless that is ``builtins``."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return _texts.encodable(name)


def _ran_until_deadline(error: BaseException) -> Optional[float]:
    """For how many seconds a call had run that was interrupted because its time was over; None after another error."""
    return time.monotonic() - _begun_at if isinstance(error, DeadlineExceeded) else None


def _causes_of(error: BaseException) -> tuple[list[str], int]:
    """The messages of the nearest causes of an exception, and the number of the others. A chain can contain itself, by
    ``__cause__``: it ends where it repeats."""
    texts: list[str] = []
    seen = {id(error)}
    cause = _cause(error)
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if len(texts) < MAX_CAUSES:
            texts.append(_error_text(cause))
        cause = _cause(cause)
    return texts, len(seen) - 1 - len(texts)


def _cause(error: BaseException) -> Optional[BaseException]:
    try:
        cause = error.__cause__
        return error.__context__ if cause is None and not error.__suppress_context__ else cause
    except Exception:
        # Code of the user.
        return None


def _name_of(error: BaseException) -> str:
    try:
        return _texts.encodable(type(error).__name__)
    except Exception:
        # Code of the user, in a class of classes.
        return "an exception"


def _error_text(error: BaseException) -> str:
    name = _name_of(error)
    try:
        text = str(error)
    except BaseException:
        # Code of the user. What it raised says less than the error itself.
        return name
    return f"{name}: {_texts.encodable(text)}" if text else name
