"""The native protocol as far as peers need it that tests play by hand."""

from __future__ import annotations

import struct
from typing import Any, Optional

import msgpack

PREAMBLE = b"taskfork"
VERSION = 1

HELLO, CALL, DONE, CANCEL, FILES, ITEM, CREDIT, INPUT_END = 0, 1, 2, 4, 6, 11, 12, 13
OK, ERROR, TELEMETRY = 1, 2, 4

_LENGTH = struct.Struct("<I")


def encode(value: Any) -> bytes:
    """A value as MessagePack."""
    packed: bytes = msgpack.packb(value)
    return packed


def frame(body: bytes) -> bytes:
    return _LENGTH.pack(len(body)) + body


def item(call: int, value: Any) -> tuple[bytes, int]:
    """The frame of an item, and how much credit it uses."""

    def body(cost: int) -> bytes:
        return encode([ITEM, {"cost": cost, "call": call}, value])

    # As long as the message with the cost itself.
    cost = len(body(1 << 40)) + 256
    return frame(body(cost)), cost


class Decoder:
    """Takes messages from the bytes of a peer."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._has_preamble = False
        #: The length of the body of the last message.
        self.length = 0

    def feed(self, data: bytes) -> None:
        self._received.extend(data)

    def next(self) -> Optional[list[Any]]:
        """The next message that has arrived as a whole."""
        if not self._has_preamble:
            if len(self._received) < len(PREAMBLE):
                return None
            assert self._received.startswith(PREAMBLE), bytes(self._received[:16])
            del self._received[: len(PREAMBLE)]
            self._has_preamble = True
        if len(self._received) < _LENGTH.size:
            return None
        (self.length,) = _LENGTH.unpack_from(self._received)
        end = _LENGTH.size + self.length
        if len(self._received) < end:
            return None
        body = bytes(self._received[_LENGTH.size : end])
        del self._received[:end]
        message: list[Any] = msgpack.unpackb(body, strict_map_key=False)
        return message
