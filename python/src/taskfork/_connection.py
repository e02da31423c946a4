"""A connection to one worker."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Callable, Optional, Sequence
from urllib.parse import unquote_to_bytes

from . import _wire
from ._call import Running
from ._progress import is_count
from ._socket import Socket
from .shared import MAX_BLOB
from .errors import (
    MAX_CAUSES,
    ArgumentsError,
    CallError,
    InterfaceError,
    PanicError,
    ProtocolError,
    ResultError,
    SetupError,
    UnknownMethod,
)


#: The most names of methods in an error.
MAX_KNOWN = 1000


class Address:
    """``unix:PATH``, ``unix-percent:PATH`` or ``tcp:HOST:PORT``. In ``unix-percent``, ``%`` and two hexadecimal digits
    represent a byte."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.path: Optional[str] = None
        self.host, self.port = "", 0
        kind, _, rest = text.partition(":")
        if kind == "unix" and rest:
            self.path = rest
        elif kind == "unix-percent" and rest:
            self.path = os.fsdecode(unquote_to_bytes(rest))
        elif kind == "tcp":
            host, _, port = rest.rpartition(":")
            if not host or not port.isdigit() or int(port) > 65535:
                raise ValueError(
                    f"`{text}` names no TCP port: write tcp:HOST:PORT, as in tcp:127.0.0.1:4000"
                )
            self.host, self.port = host.strip("[]"), int(port)
        else:
            raise ValueError(f"`{text}` is not an address: write unix:PATH or tcp:HOST:PORT")


class Refused(ConnectionError):
    """The server does not serve this client. ``kind`` is that of its error."""

    def __init__(self, kind: Any, said: str) -> None:
        super().__init__(f"the server refused: {said}")
        self.kind, self.said = kind, said


