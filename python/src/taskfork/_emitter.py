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


class DeadlineExceeded(Exception):
    """Raised in a call when its time is over. The call may clean up within the caller's grace, which defaults to
    0.1 seconds. Then the worker is killed."""


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
    """The connection, while a call runs."""

    def hold(self) -> ContextManager[None]:
        """Raises ``DeadlineExceeded`` at its end instead of in between, where a message would be cut or lost."""

    def allow(self) -> ContextManager[None]:
        """Within ``hold``, ``DeadlineExceeded`` may be raised here."""

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
        try:
            with self._channel.hold():
                return self._run(items)
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    def _run(self, items: Iterator[Any]) -> Any:
        problem: Optional[Exception] = None
        while True:
            try:
                with self._channel.allow():
                    item = next(items) if problem is None else _throw(items, problem)
            except StopIteration as end:
                return end.value
            except DeadlineExceeded as error:
                # If it was raised before the generator went on, the generator gets it now. If the generator has ended by
                # it, the same exception comes back.
                if error is problem:
                    raise
                problem = error
                continue
            problem = None
            try:
                self._wait_for_credit()
                if self._is_cancelled:
                    return None
                self._used += self._channel.send_item(item)
            except DeadlineExceeded as error:
                problem = error
            except _wire.EncodeError as error:
                problem = ItemError(f"an item of the stream cannot be sent: {error}")
            except (_wire.WireError, OSError) as error:
                raise ConnectionFailed from error

    def _wait_for_credit(self) -> None:
        while self._used >= self._credit and not self._is_cancelled:
            message = self._channel.next_message()
            if message is not None:
                self._handle(message)
            else:
                with self._channel.allow():
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
