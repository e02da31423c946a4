"""An interface that tests start a server of, by its name."""

from __future__ import annotations

import os
from typing import Iterator


class Prices:
    def __init__(self, start: int = 0) -> None:
        self.start = start

    def quote(self, name: str) -> int:
        return self.start + len(name)

    def pid(self) -> int:
        return os.getpid()

    def server(self) -> int:
        return os.getppid()

    def die(self) -> None:
        os.write(2, b"dying\n")
        os._exit(3)

    def listed(self, count: int) -> Iterator[int]:
        yield from range(count)


def quote(name: str) -> int:
    return len(name)


def begin() -> int:
    return 100


def fail() -> None:
    raise OSError("no licence")