class Connection:
    """A connection to one worker. After its end, ``notice`` is the server's notice of the worker's death, and
    ``broken`` the violation of the protocol that ended it."""

    def __init__(self, max_frame: int, is_unix: bool) -> None:
        self._is_unix = is_unix
        self._decoder = _wire.Decoder(max_frame)
        self._encoder = _wire.Encoder(max_frame)
        self._transport: Optional[Socket] = None
        self._hello: Optional[asyncio.Future[None]] = None
        self._answer: Optional[asyncio.Future[Any]] = None
        self._running: Optional[Running] = None
        self._on_note: Optional[Callable[[dict[str, Any]], None]] = None
        #: The worker sends items to callers that read them.
        self.streams = False
        self._on_wait: Callable[[str], None] = lambda reason: None
        self.on_end: Optional[Callable[[Connection], None]] = None
        self.pid = 0
        self.notice: Optional[dict[str, Any]] = None
        self.broken: Optional[str] = None
        self.ended = False
        #: The worker has not read everything that was sent.
        self.unread = False
        self.checkouts = 0
        #: How many calls have been sent.
        self.calls = 0

    @classmethod
    async def open(
        cls,
        address: Address,
        name: str,
        number: int,
        max_frame: int,
        interfaces: Sequence[str] = (),
        on_wait: Callable[[str], None] = lambda reason: None,
    ) -> Connection:
        """Connects, and exchanges hellos with the worker, which must serve these interfaces. ``on_wait`` gets the reason if the server has no free worker."""
        loop = asyncio.get_running_loop()
        connection = cls(max_frame, address.path is not None)
        connection._hello = loop.create_future()
        connection._on_wait = on_wait
        # Retrieves the exception, so that asyncio does not log it after a cancellation.
        connection._hello.add_done_callback(lambda it: it.cancelled() or it.exception())
        if address.path is not None:
            connection._transport = await Socket.connect(address.path, connection)
        else:
            host, port = address.host, address.port
            connection._transport = await Socket.connect_tcp(host, port, connection)
        hello: dict[str, Any] = {"versions": [_wire.VERSION], "name": name, "max_frame": max_frame, "client": number}
        if interfaces:
            hello["interfaces"] = [{"name": interface} for interface in interfaces]
        if address.path is not None:
            hello["files"] = _wire.MAX_FILES
        try:
            connection._write(_wire.PREAMBLE + _wire.frame(_wire.encode([_wire.HELLO, hello])))
            await connection._hello
        except BaseException:
            connection.close()
            raise
        return connection

    def encode(self, message: list[Any]) -> tuple[bytes, list[int]]:
        """A frame for this worker."""
        return self._encoder.frame(message)

    def send_call(
        self,
        frame: tuple[bytes, list[int]],
        running: Running,
        on_note: Optional[Callable[[dict[str, Any]], None]],
    ) -> asyncio.Future[Any]:
        """Sends an encoded call. The future gets its result or a CallError. If the connection ends, it is cancelled; see
        ``notice`` and ``broken``."""
        self._answer = asyncio.get_running_loop().create_future()
        self._running, self._on_note = running, on_note
        self.calls += 1
        number = self.calls
        running.give_credit = lambda credit: self._write_control([_wire.CREDIT, {}, number, credit])
        if not self._write(*frame):
            self.ended = self.unread = True
            self._answer.cancel()
        return self._answer

    def send_queue_length(self, checkouts: int) -> None:
        """Reports how many checkouts wait."""
        self._write_control([_wire.QUEUE_LENGTH, {}, checkouts])

    def send_done(self) -> None:
        """Ends the checkout."""
        self._write_control([_wire.DONE, {}])

    def send_cancel(self) -> None:
        """Reports that nobody wants further items of the running call."""
        self._write_control([_wire.CANCEL, {}, self.calls])

    def close(self) -> None:
        """Closes the connection; a worker that runs a call is killed by its server."""
        self.ended = True
        if self._transport is not None:
            self._transport.abort()

    def _write_control(self, message: list[Any]) -> None:
        self._write(_wire.frame(_wire.encode(message)))

    def _write(self, data: bytes, files: Sequence[int] = ()) -> bool:
        """Sends data; returns False if the connection is over."""
        if self.ended or self._transport is None or self._transport.is_closing():
            _wire.close_all(files)
            return False
        self._transport.write(data, files)
        return True

    def data_received(self, data: bytes, files: Sequence[int] = ()) -> None:
        try:
            self._decoder.feed(data, files)
            while not self.ended:
                message = self._decoder.next()
                if message is None:
                    return
                self._handle(message)
        except _wire.WireError as error:
            self._fail(str(error))

    def connection_lost(self, error: Optional[Exception]) -> None:
        self.ended = True
        # A reset of TCP may also have discarded an answer.
        is_reset = isinstance(error, (ConnectionResetError, BrokenPipeError))
        self.unread = self.unread or self._is_unix and is_reset
        if self._hello is not None and not self._hello.done():
            self._hello.set_exception(
                ConnectionError("the server closed the connection before its greeting")
            )
        if self._answer is not None and not self._answer.done():
            self._answer.cancel()
        if self.on_end is not None:
            self.on_end(self)

    def _fail(self, why: str) -> None:
        self.broken = why
        if self._hello is not None and not self._hello.done():
            self._hello.set_exception(ConnectionError(why))
        self.close()

    def _handle(self, message: list[Any]) -> None:
        kind, meta = message[0], message[1]
        if self._hello is not None and not self._hello.done():
            if kind == _wire.HELLO:
                version = meta.get("version")
                if version != _wire.VERSION:
                    raise _wire.WireError(
                        f"the worker speaks version {version!r:.100} of the protocol, "
                        f"and this client version {_wire.VERSION}"
                    )
                self.pid = _wire.size(meta, "pid", 0)
                limit = min(self._encoder.limit, _wire.size(meta, "max_frame", self._encoder.limit))
                files = _wire.size(meta, "files", 0) if self._is_unix else 0
                max_blob = _wire.size(meta, "max_blob", MAX_BLOB)
                self.streams = meta.get("items") is True
                self._encoder = _wire.Encoder(limit, min(files, _wire.MAX_FILES), max_blob)
                self._hello.set_result(None)
            elif kind == _wire.QUEUED:
                self._on_wait(str(meta.get("reason", "")))
            elif kind == _wire.ERROR and len(message) == 3 and isinstance(message[2], dict):
                said = str(message[2].get("message", "no reason"))
                self._hello.set_exception(Refused(message[2].get("kind"), said))
            else:
                self._fail("the first message is no hello")
        elif kind == _wire.DEATH:
            self.notice = meta
            self.close()
        elif kind == _wire.TELEMETRY:
            if self._on_note is not None and isinstance(meta.get("ld"), dict):
                self._on_note(meta["ld"])
            if self._running is not None:
                self._running.add_report(meta.get("progress"))
        elif kind == _wire.ITEM and len(message) == 3:
            self._handle_item(meta, message[2])
        elif kind in (_wire.OK, _wire.ERROR) and len(message) == 3:
            if self._answer is None or self._answer.done():
                self._fail("the worker sent an answer that nobody asked for")
            elif not self._is_due(meta):
                said = f"the answer to call {meta['call']!r:.100}" if "call" in meta else "an answer without a number"
                self._fail(f"the worker sent {said} where that to call {self.calls} was due")
            elif kind == _wire.OK:
                self._running = None
                self._answer.set_result(message[2])
            else:
                self._running = None
                error = error_of(message[2])
                if isinstance(error, CallError) and isinstance(message[2], dict):
                    error._keeps_worker = message[2].get("keep") is True
                self._answer.set_exception(error)
        else:
            self._fail(f"no message of kind {kind} is expected")

    def _is_due(self, meta: dict[str, Any]) -> bool:
        """Whether a message belongs to the running call."""
        return meta.get("call") == self.calls and not isinstance(meta.get("call"), bool)

    def _handle_item(self, meta: dict[str, Any], item: Any) -> None:
        running, cost = self._running, meta.get("cost")
        length, files = self._decoder.length, self._decoder.file_count
        if running is None or not running.streams or self._answer is None or self._answer.done():
            self._fail("the worker sent an item that nobody asked for")
        elif not self._is_due(meta):
            self._fail(f"the worker sent an item of another call than {self.calls}, which runs")
        elif running.used >= running.credit:
            self._fail("the worker sent an item without credit")
        elif not isinstance(cost, int) or not is_count(cost) or cost < _wire.item_cost(length, files):
            self._fail(f"the worker sent an item of {length} bytes and {files} descriptors with the cost {cost!r:.100}")
        else:
            running.add_item(item, cost)


