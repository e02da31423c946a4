"""Methods that stream, in a worker."""

from __future__ import annotations

import inspect
from typing import Any, Callable, ContextManager, Iterator, Optional, Protocol

from . import _wire

#: Why a call and its method do not fit.
STREAMS_NOTHING = "the method streams no items: make a call, and no stream"
IS_NOT_READ = (
    "the method streams items, which this call does not read: make a stream, and no call "
    "(clients that speak JSON cannot)"
)


class ItemError(Exception):
    """Raised at the ``yield`` of an item that cannot be sent, because it cannot be encoded or is too long. Others can
    follow."""


def is_streaming(method: Callable[..., Any], signature: Optional[inspect.Signature]) -> bool:
    """Whether a method streams: it is a generator function, or says that it returns an iterator."""
    if inspect.isgeneratorfunction(inspect.unwrap(method)):
        return True
    said = inspect.Signature.empty if signature is None else signature.return_annotation
    if said is inspect.Signature.empty:
        return False
    # It may be text, as in "collections.abc.Iterator[int]", whose names need not exist at run time.
    kind = getattr(said, "__origin__", said)
    name = said.split("[")[0].rsplit(".", 1)[-1] if isinstance(said, str) else getattr(kind, "__name__", "")
    return name in ("Iterator", "Generator")


class ConnectionFailed(BaseException):
    """Nothing more can be sent or read. It passes through the user's code, which could take its cause for an error of its
    own."""


class Channel(Protocol):
    """The connection, while a call runs. ``DeadlineExceeded`` may be raised at any time, but not while ``hold`` is."""

    def hold(self) -> ContextManager[None]: ...

    def send_item(self, item: Any) -> int:
        """Sends an item, and returns how much credit that used."""

    def next_message(self) -> Optional[list[Any]]:
        """The next message of the client; None if there is none yet. ``OSError`` if the connection has ended."""

    def wait(self) -> None:
        """Waits until there may be a message."""


class Emitter:
    """Sends the items of one call, and waits while the caller is behind."""

    def __init__(self, channel: Channel, call: int, credit: int) -> None:
        self._channel, self._call, self._credit = channel, call, credit
        self._used = 0
        self._is_cancelled = False

    def run(self, items: Iterator[Any]) -> Any:
        """Sends the items of an iterator, and returns the value that a generator returns. A generator whose items nobody
        wants is closed, which raises ``GeneratorExit`` in it. What prevents an item from being sent is raised in it too."""
        problem: Optional[Exception] = None
        try:
            while True:
                try:
                    item = next(items) if problem is None else _throw(items, problem)
                except StopIteration as end:
                    return end.value
                problem = None
                try:
                    self._wait_for_credit()
                    if self._is_cancelled:
                        return None
                    with self._channel.hold():
                        self._used += self._channel.send_item(item)
                except _wire.EncodeError as error:
                    problem = ItemError(f"an item of the stream cannot be sent: {error}")
                except (_wire.WireError, OSError) as error:
                    raise ConnectionFailed from error
                except Exception as error:
                    # The call's time is over.
                    problem = error
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    def _wait_for_credit(self) -> None:
        while self._used >= self._credit and not self._is_cancelled:
            with self._channel.hold():
                message = self._channel.next_message()
                if message is not None:
                    self._handle(message)
            if message is None:
                self._channel.wait()

    def _handle(self, message: list[Any]) -> None:
        if message[0] == _wire.CREDIT and len(message) == 4:
            if message[2] == self._call:
                self._credit = _wire.size({"credit": message[3]}, "credit", 0)
        elif message[0] == _wire.CANCEL and len(message) == 3:
            self._is_cancelled = self._is_cancelled or message[2] == self._call
        else:
            raise _wire.WireError(f"no message of kind {message[0]} is expected while a call streams")


def _throw(items: Iterator[Any], problem: Exception) -> Any:
    """Raises what is wrong with the last item at its ``yield``, and returns the next item."""
    throw = getattr(items, "throw", None)
    if throw is None:
        raise problem
    return throw(problem)
