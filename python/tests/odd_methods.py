"""Methods that log, raise, return and keep odd things. With an address, this process is the server of its workers."""

from __future__ import annotations

import gc
import io
import os
import sys
import threading
from typing import Any, Iterator

import taskfork.server
from taskfork.worker import logger, serve

kept: list[Any] = []


def echo(value: Any) -> Any:
    return value


def add(a: int, b: int) -> int:
    return a + b


def unique(values: set[int]) -> int:
    return len(values)


def kind(value: Any) -> str:
    return type(value).__name__


def pid() -> int:
    return os.getpid()


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def total(rows: Iterator[Any]) -> int:
    return sum(1 for _ in rows)


def both(rows: Iterator[Any]) -> Iterator[Any]:
    yield from rows


def sleep(seconds: float) -> float:
    import time

    time.sleep(seconds)
    return seconds


def endless() -> list[Any]:
    value: list[Any] = []
    value.extend([value, value])
    return value


def log(what: str) -> str:
    deep: Any = 1
    for _ in range(60_000):
        deep = [deep]
    values: dict[str, Any] = {
        "deep": deep,
        "endless": endless(),
        "surrogate": "a\ud800",
        "object": object(),
        "bytes": b"x",
        "keys": {1: 2},
        "large": 1 << 70,
        "level": None,
    }
    if what == "level":
        logger().log(0.5, "odd")  # type: ignore[arg-type]
    else:
        logger().info("it is", values[what])
        logger().data("d", values[what])
    # Without it, the interpreter destroys the lists recursively.
    while isinstance(deep, list):
        deep = deep.pop()
    return "logged"


class Surrogate(Exception):
    def __str__(self) -> str:
        return "odd \ud800"


class Notes(Exception):
    @property
    def __notes__(self) -> list[str]:
        raise RuntimeError("no notes")


class Cause(Exception):
    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        raise RuntimeError("no cause")


class Truth(Exception):
    def __bool__(self) -> bool:
        raise RuntimeError("no truth")


class Traceback(Exception):
    @property
    def __traceback__(self) -> Any:
        raise RuntimeError("no traceback")


class NoDescriptor(io.IOBase):
    def fileno(self) -> int:
        raise RuntimeError("no descriptor")


def fail(how: str) -> None:
    if how == "truth":
        raise ValueError("y") from Truth("z")
    raise {"surrogate": Surrogate, "notes": Notes, "cause": Cause, "traceback": Traceback}[how]("said")


def unsendable() -> Any:
    return NoDescriptor()


def keep(rows: Iterator[Any]) -> int:
    """Keeps the input, and the frame of the caller, which has the native part of it."""
    kept.append((rows, sys._getframe(1)))
    return 1


def drop_elsewhere() -> list[str]:
    """Drops what was kept in another thread. What is printed for errors in finalizers."""
    said: list[str] = []
    sys.unraisablehook = lambda unraisable: said.append(str(unraisable.exc_value))

    def drop() -> None:
        kept.clear()
        gc.collect()

    thread = threading.Thread(target=drop)
    thread.start()
    thread.join()
    return said


METHODS = [
    echo, add, unique, kind, pid, descriptors, total, both, sleep, log, fail, unsendable, keep, drop_elsewhere,
]  # fmt: skip

if __name__ == "__main__":
    if len(sys.argv) > 1:
        taskfork.server.run(METHODS, listen=sys.argv[1])
    else:
        serve(METHODS)
