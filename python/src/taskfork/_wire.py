"""The native protocol, version 1: messages to bytes and descriptors, and back. No I/O."""

from __future__ import annotations

import io
import os
import struct
import sys
from collections import deque
from typing import Any, Callable, Iterable, Optional

import msgpack

from . import _collisions, _pickles
from ._keywords import KEYWORDS
from ._sending import PLAIN, to_plain
from .shared import MAX_BLOB, Blob, BlobMut, opened, view_of

PREAMBLE = b"taskfork"
VERSION = 1
DEFAULT_LIMIT = 64 << 20

HELLO, CALL, DONE, CANCEL = 0, 1, 2, 4
#: From either side: the number of descriptors that accompany the next message.
FILES = 6
#: An item from either side, the credit that the other gives for items, and the end of an input.
ITEM, CREDIT, INPUT_END = 11, 12, 13
#: How much credit an item uses beside its bytes, and for each of its descriptors.
ITEM_OVERHEAD, FILE_COST = 256, 4096
#: The most descriptors of one message, and the most that may arrive before a message announces them.
MAX_FILES, _MAX_UNCLAIMED = 16, 64

#: Extension types of MessagePack that refer to a descriptor, and one that refers to memory of a connection, which programs have
#: none of.
_BLOB, _OPEN_FILE, _SEGMENT = 1, 2, 3
#: A value that is absent within options of a typed language.
_ABSENT = 4
#: In front of a map of arguments by name.
_KEYWORDS = 5
#: A pickled object.
_PICKLED = 6
OK, ERROR, TELEMETRY = 1, 2, 4

#: The greatest depth of a value, and of a message, whose arguments are inside two more lists.
MAX_DEPTH = 128
_MESSAGE_DEPTH = MAX_DEPTH + 2
_TOO_DEEP = f"a value is nested deeper than the limit of {MAX_DEPTH} levels"

#: A message has at most one element for this many bytes of the frame limit. An element occupies up to about
#: 90 bytes, so a message occupies at most 16 times the frame limit.
_BYTES_PER_ELEMENT = 6

#: Maps in a message of fewer bytes take no time worth mentioning, whatever their keys are.
_SMALL = 4096

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

    def __init__(
        self, limit: int = DEFAULT_LIMIT, files: int = 0, max_blob: int = MAX_BLOB, *, pickles: bool = False
    ) -> None:
        self.limit, self.files, self.max_blob = limit, files, max_blob
        #: Whether objects without another encoding are pickled.
        self._pickles = pickles

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

        def memory_or_file(value: Any) -> Any:
            nonlocal shared
            if isinstance(value, Blob):
                fits = len(files) < self.files and len(value.view) <= self.max_blob
                if fits and value.is_shareable:
                    shared += len(value.view)
                    return attach(_BLOB, value.fileno())
                return value.view
            if isinstance(value, io.IOBase):
                if len(files) >= self.files:
                    said = f"{self.files} with one message" if self.files else "through unix sockets only"
                    raise EncodeError(f"open files can be sent {said}")
                return attach(_OPEN_FILE, value.fileno())
            return _buffer(value)

        def default(value: Any) -> Any:
            if isinstance(value, BlobMut):
                raise EncodeError("a BlobMut cannot be sent before it is frozen, by `freeze`")
            try:
                return _plain(value, memory_or_file)
            except (EncodeError, OSError, ValueError) as error:
                pickled = _pickles.dumps(value, str(error)) if self._pickles else _pickles.with_hint(str(error))
            if isinstance(pickled, str):
                raise EncodeError(pickled)
            return msgpack.ExtType(_PICKLED, pickled)

        return _pack(message, default), shared


def _plain(value: Any, other: Callable[[Any], Any]) -> Any:
    """What an object that msgpack does not know is sent as, if that is a plain value; ``other`` makes the rest."""
    plain = to_plain(value)
    if plain is value and isinstance(value, int):
        raise EncodeError("an integer has more than 64 bits: send it as a text")
    return plain if isinstance(plain, PLAIN) else other(plain)


