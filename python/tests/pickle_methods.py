"""Methods with values that have no encoding but that of ``pickle``."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import sys
import threading
from pathlib import Path
from typing import Any, Iterator, Union

import taskfork
import taskfork.blocking
from taskfork.worker import ItemError, logger


class Point:
    """A class that is no dataclass."""

    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

    def __hash__(self) -> int:
        return hash((self.x, self.y))


class Touches:
    """It makes a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return _touch, (self._path,)


def _touch(path: str) -> str:
    Path(path).touch()
    return "touched"


class Exits:
    def __reduce__(self) -> Any:
        return sys.exit, ("not here",)


def echo(*values: Any, **named: Any) -> Any:
    return [*values, named] if named or len(values) != 1 else values[0]


def kinds(*values: Any) -> list[str]:
    return [type(value).__name__ for value in values]


def touching(path: str) -> Any:
    return [Touches(path)]


def exits() -> Any:
    return Exits()


def lock() -> Any:
    return threading.Lock()


def points(count: int) -> Iterator[Any]:
    for number in range(count):
        yield Point(number, 0)
    return Point(0, count)  # type: ignore[return-value]


def touching_items(path: str) -> Iterator[Any]:
    yield 1
    yield Touches(path)
    yield 2


def added(points: Iterator[Any]) -> Any:
    """The sum of what it could read of its input, and what it could not."""
    made, wrong = Point(0, 0), []
    while True:
        try:
            point = next(points)
            made = Point(made.x + point.x, made.y + point.y)
        except ItemError as error:
            wrong.append(str(error))
        except StopIteration:
            return [made.x, made.y, wrong]


def listed(values: Iterator[Any]) -> list[Any]:
    return list(values)


def each(values: Iterator[Any]) -> Iterator[Any]:
    yield from values


def relayed(backend: str, how: str, values: Iterator[Any]) -> list[Any]:
    """Passes its input on to another server, which has agreed to pickled values. Texts say what could not be read."""

    def passed_on() -> Iterator[Any]:
        while True:
            try:
                yield next(values)
            except ItemError as error:
                yield str(error)
            except StopIteration:
                return

    async def call() -> Any:
        async with taskfork.Client(backend, pickle=True) as client:
            return await client.call("listed", input=passed_on())

    if how == "asyncio":
        return list(asyncio.run(call()))
    with taskfork.blocking.Client(backend, pickle=True) as client:
        if how == "stream":
            return list(client.stream("each", input=passed_on()))
        return list(client.call("listed", input=passed_on()))


class Coin(Point):
    """It has a converter, and arrives pickled from a process that does not know how it is sent."""


taskfork.add_converter(Coin, receive=lambda value: Coin(value, 0))


def paid(amount: decimal.Decimal, *coins: Coin, other: Union[datetime.date, Coin, int] = 0) -> list[Any]:
    return [type(each).__name__ for each in (amount, *coins, other)]


def dated(value: datetime.date) -> str:
    return str(value)


def logged() -> None:
    """Values that are no plain ones in a log."""
    logger().data("point", Point(1, 2))
    logger().warn("a line", 2**70, {"point": Point(3, 4)})


class Interrupts:
    """It is as if somebody presses Ctrl-C while it is unpickled."""

    def __reduce__(self) -> Any:
        return _interrupt, ()


def _interrupt() -> None:
    raise KeyboardInterrupt


def interrupts() -> Any:
    return Interrupts()


def next_of(values: Iterator[Any]) -> Any:
    """The first item, or what its iterator has raised."""
    try:
        return next(values)
    except BaseException as error:
        return type(error).__name__


METHODS = [paid, dated, logged, interrupts, next_of, echo, kinds, touching, exits, lock, points, touching_items, added, listed, each, relayed]
