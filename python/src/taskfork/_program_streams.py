"""What a worker that is a program streams, and what is streamed to it."""

from __future__ import annotations

from typing import Any, Iterator, Optional

from . import _wire
from ._channel import ConnectionFailed, Messages, Unread
from ._deadline import DeadlineExceeded
from ._emitter import ItemError
from ._receiver import InputClosed, InputFailed


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


class ProgramPort:
    """Where the items come from in a worker that is a program."""

    def __init__(self, messages: Messages) -> None:
        self._messages, self._channel = messages, messages.channel

    def open(self) -> None:
        self._messages.open_input()

    def take(self, waits: bool) -> Optional[tuple[Any]]:
        messages = self._messages
        try:
            with self._channel.hold():
                while (item := messages.take_item()) is None:
                    if messages.input_is_over or messages.is_cancelled:
                        break
                    if not messages.receive():
                        if not waits:
                            return None
                        with self._channel.allow():
                            self._channel.wait()
        except (_wire.WireError, OSError) as error:
            raise ConnectionFailed from error
        except Unread as error:
            raise ItemError(f"an item of the input cannot be read: {error}") from None
        if item is not None:
            return item
        if messages.input_error is not None:
            raise InputFailed(messages.input_error)
        if messages.input_is_over:
            raise StopIteration
        raise InputClosed("the caller no longer waits for the call")

    def prepare_wait(self) -> Optional[int]:
        return self._channel.fileno()