def _buffer(value: Any) -> Any:
    """The bytes of an object that has a buffer, as arrays of NumPy have, and numbers of NumPy as such."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        number = value.item()
        # A time would be a number or a text, depending on its unit.
        if isinstance(number, numpy.generic) or value.dtype.kind in "mM":
            raise EncodeError(_unknown(value))
        return number
    try:
        memory = memoryview(value)
    except TypeError:
        raise EncodeError(_unknown(value)) from None
    # The names of fields are between colons.
    if any("O" in types for types in memory.format.split(":")[::2]):
        raise EncodeError("an array of Python objects cannot be encoded: send a list")
    # An array without elements cannot be cast.
    return memory.cast("B") if memory.c_contiguous and memory.nbytes else memory.tobytes()


def _unknown(value: Any) -> str:
    """Why a value of this type cannot be encoded."""
    try:
        return f"a {type(value).__name__} cannot be encoded: {value!r:.100}"
    except Exception:
        # Code of the user.
        return f"a {type(value).__name__} cannot be encoded"


def encode(value: Any) -> bytes:
    """A value as MessagePack."""
    return _pack(value, lambda value: _plain(value, _buffer))


def _pack(value: Any, default: Callable[[Any], Any]) -> bytes:
    is_converted = False

    def convert(value: Any) -> Any:
        nonlocal is_converted
        made = default(value)
        is_converted = is_converted or isinstance(made, (list, tuple, dict))
        return made

    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True, default=convert)
        if _has_many_containers(packed) and _is_deep(_containers_of(packed) if is_converted else value):
            raise EncodeError(_TOO_DEEP)
        return packed
    except EncodeError:
        raise
    except Exception as error:
        # Of msgpack, or of code of the user. A far deeper value, or one that contains itself, exceeds the recursion limit of msgpack.
        said = _TOO_DEEP if "recursion limit" in str(error) else str(error)
        raise EncodeError(said) from error


def _has_many_containers(packed: bytes) -> bool:
    """Whether an encoded value can nest too deeply: one with few bytes that may begin lists or maps cannot."""
    return len(packed) - len(packed.translate(None, _CONTAINERS)) > _MESSAGE_DEPTH


def _containers_of(packed: bytes) -> Any:
    """An encoded value, with lists in place of maps."""
    return msgpack.unpackb(
        packed, raw=True, strict_map_key=False, object_pairs_hook=lambda pairs: [part for pair in pairs for part in pair]
    )


def _is_deep(value: Any) -> bool:
    """Whether a value nests too deeply."""
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


def _unpack(body: bytes, limit: int, extensions: _Extensions) -> Any:
    """Decodes a message within the limits of elements and depth."""
    elements = max(limit // _BYTES_PER_ELEMENT, 1)
    hooks: dict[str, Any] = {}
    ext_hook = extensions.make
    left = elements
    if len(body) > elements:

        def count(container: Any) -> Any:
            nonlocal left
            left -= 1 + len(container) * (2 if isinstance(container, dict) else 1)
            if left < 0:
                raise ValueError(f"it has more elements than the limit of {elements}")
            return container

        def extension(kind: int, data: bytes) -> Any:
            # An extension occupies as much memory as two other elements.
            count(())
            return extensions.make(kind, data)

        hooks, ext_hook = {"list_hook": count, "object_hook": count}, extension

    def unpack(**hooks: Any) -> Any:
        return msgpack.unpackb(
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

    def unpack_pairs() -> Any:
        nonlocal left
        left, counted = elements, hooks.get("object_hook", lambda made: made)
        return unpack(
            list_hook=hooks.get("list_hook"), object_pairs_hook=lambda pairs: counted(_with_hashable_keys(pairs))
        )

    try:
        value = unpack_pairs() if _may_have_large_maps(body) else unpack(**hooks)
    except TypeError:
        # A map has a key that is a list.
        extensions.restart()
        value = unpack_pairs()
    if _has_many_containers(body) and _is_deep(value):
        raise ValueError(f"it is nested deeper than the limit of {MAX_DEPTH} levels")
    return value


def _with_hashable_keys(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A map whose keys that were lists are tuples. ``TypeError`` for a key that is a map, ``Collisions`` if the map would take too
    long."""
    pairs = [(_hashable(key), value) for key, value in pairs]
    _collisions.check([key for key, _ in pairs])
    return dict(pairs)


def _may_have_large_maps(body: bytes) -> bool:
    """Whether a message may have maps of more than 15 keys: they begin with one of two bytes."""
    return len(body) > _SMALL and (b"\xde" in body or b"\xdf" in body)


def _hashable(key: Any) -> Any:
    return tuple(_hashable(item) for item in key) if isinstance(key, list) else key


