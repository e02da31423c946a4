"""A socket in the event loop. Unlike asyncio's transports, it sends and receives descriptors, and continues to read
after a write has failed, because the peer may have sent messages before it ended."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import socket
import sys
import termios
from collections import deque
from typing import Any, Deque, Optional, Protocol, Sequence

from . import _descriptors, _wire


class Peer(Protocol):
    """The receiver of a socket's events."""

    def data_received(self, data: bytes, files: Sequence[int] = ...) -> None: ...

    def connection_lost(self, error: Optional[Exception]) -> None: ...


class Socket:
    """A connected socket that does not block."""

    def __init__(self, connected: socket.socket, peer: Peer) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = connected
        self._peer = peer
        self._outbox: Deque[tuple[memoryview, Sequence[int]]] = deque()
        #: Further data is neither sent nor received.
        self._closing = False
        self._closed = False
        #: Why a write failed; nothing is sent after that.
        self._failed: Optional[Exception] = None
        self._loop.add_reader(connected, self._readable)

    @classmethod
    async def connect(cls, path: str, peer: Peer) -> Socket:
        """Connects to a unix socket. ``OSError`` if that fails."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            await asyncio.get_running_loop().sock_connect(made, path)
        except BaseException:
            made.close()
            raise
        return cls(made, peer)

    @classmethod
    async def connect_tcp(cls, host: str, port: int, peer: Peer) -> Socket:
        """Connects to the first address of a host that accepts. ``OSError`` if none does."""
        loop = asyncio.get_running_loop()
        failure: OSError = OSError(f"{host} has no address")
        for family, kind, protocol, _, place in await loop.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        ):
            made = socket.socket(family, kind, protocol)
            try:
                made.setblocking(False)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.sock_connect(made, place)
                return cls(made, peer)
            except OSError as error:
                made.close()
                failure = error
            except BaseException:
                made.close()
                raise
        raise failure

    def write(self, data: bytes, files: Sequence[int] = ()) -> None:
        """Queues bytes, and descriptors that are sent with the first byte. It closes the descriptors."""
        if self._closing or self._failed is not None:
            _wire.close_all(files)
            return
        self._outbox.append((memoryview(data), files))
        if len(self._outbox) == 1:
            self._flush()

    def is_closing(self) -> bool:
        """Whether it is closed or being closed."""
        return self._closing

    def close(self) -> None:
        """Closes it when everything queued has been sent."""
        if not self._closing:
            self._closing = True
            self._loop.remove_reader(self._socket)
            if not self._outbox:
                self._end(None)

    def abort(self) -> None:
        """Closes it at once."""
        self._closing = True
        self._end(None)

    def _flush(self) -> None:
        try:
            while self._outbox:
                data, files = self._outbox[0]
                if files:
                    sent = socket.send_fds(self._socket, [data], files)
                    _wire.close_all(files)
                else:
                    sent = self._socket.send(data)
                if sent == len(data):
                    self._outbox.popleft()
                else:
                    self._outbox[0] = (data[sent:], ())
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._socket, self._flush)
            return
        except OSError as error:
            self._loop.remove_writer(self._socket)
            self._drop_outbox()
            if self._closing:
                self._end(error)
            # Messages that the peer sent before are still read.
            self._failed = error
            return
        self._loop.remove_writer(self._socket)
        if self._closing:
            self._end(None)

    def _readable(self) -> None:
        try:
            data, files = _descriptors.receive(self._socket, 1 << 18)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._closing = True
            self._end(error)
            return
        if data:
            self._peer.data_received(data, files)
        else:
            self._closing = True
            self._end(self._failed or self._reset())

    def _reset(self) -> Optional[Exception]:
        """At the end of the connection: an error if the peer has not read everything that was sent. The kernel sends no
        reset while another process holds the peer's socket, so the unread bytes are counted as well."""
        if self._socket.family != socket.AF_UNIX:
            return None
        unread = int.from_bytes(fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        # In this order: a close discards unread bytes, but sets the error before.
        reset = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
        return ConnectionResetError(errno.ECONNRESET, "the last bytes sent were not read") if unread or reset else None

    def _drop_outbox(self) -> None:
        while self._outbox:
            _wire.close_all(self._outbox.popleft()[1])

    def _end(self, error: Optional[Exception]) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._drop_outbox()
        self._socket.close()
        # Called later, as asyncio's transports do, and not from within a call by the peer.
        self._loop.call_soon(self._lost, error)

    def _lost(self, error: Any) -> None:
        self._peer.connection_lost(error)
