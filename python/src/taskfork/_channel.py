"""The connection of a worker that is a program, while a call runs that streams."""

from __future__ import annotations

from collections import deque
from typing import Any, ContextManager, Optional, Protocol

from . import _wire

#: How much credit a client has for the items of an input that are not taken yet. The server's own worker process, which is in
#: between, has a window of its own.
INPUT_WINDOW = 64 << 10


class ConnectionFailed(BaseException):
    """Nothing more can be sent or read. It passes through the user's code, which could take its cause for an error of its
    own."""


class Unread(Exception):
    """An item of the input has arrived and cannot be read."""


class Channel(Protocol):
    """The connection, while a call runs."""

    def hold(self) -> ContextManager[None]:
        """Raises ``DeadlineExceeded`` at its end instead of in between, where a message would be cut or lost."""

    def allow(self) -> ContextManager[None]:
        """Within ``hold``, ``DeadlineExceeded`` may be raised here."""

    def send_item(self, item: Any) -> int:
        """Sends an item, and returns how much credit that used."""

    def send_credit(self, credit: int) -> None:
        """Gives the client credit for items of the call's input: so much in all."""

    def next_message(self) -> Optional[list[Any]]:
        """The next message of the client; None if there is none yet. ``OSError`` if the connection has ended."""

    def length_of_message(self) -> tuple[int, int]:
        """How many bytes and descriptors the last message had."""

    def refusal_of_message(self) -> Optional[str]:
        """Why a pickled value of the last message was not taken; None if all were."""

    def wait(self) -> None:
        """Waits until there may be a message."""

    def fileno(self) -> int:
        """The descriptor that can be read once there may be a message."""


class Messages:
    """What the client sends while one call runs."""

    def __init__(self, channel: Channel, call: int, credit: Optional[int], has_input: bool) -> None:
        """``credit`` is that for items of the worker; None if the client reads none."""
        self.channel, self._call = channel, call
        self.reads_items = credit is not None
        self.credit = credit or 0
        self.has_input = has_input
        self.is_cancelled = False
        #: Items of the input that have come and were not taken, with their costs. One that could not be read is an exception.
        self._items: deque[tuple[Any, int]] = deque()
        self.input_is_over = False
        #: Why the input has ended before its end.
        self.input_error: Optional[str] = None
        self._granted = self._used = self._taken = 0

    def receive(self) -> bool:
        """Handles a message. Returns whether there was one."""
        message = self.channel.next_message()
        if message is not None:
            self._handle(message)
        return message is not None

    def open_input(self) -> None:
        """Lets the client send the first items of its input."""
        if self._granted == 0:
            self._granted = INPUT_WINDOW
            self.channel.send_credit(self._granted)

    def take_item(self) -> Optional[tuple[Any]]:
        """An item of the input that has come, in a tuple. Gives credit for others."""
        if not self._items:
            return None
        item, cost = self._items.popleft()
        self._taken += cost
        wanted = self._taken + INPUT_WINDOW
        # Few messages are enough.
        if not self.input_is_over and wanted - self._granted >= INPUT_WINDOW // 2:
            self._granted = wanted
            self.channel.send_credit(wanted)
        if isinstance(item, Unread):
            raise item
        return (item,)

    def _handle(self, message: list[Any]) -> None:
        kind = message[0]
        if kind == _wire.CREDIT and len(message) == 4:
            if message[2] == self._call:
                self.credit = _wire.size({"credit": message[3]}, "credit", 0)
        elif kind == _wire.CANCEL and len(message) == 3:
            self.is_cancelled = self.is_cancelled or message[2] == self._call
        elif kind == _wire.ITEM and len(message) == 3 and self.has_input:
            self._receive_item(message[1], message[2])
        elif kind == _wire.INPUT_END and len(message) == 3 and self.has_input:
            self._end_input(message[1], message[2])
        else:
            raise _wire.WireError(f"no message of kind {kind} is expected while a call streams")

    def _receive_item(self, meta: dict[str, Any], item: Any) -> None:
        if meta.get("call") != self._call:
            # Of a call that has ended.
            return
        cost = _wire.size(meta, "cost", 0)
        if self.input_is_over or self._used >= self._granted:
            raise _wire.WireError("an item without credit")
        if cost < _wire.item_cost(*self.channel.length_of_message()):
            raise _wire.WireError(f"an item at the cost of {cost}, which is too little")
        self._used += cost
        refusal = self.channel.refusal_of_message()
        self._items.append((item if refusal is None else Unread(refusal), cost))

    def _end_input(self, meta: dict[str, Any], call: Any) -> None:
        if call != self._call:
            return
        if self.input_is_over:
            raise _wire.WireError("the end of an input that has ended")
        error = meta.get("error")
        self.input_is_over, self.input_error = True, None if error is None else str(error)
