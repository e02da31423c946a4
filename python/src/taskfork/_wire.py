"""The native protocol, version 1: messages to bytes and descriptors, and back. No I/O."""

from __future__ import annotations

import io
import os
import struct
from collections import deque
from typing import Any, Callable, Iterable, Optional

import msgpack

from .shared import MAX_BLOB, Blob, BlobMut, opened, view_of

PREAMBLE = b"taskfork"
VERSION = 1
DEFAULT_LIMIT = 64 << 20

HELLO, CALL, DONE, CANCEL, QUEUE_LENGTH = 0, 1, 2, 4, 5
#: From either side: the number of descriptors that accompany the next message.
FILES = 6
QUEUED = 9
#: An item from a worker, and the credit that a client gives for items.
ITEM, CREDIT = 11, 12
#: How much credit an item uses beside its bytes, and for each of its descriptors.
ITEM_OVERHEAD, FILE_COST = 256, 4096
#: The most descriptors of one message, and the most that may arrive before a message announces them.
MAX_FILES, _MAX_UNCLAIMED = 16, 64

#: Extension types of MessagePack that refer to a descriptor.
_BLOB, _OPEN_FILE = 1, 2
#: A value that is absent within options of a typed language.
_ABSENT = 4
OK, ERROR, DEATH, TELEMETRY = 1, 2, 3, 4

#: The greatest depth of a value, and of a message, whose arguments are inside two more lists.
MAX_DEPTH = 128
_MESSAGE_DEPTH = MAX_DEPTH + 2
_TOO_DEEP = f"a value is nested deeper than the limit of {MAX_DEPTH} levels"

#: A message has at most one element for this many bytes of the frame limit. An element occupies up to about
#: 90 bytes, so a message occupies at most 16 times the frame limit.
_BYTES_PER_ELEMENT = 6

#: The first bytes of lists and maps.
_CONTAINERS = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])

_LENGTH = struct.Struct("<I")


class WireError(Exception):
    """The peer violates the protocol."""


class EncodeError(Exception):
    """A value cannot be encoded."""


def size(meta: dict[str, Any], key: str, default: int) -> int:
    """A non-negative integer of a hello, or ``default`` if the key is missing."""
    value = meta.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise WireError(f"`{key}` in the hello is not a valid number: {value!r:.100}")
    return value


class Encoder:
    """Encodes messages as frames with descriptors, within the limits of the receiver: the length of a frame, the
    number of descriptors, and the length of a blob in a memfd. The descriptors are copies that the caller must close."""

    def __init__(self, limit: int = DEFAULT_LIMIT, files: int = 0, max_blob: int = MAX_BLOB) -> None:
        self.limit, self.files, self.max_blob = limit, files, max_blob

    def frame(self, message: list[Any]) -> tuple[bytes, list[int]]:
        """The frame of a message, behind one that announces its descriptors; and these descriptors."""
        files: list[int] = []
        try:
            packed, _ = self._pack_message(message, files)
            return self._framed(packed, files), files
        except BaseException:
            close_all(files)
            raise

    def item(self, call: int, value: Any) -> tuple[bytes, list[int], int]:
        """The frame of an item, its descriptors, and how much credit it uses."""
        files: list[int] = []
        try:
            packed, shared = self._pack_message([value], files)
            # The length includes the cost itself, so the cost is in its longest encoding.
            front, behind = b"\x93\x0b\x82\xa4cost\xcf", b"\xa4call" + encode(call) + packed[1:]
            cost = item_cost(len(front) + 8 + len(behind) + shared, len(files))
            return self._framed(front + cost.to_bytes(8, "big") + behind, files), files, cost
        except BaseException:
            close_all(files)
            raise

    def _framed(self, body: bytes, files: list[int]) -> bytes:
        front = frame(encode([FILES, {}, len(files)])) if files else b""
        return front + frame(body, self.limit)

    def _pack_message(self, message: list[Any], files: list[int]) -> tuple[bytes, int]:
        """The encoded message, and how many bytes are in memory that accompanies it."""
        shared = 0

        def attach(kind: int, file: int) -> Any:
            files.append(os.dup(file))
            return msgpack.ExtType(kind, (len(files) - 1).to_bytes(4, "big"))

        def default(value: Any) -> Any:
            nonlocal shared
            if isinstance(value, Blob):
                fits = len(files) < self.files and len(value.view) <= self.max_blob
                if fits and value.is_shareable:
                    shared += len(value.view)
                    return attach(_BLOB, value.fileno())
                return value.view
            if isinstance(value, BlobMut):
                raise EncodeError("a BlobMut cannot be sent before it is frozen, by `freeze`")
            if isinstance(value, io.IOBase):
                if len(files) >= self.files:
                    said = f"{self.files} with one message" if self.files else "through unix sockets only"
                    raise EncodeError(f"open files can be sent {said}")
                return attach(_OPEN_FILE, value.fileno())
            return _buffer(value)

        return _pack(message, default), shared


def _buffer(value: Any) -> Any:
    """The bytes of an object that has a buffer, as arrays of NumPy have."""
    try:
        return memoryview(value).cast("B")
    except TypeError:
        raise EncodeError(f"a {type(value).__name__} cannot be encoded: {value!r:.100}") from None


def encode(value: Any) -> bytes:
    """A value as MessagePack."""
    return _pack(value, _buffer)


def _pack(value: Any, default: Callable[[Any], Any]) -> bytes:
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True, default=default)
        if _is_deep(packed, value):
            raise EncodeError(_TOO_DEEP)
        return packed
    except EncodeError:
        raise
    except (TypeError, ValueError, OverflowError, OSError) as error:
        # A far deeper value, or one that contains itself, exceeds the recursion limit of msgpack.
        said = _TOO_DEEP if "recursion limit" in str(error) else str(error)
        raise EncodeError(said) from error