def _texts(body: dict[str, Any], key: str, most: int) -> tuple[list[str], int]:
    """The first texts of a list, and the number of the others."""
    values = body.get(key, [])
    if not isinstance(values, list):
        return [], 0
    return [str(value) for value in values[:most]], max(0, len(values) - most)


def _causes(body: dict[str, Any]) -> list[str]:
    """The messages of the causes. If some were left out, the last text states their number."""
    causes, omitted = _texts(body, "causes", MAX_CAUSES)
    more = body.get("more_causes", 0)
    if isinstance(more, int) and not isinstance(more, bool) and 0 <= more < 1 << 32:
        omitted += more
    if omitted:
        causes.append("1 more cause is left out" if omitted == 1 else f"{omitted} more causes are left out")
    return causes


def _known_methods(body: dict[str, Any]) -> list[str]:
    known, omitted = _texts(body, "known", MAX_KNOWN)
    return known + [f"({omitted} more)"] if omitted else known


def error_of(body: Any) -> Exception:
    """The exception for the error in a message."""
    if not isinstance(body, dict):
        return ProtocolError("an error is not a map")
    # Programs in Perl end errors with a newline.
    message = str(body.get("message", "")).rstrip("\r\n")
    causes = _causes(body)
    kind, stack = body.get("kind"), body.get("stack")
    made: CallError
    if kind == "interface":
        made = InterfaceError(message, causes, body.get("value"), stack)
    elif kind == "panic":
        place = (str(body["file"]), body.get("line", 0), body.get("column", 0)) if "file" in body else None
        made = PanicError(message, place, stack)
    elif kind == "method":
        made = UnknownMethod(message, _known_methods(body))
    elif kind == "arguments":
        made = ArgumentsError(message)
    elif kind == "result":
        made = ResultError(message)
    elif kind == "setup":
        made = SetupError(message, causes)
    else:
        return ProtocolError(f"an error of the unknown kind `{kind}`: {message}")
    return made
