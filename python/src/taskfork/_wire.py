"""The native protocol, version 1: bytes to messages and back. No input or output here."""

from __future__ import annotations

import struct
from typing import Any, Optional

import msgpack

PREAMBLE = b"taskfork"
VERSION = 1
DEFAULT_LIMIT = 64 << 20

HELLO, CALL, DONE, WAITING = 0, 1, 2, 5
OK, ERROR, DEATH, NOTES = 1, 2, 3, 4

_LENGTH = struct.Struct("<I")


class WireError(Exception):
    """The peer does not keep to the protocol."""


class EncodeError(Exception):
    """A value cannot be encoded."""


def _other(value: Any) -> Any:
    """What has a buffer, as arrays of numpy have, travels as its bytes."""
    try:
        return memoryview(value).cast("B")
    except TypeError:
        raise EncodeError(f"a {type(value).__name__} cannot be encoded: {value!r:.100}") from None


def encode(value: Any) -> bytes:
    """A value as MessagePack."""
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True, default=_other)
        return packed
    except EncodeError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise EncodeError(str(error)) from error


def frame(body: bytes, limit: int = DEFAULT_LIMIT) -> bytes:
    """A body with its length in front."""
    if len(body) > limit:
        raise EncodeError(f"a frame of {len(body)} bytes is over the limit of {limit}")
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Makes messages of what arrives, however it is cut."""

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._inbox = bytearray()
        self._greeted = False

    def feed(self, data: bytes) -> None:
        self._inbox += data

    def next(self) -> Optional[list[Any]]:
        """The next message; nothing while it is not there in full."""
        if not self._greeted:
            there = bytes(self._inbox[: len(PREAMBLE)])
            if not PREAMBLE.startswith(there):
                raise WireError(f"the peer does not speak this protocol: it began with {there!r}")
            if len(there) < len(PREAMBLE):
                return None
            del self._inbox[: len(PREAMBLE)]
            self._greeted = True
        if len(self._inbox) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._inbox)
        if length > self._limit:
            raise WireError(f"a frame of {length} bytes is over the limit of {self._limit}")
        end = _LENGTH.size + length
        if len(self._inbox) < end:
            return None
        body = bytes(memoryview(self._inbox)[_LENGTH.size : end])
        del self._inbox[:end]
        try:
            message = msgpack.unpackb(
                body, raw=False, strict_map_key=False, unicode_errors="surrogateescape"
            )
        except Exception as error:
            raise WireError(f"a message is malformed: {error}") from error
        if (
            not isinstance(message, list)
            or len(message) < 2
            or not isinstance(message[0], int)
            or not isinstance(message[1], dict)
        ):
            raise WireError("a message is no array of a kind, a map and what the kind adds")
        return message