def _is_deep(packed: bytes, value: Any) -> bool:
    """Whether ``value``, whose encoding is ``packed``, nests too deeply."""
    # Fast path: a value with few bytes that may begin lists or maps cannot nest that deeply.
    if len(packed) - len(packed.translate(None, _CONTAINERS)) <= _MESSAGE_DEPTH:
        return False
    level = [value] if isinstance(value, (list, tuple, dict)) else []
    for _ in range(_MESSAGE_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (list, tuple, dict))
        ]
        if not level:
            return False
    return True


def _unpack(body: bytes, limit: int, ext_hook: Callable[[int, bytes], Any]) -> Any:
    """Decodes a message within the limits of elements and depth."""
    elements = max(limit // _BYTES_PER_ELEMENT, 1)
    hooks: dict[str, Any] = {}
    if len(body) > elements:
        left = elements

        def count(container: Any) -> Any:
            nonlocal left
            left -= 1 + len(container) * (2 if isinstance(container, dict) else 1)
            if left < 0:
                raise ValueError(f"it has more elements than the limit of {elements}")
            return container

        known = ext_hook

        def extension(kind: int, data: bytes) -> Any:
            # An extension occupies as much memory as two other elements.
            count(())
            return known(kind, data)

        hooks, ext_hook = {"list_hook": count, "object_hook": count}, extension
    value = msgpack.unpackb(
        body,
        raw=False,
        strict_map_key=False,
        unicode_errors="surrogateescape",
        ext_hook=ext_hook,
        max_array_len=elements,
        max_map_len=elements // 2,
        max_str_len=limit,
        max_bin_len=limit,
        max_ext_len=limit,
        **hooks,
    )
    if _is_deep(body, value):
        raise ValueError(f"it is nested deeper than the limit of {MAX_DEPTH} levels")
    return value


def _extension(kind: int, data: bytes) -> Any:
    """The value of an extension type. Python has no options within options, so an absent value is None."""
    return None if kind == _ABSENT else msgpack.ExtType(kind, data)


def close_all(files: Iterable[int]) -> None:
    """Closes descriptors."""
    for file in files:
        os.close(file)


def frame(body: bytes, limit: int = DEFAULT_LIMIT) -> bytes:
    """The frame of a body."""
    if len(body) > limit:
        raise EncodeError(f"a frame of {len(body)} bytes is over the limit of {limit}")
    return _LENGTH.pack(len(body)) + body


def item_cost(length: int, files: int) -> int:
    """How much credit an item uses whose message has so many bytes and descriptors."""
    return length + ITEM_OVERHEAD + files * FILE_COST


class Decoder:
    """Decodes messages from bytes and descriptors, which may arrive in any fragments."""

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._inbox = bytearray()
        self._has_preamble = False
        self._files: deque[int] = deque()
        #: How many descriptors belong to the next message.
        self._announced = 0
        #: How many bytes and descriptors the last message had.
        self.length, self.file_count = 0, 0

    def feed(self, data: bytes, files: Iterable[int] = ()) -> None:
        """Adds received bytes, and descriptors, which the decoder owns from here on."""
        self._inbox += data
        self._files.extend(files)
        if len(self._files) > _MAX_UNCLAIMED:
            raise WireError("more descriptors arrived than messages announce")

    def __del__(self) -> None:
        close_all(getattr(self, "_files", ()))

    def next(self) -> Optional[list[Any]]:
        """The next message; None while it is incomplete. ``WireError`` for a violation of the protocol."""
        while True:
            message = self._next()
            if message is None or message[0] != FILES:
                return message
            count = message[2] if len(message) == 3 else None
            if not isinstance(count, int) or not 0 <= count <= len(self._files):
                raise WireError("fewer descriptors arrived than a message announces")
            self._announced = count

    def _next(self) -> Optional[list[Any]]:
        if not self._has_preamble:
            received = bytes(self._inbox[: len(PREAMBLE)])
            if not PREAMBLE.startswith(received):
                raise WireError(f"the peer does not speak this protocol: it began with {received!r}")
            if len(received) < len(PREAMBLE):
                return None
            del self._inbox[: len(PREAMBLE)]
            self._has_preamble = True
        if len(self._inbox) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._inbox)
        if length > self._limit:
            raise WireError(f"a frame of {length} bytes is over the limit of {self._limit}")
        end = _LENGTH.size + length
        if len(self._inbox) < end:
            return None
        self.length, self.file_count = length, self._announced
        body = bytes(memoryview(self._inbox)[_LENGTH.size : end])
        del self._inbox[:end]
        files: list[Optional[int]] = [self._files.popleft() for _ in range(self._announced)]
        self._announced = 0

        def extension(kind: int, data: bytes) -> Any:
            index = int.from_bytes(data, "big") if kind in (_BLOB, _OPEN_FILE) else -1
            if not 0 <= index < len(files):
                return _extension(kind, data)
            file, files[index] = files[index], None
            if file is None:
                raise ValueError("a descriptor is named twice")
            return view_of(file, MAX_BLOB) if kind == _BLOB else opened(file)

        try:
            message = _unpack(body, self._limit, extension if files else _extension)
        except Exception as error:
            raise WireError(f"a message is malformed: {error or type(error).__name__}") from error
        finally:
            close_all(file for file in files if file is not None)
        if (
            not isinstance(message, list)
            or len(message) < 2
            or not isinstance(message[0], int)
            or not isinstance(message[1], dict)
        ):
            raise WireError("a message is not an array of a kind, a map and further elements")
        return message
