"""Methods of workers that get arrays."""

from __future__ import annotations

import ctypes
import hashlib
import os
from typing import Any

kept: list[memoryview] = []
#: The ends of pipes to a child: what it waits for, and what it says.
child: list[int] = []

#: What the kernel calls memory that is shared and used again.
SHARED = "taskfork-buffer"


def digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def kind_of(data: Any) -> list[Any]:
    return [type(data).__name__, memoryview(data).readonly]


def kind_of_view(data: memoryview) -> list[Any]:
    return kind_of(data)


def kinds_of(view: memoryview, data: bytes, *rest: Any, named: Any = None, **others: Any) -> list[str]:
    return [type(each).__name__ for each in (view, data, *rest, named, *others.values())]


def pid() -> int:
    return os.getpid()


def same(data: memoryview) -> memoryview:
    return data


def same_bytes(data: bytes) -> bytes:
    return data


def part(data: memoryview, begin: int, end: int) -> memoryview:
    return data[begin:end]


def next_of_each(data: bytes) -> bytes:
    return bytes((byte + 1) % 256 for byte in data)


def parts(value: list[Any]) -> list[Any]:
    """Several values, of which some have memory."""
    return value


def keep(data: memoryview) -> None:
    """Keeps a view behind its call."""
    kept.append(data)


def digests() -> list[str]:
    return [digest(view) for view in kept]


def drop() -> None:
    kept.clear()


def fork_with(data: memoryview) -> None:
    """A child that goes on has the view."""
    begin, end = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.read(begin[0], 1)
        os.write(end[1], digest(data).encode())
        os._exit(0)
    child[:] = [begin[1], end[0]]


def ask_child() -> str:
    """What the child sees now."""
    os.write(child[0], b"x")
    said = os.read(child[1], 1000).decode()
    os.wait()
    return said


def filled(length: int, byte: int) -> bytearray:
    return bytearray([byte]) * length


def mappings(access: str) -> list[tuple[int, int]]:
    """The memory that is shared, and can be used in this way: `r` or `rw`."""
    found = []
    with open("/proc/self/maps") as lines:
        for line in lines:
            if SHARED in line and line.split()[1].rstrip("-xps") == access:
                start, end = (int(number, 16) for number in line.split()[0].split("-"))
                found.append((start, end))
    return found


def overwrite(byte: int) -> int:
    """Writes to all memory of this process that the client reads. Returns how many bytes."""
    own = mappings("rw")
    for start, end in own:
        ctypes.memset(start, byte, end - start)
    return sum(end - start for start, end in own)


def filled_memory() -> int:
    """How much memory this process has for its results."""
    return sum(end - start for start, end in mappings("rw"))


def mapped() -> int:
    """How much memory of the client is mapped."""
    return sum(end - start for start, end in mappings("r"))


METHODS = [
    digest, kind_of, kinds_of, kind_of_view, pid, same, parts, keep, digests, drop, fork_with, ask_child, filled, overwrite,
    mapped, filled_memory, same_bytes, part, next_of_each,
]  # fmt: skip
