"""The methods of the tests that take inputs."""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any, AsyncIterator, Iterator, Optional

from taskfork.worker import DeadlineExceeded, Input, InputClosed, InputFailed, ItemError


class Inputs:
    """What the playground has with `--streams`, and what only Python has."""

    def __init__(self) -> None:
        self._seen = ""
        self._kept: Optional[Iterator[int]] = None

    def total(self, start: int, numbers: Iterator[int]) -> int:
        return start + sum(numbers)

    def doubled(self, numbers: Iterator[int]) -> Iterator[int]:
        count = 0
        for number in numbers:
            yield 2 * number
            count += 1
        return count  # type: ignore[return-value]

    def first(self, count: int, numbers: Iterator[int]) -> int:
        return sum(next(numbers) for _ in range(count))

    def lengths(self, blobs: Iterator[Any]) -> list[int]:
        return [len(memoryview(blob)) for blob in blobs]

    def wait_for(self, file: str, items: Iterator[Any]) -> int:
        while not os.path.exists(file):
            time.sleep(0.002)
        return sum(1 for _ in items)

    def readable(self, items: Iterator[Any]) -> list[str]:
        """What each item is, or why it cannot be read."""
        seen = []
        while True:
            try:
                seen.append(repr(next(items)))
            except StopIteration:
                return seen
            except ItemError as error:
                seen.append(f"{type(error).__name__}: {error}")

    def die(self, numbers: Iterator[int]) -> None:
        next(numbers), next(numbers)
        os.abort()

    def pid(self) -> int:
        return os.getpid()

    def echo(self, text: str) -> str:
        return text

    # Only in Python.

    async def async_total(self, start: int, numbers: AsyncIterator[int]) -> int:
        async for number in numbers:
            start += number
        return start

    async def async_doubled(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        async for number in numbers:
            yield 2 * number

    async def ticks_meanwhile(self, file: str, numbers: AsyncIterator[int]) -> int:
        """How often another coroutine has run while this one waited for the input. The file says that it has run."""
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1
                if ticks == 20:
                    Path(file).touch()

        ticking = asyncio.create_task(tick())
        async for _ in numbers:
            pass
        ticking.cancel()
        return ticks

    async def awaited_twice(self, numbers: AsyncIterator[int]) -> str:
        first = asyncio.create_task(numbers.__anext__())  # type: ignore[arg-type]
        await asyncio.sleep(0)
        try:
            await numbers.__anext__()
        except RuntimeError as error:
            first.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await first
            return f"{error}, and then {[number async for number in numbers]}"
        return "nothing"

    def shown(self, items: Input[Any]) -> list[str]:
        return [f"{type(item).__name__} {item!r:.30}" for item in items]

    def placed(self, first: int, rows: collections.abc.Iterator[int], /, second: int, *rest: int, third: int = 3) -> Any:
        return [first, list(rows), second, list(rest), third]

    def by_name(self, *, rows: Iterator[int], **others: int) -> Any:
        return [list(rows), others]

    def optional(self, rows: Iterator[int] = iter(())) -> list[int]:
        return list(rows)

    def two_inputs(self, first: Iterator[int], second: Iterator[int]) -> None:
        raise AssertionError("it runs")

    def unread(self, numbers: Iterator[int]) -> str:
        return "not read"

    def fail_after(self, count: int, numbers: Iterator[int]) -> None:
        for _ in range(count):
            next(numbers)
        raise ValueError("enough")

    def watchful(self, items: Iterator[Any]) -> None:
        """Keeps how the input has ended."""
        self._seen = ""
        try:
            count = sum(1 for _ in items)
            self._seen = f"{count} items and the end, again {next(items, None)}"
        except (InputClosed, InputFailed) as error:
            self._seen = f"{type(error).__name__}: {error}, and then {next(items, None)}"
            raise
        except DeadlineExceeded:
            self._seen = "the deadline"
            raise

    async def watchful_coroutine(self, items: AsyncIterator[Any]) -> None:
        self._seen = ""
        try:
            count = 0
            async for _ in items:
                count += 1
            self._seen = f"{count} items"
        except (InputClosed, InputFailed) as error:
            self._seen = f"{type(error).__name__}: {error}"
            raise
        except asyncio.CancelledError:
            self._seen = "cancelled"
            raise

    def watchful_generator(self, items: Iterator[Any]) -> Iterator[Any]:
        """Yields after the deadline, and keeps what it was told."""
        said = []
        while True:
            try:
                yield next(items)
            except StopIteration:
                return
            except DeadlineExceeded:
                said.append("the deadline")
                self._seen = ", ".join(said)
                if len(said) > 1:
                    raise
                # The signal comes now, if it has not come.
                time.sleep(0.2)
                yield "late"
                yield "later"
                raise

    def seen(self) -> str:
        return self._seen

    def in_a_thread(self, numbers: Iterator[int]) -> str:
        said = []

        def take() -> None:
            try:
                next(numbers)
            except RuntimeError as error:
                said.append(str(error))

        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        return said[0]

    def keep(self, numbers: Iterator[int]) -> int:
        self._kept = numbers
        return next(numbers)

    def kept(self) -> str:
        assert self._kept is not None
        try:
            return str(next(self._kept))
        except InputClosed as error:
            return str(error)

    def child(self, numbers: Iterator[int]) -> list[int]:
        """A child must take nothing of its worker."""
        taken = [next(numbers)]
        child = os.fork()
        if child == 0:
            for _ in numbers:
                pass
            os._exit(0)
        os.waitpid(child, 0)
        return taken + list(numbers)
