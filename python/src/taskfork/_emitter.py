"""Methods that stream, in a worker."""

from __future__ import annotations

from typing import Any, Iterator, Optional

from . import _wire
from ._channel import ConnectionFailed, DeadlineExceeded, Messages

#: Why a call and its method do not fit.
STREAMS_NOTHING = "the method streams no items: make a call, and no stream"
TAKES_NOTHING = "the method takes no input: make a call without one"
IS_NOT_FED = (
    "the method takes an input, which this call does not stream: pass one by `input=` in Python, or by a typed client or "
    "`call_with_input` in Rust (clients that speak JSON cannot)"
)
IS_NOT_READ = (
    "the method streams items, which this call does not read: make a stream, and no call "
    "(clients that speak JSON cannot)"
)


class ItemError(Exception):
    """Raised at the ``yield`` of an item that cannot be sent, because it cannot be encoded or is too long, and by an input for an
    item that cannot be read. Others can follow."""


class Emitter:
    """Sends the items of one call, and waits while the caller is behind."""

    def __init__(self, messages: Messages) -> None:
        self._channel, self._messages = messages.channel, messages
        self._used = 0

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
        problem: Optional[BaseException] = None
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
                if self._messages.is_cancelled:
                    return None
                self._used += self._channel.send_item(item)
            except DeadlineExceeded as error:
                problem = error
            except _wire.EncodeError as error:
                problem = ItemError(f"an item of the stream cannot be sent: {error}")
            except (_wire.WireError, OSError) as error:
                raise ConnectionFailed from error

    def _wait_for_credit(self) -> None:
        messages = self._messages
        while self._used >= messages.credit and not messages.is_cancelled:
            if not messages.receive():
                with self._channel.allow():
                    self._channel.wait()


def _throw(items: Iterator[Any], problem: BaseException) -> Any:
    """Raises what is wrong with the last item at its ``yield``, and returns the next item."""
    throw = getattr(items, "throw", None)
    if throw is None:
        raise problem
    return throw(problem)
