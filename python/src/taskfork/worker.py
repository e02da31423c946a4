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
import faulthandler
import inspect
import itertools
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any, Callable, Iterator, NoReturn, Optional, Sequence

from . import _channel, _descriptors, _emitter, _keywords, _methods, _progress, _receiver, _server_options, _texts, _wire
from ._channel import ConnectionFailed, DeadlineExceeded, Messages
from ._emitter import IS_NOT_FED, IS_NOT_READ, STREAMS_NOTHING, TAKES_NOTHING, Emitter, ItemError
from ._methods import Interface, Kind, Methods
from ._receiver import Input, InputClosed, InputFailed, ProgramPort
from ._reporter import Reporter
from .errors import MAX_CAUSES, MAX_NOTES
from .shared import MAX_BLOB

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

#: Bytes to send, and descriptors that accompany the first byte.
_Frame = tuple[bytes, list[int]]


ERROR, WARN, INFO, DEBUG = 10, 20, 30, 40

#: The message and the exit status of a child that user code has forked and that returns from it.
_CHILD_RETURNED = (
    b"taskfork: a process that user code has forked came back from that code. It is no worker, "
    b"answers nothing, and ends here. End such a process with os._exit.\n"
)
_CHILD_RETURNED_STATUS = 70

#: Files whose frames a traceback leaves out.
_OWN_FILES = (
    __file__,
    _channel.__file__,
    _emitter.__file__,
    _methods.__file__,
    _receiver.__file__,
    contextlib.__file__,
)

#: How deep exceptions of groups are shown, and in how many lines.
_MAX_GROUP_DEPTH, _MAX_GROUP_LINES = 8, 500

#: The longest frame of telemetry: the kernel takes it as a whole, so the server can report a death after it.
_MAX_TELEMETRY = 4096


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

    Without a connection in the variable ``TASKFORK_FD``, the function prints how to start the program, and exits with
    status 2.
    """
    _server_options.flag("pickle", pickle)
    descriptor = os.environ.pop("TASKFORK_FD", "")
    if not descriptor.isdigit():
        name = os.path.basename(sys.argv[0]) or "worker.py"
        sys.stderr.write(
            f"{name} is a worker: start it by `taskfork serve --listen unix:PATH -- python3 {name}`\n"
        )
        raise SystemExit(2)
    connection = socket.socket(fileno=int(descriptor))
    connection.set_inheritable(False)
    worker = _Worker(connection, interface, setup, checkout_done, pickle)
    try:
        worker.run()
    except (BrokenPipeError, ConnectionResetError):
        pass
    except ConnectionFailed as failure:
        if isinstance(failure.__cause__, _wire.WireError):
            raise failure.__cause__


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
        is no worker, and in a program of ``serve``, which is not told."""
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