class _Extensions:
    """The extension types of one message, and the descriptors that have come with it."""

    def __init__(self, files: list[int], pickles: bool) -> None:
        self._files: list[Optional[int]] = list(files)
        self._pickles = pickles
        #: What was made of descriptors.
        self._made: dict[int, Any] = {}
        self._named: set[int] = set()
        #: How many marks of arguments by name there are.
        self.marks = 0
        #: Why a value is not taken. It is an error of the call, and not of the connection.
        self.refusal: Optional[str] = None

    def restart(self) -> None:
        """The message is decoded again."""
        self._named.clear()
        self.marks, self.refusal = 0, None

    def close(self) -> None:
        """Closes the descriptors that the message does not name."""
        close_all(file for file in self._files if file is not None)

    def make(self, kind: int, data: bytes) -> Any:
        """The value of an extension type. Python has no options within options, so an absent value is None."""
        if kind == _KEYWORDS:
            self.marks += 1
            return KEYWORDS
        if kind == _PICKLED:
            return self._unpickled(data)
        if kind in (_BLOB, _OPEN_FILE, _SEGMENT):
            return self._of_descriptor(kind, int.from_bytes(data, "big"))
        return None if kind == _ABSENT else msgpack.ExtType(kind, data)

    def _of_descriptor(self, kind: int, index: int) -> Any:
        if kind == _SEGMENT or index >= len(self._files):
            raise ValueError("it refers to a descriptor that has not come with it")
        if index in self._named:
            raise ValueError("a descriptor is named twice")
        self._named.add(index)
        file, self._files[index] = self._files[index], None
        if file is not None:
            self._made[index] = view_of(file, MAX_BLOB) if kind == _BLOB else self._opened(file)
        return self._made.get(index)

    def _opened(self, file: int) -> Any:
        try:
            return opened(file)
        except OSError as error:
            self.refusal = f"an open file cannot be used: {error}"
            return None

    def _unpickled(self, data: bytes) -> Any:
        try:
            return _pickles.loads(data, self._pickles)
        except _pickles.Refused as refused:
            self.refusal = str(refused)
            return None


#: Why a value is not taken.
_STRAY_MARK = "the mark of arguments by name is no value: it stands between arguments only"


def _is_marked(message: Any, marks: int) -> bool:
    """Whether so many marks of arguments by name are where they may be: in the list of a call's arguments."""
    is_call = isinstance(message, list) and len(message) == 4 and message[0] == CALL
    if not is_call or not isinstance(message[3], list):
        return False
    return sum(arg is KEYWORDS for arg in message[3]) == marks


def _outline(body: bytes) -> Optional[list[Any]]:
    """A call without its arguments, or an item without its value, of a message that cannot be decoded as a whole. None if it is
    neither."""
    unpacker = msgpack.Unpacker(
        raw=False,
        strict_map_key=False,
        unicode_errors="surrogateescape",
        object_pairs_hook=_with_hashable_keys,
        max_buffer_size=len(body) or 1,
    )
    try:
        unpacker.feed(body)
        length, kind = unpacker.read_array_header(), unpacker.unpack()
        if (kind, length) == (CALL, 4):
            return [kind, unpacker.unpack(), unpacker.unpack(), []]
        return [kind, unpacker.unpack(), None] if (kind, length) == (ITEM, 3) else None
    except Exception:
        return None


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

    def __init__(self, limit: int = DEFAULT_LIMIT, *, pickles: bool = False) -> None:
        self._limit = limit
        #: Whether pickled objects are taken.
        self._pickles = pickles
        #: Why one of the last message was not.
        self.refusal: Optional[str] = None
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
        extensions = _Extensions([self._files.popleft() for _ in range(self._announced)], self._pickles)
        self._announced = 0
        try:
            message = _unpack(body, self._limit, extensions)
            self.refusal = extensions.refusal
            if extensions.marks and not _is_marked(message, extensions.marks):
                self.refusal = _STRAY_MARK
        except Exception as error:
            said = f"a message is malformed: {str(error) or type(error).__name__}"
            message = _outline(body)
            if message is None:
                raise WireError(said) from error
            # It is an error of the call, or of the item.
            self.refusal = said
        finally:
            extensions.close()
        if (
            not isinstance(message, list)
            or len(message) < 2
            or not isinstance(message[0], int)
            or not isinstance(message[1], dict)
        ):
            raise WireError("a message is not an array of a kind, a map and further elements")
        return message
