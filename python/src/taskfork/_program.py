"""A worker that is a program: the protocol that it speaks by itself."""

from __future__ import annotations

import contextlib
import faulthandler
import inspect
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from typing import Any, Callable, Iterator, NoReturn, Optional

from . import _descriptors, _keywords, _methods, _texts, _wire, worker
from ._channel import ConnectionFailed, Messages
from ._deadline import DeadlineExceeded
from ._emitter import IS_NOT_FED, IS_NOT_READ, STREAMS_NOTHING, TAKES_NOTHING
from ._methods import Interface, Kind, Methods
from ._program_streams import Emitter, ProgramPort
from ._receiver import Input
from ._reporter import Reporter
from .shared import MAX_BLOB
from .worker import DEBUG, INFO, WARN

#: Bytes to send, and descriptors that accompany the first byte.
_Frame = tuple[bytes, list[int]]

#: The longest frame of telemetry: the kernel takes it as a whole, so the server can report a death after it.
_MAX_TELEMETRY = 4096


def serve(
    descriptor: int,
    interface: Interface,
    setup: Optional[Callable[[], Any]],
    checkout_done: Optional[Callable[[], Any]],
    pickles: bool,
) -> None:
    """Serves calls until the connection ends."""
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    program = Worker(connection, interface, setup, checkout_done, pickles)
    try:
        program.run()
    except (BrokenPipeError, ConnectionResetError):
        pass
    except ConnectionFailed as failure:
        if isinstance(failure.__cause__, _wire.WireError):
            raise failure.__cause__


class Worker:
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
        handler = worker._Records()
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
                worker._exit_child(sys.exc_info()[1])

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
        _, meta, method, args = message
        if not (method is None or isinstance(method, str)) or not isinstance(args, list):
            self._decoder.refusal = "a call has a method that is no text, or arguments that are no list"
            method, args = None, []
        self._calls += 1
        timeout = meta.get("timeout")
        worker._begun_at = time.monotonic()
        worker._deadline = None if timeout is None else worker._begun_at + timeout / 1e6
        worker._log.level = int(meta.get("log", 0))
        worker._log._send = self._note
        worker._context._report = self._report
        level = logging.DEBUG if worker._log.level >= DEBUG else logging.INFO
        root = logging.getLogger()
        before = root.level
        if worker._log.level >= INFO and before > level:
            root.setLevel(level)
        try:
            messages = Messages(self, self._calls, meta.get("items"), meta.get("input") is True)
            answer = self._run_user_code(lambda: self._answer(method, args, messages))
        finally:
            root.setLevel(before)
            worker._log.level, worker._log._send, worker._deadline, worker._context._report = 0, None, None, None
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
            said = f"{worker._name_of(error)}, and its report failed: {worker._name_of(problem)}"
            body = {"kind": kind, "message": said}
            ran_for = worker._ran_until_deadline(problem)
            if ran_for is not None:
                body["timed_out"] = int(ran_for * 1e6)
        try:
            return self._answer_frame(_wire.ERROR, body)
        except _wire.EncodeError as problem:
            return self._refusal("result", str(problem))

    def _report_of(self, kind: str, error: BaseException) -> dict[str, Any]:
        causes, omitted = worker._causes_of(error)
        stack = worker._stack_of(error)
        body: dict[str, Any] = {"kind": kind, "message": worker._error_text(error), "causes": causes, "stack": stack}
        if omitted:
            body["more_causes"] = omitted
        body["type"] = worker._type_of(error)
        notes = worker._notes_of(error)
        if notes:
            body["notes"] = notes
        ran_for = worker._ran_until_deadline(error)
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
            worker._exit_child(None)
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
            worker._exit_child(None)
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