class _Worker:
    def __init__(
        self,
        connection: socket.socket,
        interface: Interface,
        setup: Optional[Callable[[], Any]],
        checkout_done: Optional[Callable[[], Any]],
        pickles: bool,
    ) -> None:
        self._connection = connection
        self._given = interface
        self._setup = setup
        self._checkout_done = checkout_done
        self._interface: Optional[Methods] = None
        self._setup_error: Optional[BaseException] = None
        self._decoder = _wire.Decoder(pickles=pickles)
        self._encoder = _wire.Encoder(pickles=pickles)
        #: Of what a log gets. Who reads it has agreed to no pickled values.
        self._log_encoder = _wire.Encoder()
        self._in_call = False
        #: Whether DeadlineExceeded is raised later, and whether it must be raised then.
        self._alarm_is_held = self._alarm_is_due = False
        # Frames of different threads must not mix. A signal handler may log while its own thread sends.
        self._sending = threading.RLock()
        self._reporter = Reporter(self._sending, self._send_progress)
        self._pid = os.getpid()
        #: The number of received calls.
        self._calls = 0

    def run(self) -> None:
        faulthandler.enable()
        signal.signal(signal.SIGALRM, self._on_alarm)
        # Prints the stack at the timeout, even if the program is in native code.
        faulthandler.register(signal.SIGALRM, all_threads=False, chain=True)
        handler = _Records()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        root = logging.getLogger()
        root.addHandler(handler)
        hello = self._receive()
        if hello is None:
            return
        self._encoder.limit = min(_wire.DEFAULT_LIMIT, _wire.size(hello[1], "max_frame", _wire.DEFAULT_LIMIT))
        self._encoder.files = min(_wire.MAX_FILES, _wire.size(hello[1], "files", 0))
        self._encoder.max_blob = _wire.size(hello[1], "max_blob", MAX_BLOB)
        versions = hello[1].get("versions")
        if hello[0] != _wire.HELLO or not isinstance(versions, list) or _wire.VERSION not in versions:
            message = f"the program speaks version {_wire.VERSION} of the protocol"
            self._connection.sendall(_wire.PREAMBLE)
            self._send([_wire.ERROR, {}, {"kind": "version", "message": message}])
            return
        try:
            self._run_user_code(self._set_up)
        except Exception as error:
            self._setup_error = error
        self._connection.sendall(_wire.PREAMBLE)
        meta = {
            "version": _wire.VERSION,
            "pid": os.getpid(),
            "worker": 0,
            "server": "python",
            "max_frame": _wire.DEFAULT_LIMIT,
            "alarm": True,
            "items": True,
            "input": True,
            "files": _wire.MAX_FILES,
        }
        self._send([_wire.HELLO, meta])
        while True:
            received = self._receive()
            if received is None:
                return
            if received[0] == _wire.CALL and len(received) == 4:
                self._serve(received)
            elif received[0] == _wire.DONE:
                self._run_user_code(self._clean_up)
            elif received[0] in (_wire.CREDIT, _wire.CANCEL, _wire.ITEM, _wire.INPUT_END):
                # Of a call that has ended.
                pass
            else:
                raise _wire.WireError(f"no message of kind {received[0]} is expected")

    def _run_user_code(self, run: Callable[[], Any]) -> Any:
        """Runs user code. A child that it forks, and that returns from it, exits here: it shares the connection with the
        worker."""
        try:
            return run()
        finally:
            if os.getpid() != self._pid:
                _exit_child(sys.exc_info()[1])

    def _set_up(self) -> None:
        made = _methods.resolve(self._setup()) if self._setup is not None else None
        given: Any = self._given
        if inspect.isclass(given):
            given = given(*([made] if self._setup is not None else []))
        self._interface = Methods(given).read_all()

    def _clean_up(self) -> None:
        if self._interface is None:
            return
        done = self._checkout_done or self._interface.checkout_done
        if done is not None:
            _methods.resolve(done())

    def _serve(self, message: list[Any]) -> None:
        global _deadline, _begun_at
        _, meta, method, args = message
        if not (method is None or isinstance(method, str)) or not isinstance(args, list):
            self._decoder.refusal = "a call has a method that is no text, or arguments that are no list"
            method, args = None, []
        self._calls += 1
        timeout = meta.get("timeout")
        _begun_at = time.monotonic()
        _deadline = None if timeout is None else _begun_at + timeout / 1e6
        _log.level = int(meta.get("log", 0))
        _log._send = self._note
        _context._report = self._report
        level = logging.DEBUG if _log.level >= DEBUG else logging.INFO
        root = logging.getLogger()
        before = root.level
        if _log.level >= INFO and before > level:
            root.setLevel(level)
        try:
            messages = Messages(self, self._calls, meta.get("items"), meta.get("input") is True)
            answer = self._run_user_code(lambda: self._answer(method, args, messages))
        finally:
            root.setLevel(before)
            _log.level, _log._send, _deadline, _context._report = 0, None, None, None
        self._reporter.end()
        self._write(answer)

    def _answer(self, method: Optional[str], args: list[Any], messages: Messages) -> _Frame:
        try:
            # DeadlineExceeded may be raised anywhere in this block.
            try:
                self._in_call = True
                if self._setup_error is not None:
                    error, self._setup_error = self._setup_error, None
                    return self._fault("setup", error)
                if self._interface is None:
                    try:
                        self._set_up()
                    except Exception as error:
                        return self._fault("setup", error)
                assert self._interface is not None
                return self._run(self._interface, method, args, messages)
            finally:
                self._in_call = False
        except DeadlineExceeded as error:
            return self._fault("interface", error)

    def _run(
        self, interface: Methods, method: Optional[str], given: list[Any], messages: Messages
    ) -> _Frame:
        call, known = interface.find(method)
        kind = interface.kind(method)
        if call is None or kind is None:
            said = "a call must name a method" if method is None else f"unknown method `{method}`"
            return self._refusal("method", said, known=[_texts.encodable(name) for name in known])
        if self._decoder.refusal is not None:
            return self._refusal("arguments", self._decoder.refusal)
        refusal = _refusal(kind, messages)
        if refusal is not None:
            return self._refusal("arguments", **refusal)
        input = Input[Any](ProgramPort(messages), _late, kind.items())
        try:
            args, keywords = _keywords.split(given)
            if kind.arguments is not None:
                args, keywords = kind.arguments.convert(args, keywords)
            if messages.has_input:
                args, keywords = kind.with_input(args, keywords, input)
            wrong = _methods.argument_error(kind.signature, args, keywords)
        except TypeError as error:
            wrong = str(error)
        except BaseException as error:
            # A converter of the user has raised what is no `Exception`.
            if os.getpid() != self._pid:
                raise
            return self._fault("interface", error)
        if wrong is not None:
            return self._refusal("arguments", wrong)
        try:
            if messages.has_input:
                messages.open_input()
            if kind.streams:
                result = Emitter(messages).run(_methods.items_of(call(*args, **keywords)))
            else:
                result = _methods.resolve(call(*args, **keywords))
        except ConnectionFailed:
            raise
        except BaseException as error:
            if os.getpid() != self._pid:
                raise
            return self._fault("interface", error)
        finally:
            input._close()
        try:
            return self._answer_frame(_wire.OK, result)
        except _wire.EncodeError as error:
            return self._refusal("result", str(error))
        except DeadlineExceeded:
            raise
        except BaseException as error:
            # Code of the user, such as `fileno`.
            if os.getpid() != self._pid:
                raise
            return self._fault("interface", error)

    def _refusal(self, kind: str, message: str, **fields: Any) -> _Frame:
        """The answer that says why there is no result."""
        return self._answer_frame(_wire.ERROR, {"kind": kind, "message": _texts.encodable(message), **fields})

    def _fault(self, kind: str, error: BaseException) -> _Frame:
        try:
            body = self._report_of(kind, error)
        except BaseException as problem:
            # Code of the user, such as a property `__notes__`, or the end of the call's time.
            said = f"{_name_of(error)}, and its report failed: {_name_of(problem)}"
            body = {"kind": kind, "message": said}
            ran_for = _ran_until_deadline(problem)
            if ran_for is not None:
                body["timed_out"] = int(ran_for * 1e6)
        try:
            return self._answer_frame(_wire.ERROR, body)
        except _wire.EncodeError as problem:
            return self._refusal("result", str(problem))

    def _report_of(self, kind: str, error: BaseException) -> dict[str, Any]:
        causes, omitted = _causes_of(error)
        stack = _stack_of(error)
        body: dict[str, Any] = {"kind": kind, "message": _error_text(error), "causes": causes, "stack": stack}
        if omitted:
            body["more_causes"] = omitted
        body["type"] = _type_of(error)
        notes = _notes_of(error)
        if notes:
            body["notes"] = notes
        ran_for = _ran_until_deadline(error)
        if ran_for is not None:
            body["timed_out"] = int(ran_for * 1e6)
        return body

    def _answer_frame(self, kind: int, value: Any) -> _Frame:
        """The answer to the last call."""
        return self._frame([kind, {"call": self._calls}, value])

    def _frame(self, message: list[Any]) -> _Frame:
        return self._encoder.frame(message)

    def _send(self, message: list[Any]) -> None:
        self._write(self._frame(message))

    def send_item(self, item: Any) -> int:
        data, files, cost = self._encoder.item(self._calls, item)
        self._write((data, files))
        return cost

    def send_credit(self, credit: int) -> None:
        self._send([_wire.CREDIT, {}, self._calls, credit])

    def length_of_message(self) -> tuple[int, int]:
        return self._decoder.length, self._decoder.file_count

    def refusal_of_message(self) -> Optional[str]:
        return self._decoder.refusal

    def fileno(self) -> int:
        return self._connection.fileno()

    def _write(self, frame: _Frame) -> None:
        data, files = frame
        if os.getpid() != self._pid:
            _exit_child(None)
        with self.hold(), self._sending:
            sent = 0
            if files:
                try:
                    sent = socket.send_fds(self._connection, [data], files)
                finally:
                    _wire.close_all(files)
            self._connection.sendall(data[sent:])

    def _report(self, report: list[Any]) -> None:
        # A child has no thread that would send it.
        if os.getpid() == self._pid:
            self._reporter.report(report)

    def _send_progress(self, report: list[Any]) -> None:
        # Not by `_write`: the alarm concerns the main thread.
        data, _ = self._frame([_wire.TELEMETRY, {"progress": report}])
        self._connection.sendall(data)

    def _note(self, message: dict[str, Any]) -> None:
        if os.getpid() != self._pid:
            # A child sends nothing.
            return
        try:
            note: Optional[_Frame] = self._log_encoder.frame([_wire.TELEMETRY, {"ld": message}])
        except _wire.EncodeError:
            # It is longer than any frame.
            note = None
        # After a longer frame, which may be incomplete, the server could not report a death.
        if note is None or len(note[0]) > _MAX_TELEMETRY:
            text = repr(message)[: _MAX_TELEMETRY // 2]
            cut = {"start": message["start"], "logs": [[0.0, WARN, f"cut: {text}"]]}
            note = self._log_encoder.frame([_wire.TELEMETRY, {"ld": cut}])
        self._write(note)

    def _receive(self) -> Optional[list[Any]]:
        while True:
            message = self._decoder.next()
            if message is not None:
                return message
            data, files = _descriptors.receive(self._connection, 1 << 16)
            if not data:
                return None
            self._decoder.feed(data, files)

    def next_message(self) -> Optional[list[Any]]:
        if os.getpid() != self._pid:
            # A child must take no message from its worker.
            _exit_child(None)
        message = self._decoder.next()
        if message is not None:
            return message
        try:
            data, files = _descriptors.receive(self._connection, 1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionResetError("the server has closed the connection")
        self._decoder.feed(data, files)
        return self._decoder.next()

    def wait(self) -> None:
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        poll.poll()

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before, self._alarm_is_held = self._alarm_is_held, True
        try:
            yield
        finally:
            self._alarm_is_held = before
            if self._alarm_is_due and not before:
                self._on_alarm()

    @contextlib.contextmanager
    def allow(self) -> Iterator[None]:
        try:
            self._alarm_is_held = False
            if self._alarm_is_due:
                self._on_alarm()
            yield
        finally:
            self._alarm_is_held = True

    def _on_alarm(self, *_: Any) -> None:
        self._alarm_is_due = self._in_call and self._alarm_is_held
        if self._in_call and not self._alarm_is_held:
            self._in_call = False
            raise DeadlineExceeded("the call's time is over")


def _refusal(kind: Kind, messages: Messages) -> Optional[dict[str, Any]]:
    """Why the method does not run: what it streams or takes, and what the call does, do not fit. None if they do."""
    if kind.fault is not None:
        return {"message": kind.fault}
    if kind.streams and not messages.reads_items:
        return {"message": IS_NOT_READ, "needs": ["items"]}
    if messages.reads_items and not kind.streams:
        return {"message": STREAMS_NOTHING}
    if kind.needs_input and not messages.has_input:
        return {"message": IS_NOT_FED, "needs": ["input"]}
    if messages.has_input and kind.input is None:
        return {"message": TAKES_NOTHING}
    return None


def _late() -> NoReturn:
    # Waits of a program are interrupted by the signal itself.
    raise DeadlineExceeded("the call's time is over")


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
