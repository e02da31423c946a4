"""Methods with annotations that ask for more than plain values, and the classes in these."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import pathlib
import typing
import uuid
from dataclasses import dataclass, field
from typing import Any, AsyncIterator, Generic, Iterator, NamedTuple, Optional, TypedDict, TypeVar, Union

import taskfork
from taskfork.worker import ItemError

if typing.TYPE_CHECKING:
    from nowhere import Nothing  # type: ignore[import-not-found]

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


class Permission(enum.Flag):
    READ = 1
    WRITE = 2


class Place(NamedTuple):
    row: int
    day: datetime.date = datetime.date(2026, 1, 1)


@dataclass
class Line:
    amount: decimal.Decimal
    tags: set[str] = field(default_factory=set)


@dataclass
class Order:
    id: uuid.UUID
    lines: list[Line]
    parent: Optional[Order] = None
    total: decimal.Decimal = field(init=False)

    def __post_init__(self) -> None:
        self.total = sum((line.amount for line in self.lines), decimal.Decimal(0))
        if self.total < 0:
            raise ValueError("the total is negative")


@dataclass
class Box(Generic[T]):
    content: T
    inner: Optional[Box[T]] = None


class Stay(TypedDict, total=False):
    begin: typing.Annotated[datetime.date, "the first day"]
    nights: int


class Money:
    """A class of a user, with converters of its own."""

    def __init__(self, amount: int, currency: str) -> None:
        self.amount, self.currency = amount, currency

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and (self.amount, self.currency) == (other.amount, other.currency)

    @staticmethod
    def read(given: Any) -> Money:
        amount, currency = given.split(" ")
        return Money(int(amount), currency)


class Debt(Money):
    pass


class Cyclic:
    pass


class Odd:
    """Its converter raises what is no ``Exception``."""

    @staticmethod
    def read(given: Any) -> Odd:
        raise GeneratorExit if given == "exit" else ValueError(given)


taskfork.add_converter(Odd, receive=Odd.read)
taskfork.add_converter(Money, send=lambda money: f"{money.amount} {money.currency}", receive=Money.read)
taskfork.add_converter(Cyclic, send=lambda cyclic: cyclic)


def book(
    when: datetime.datetime,
    amount: decimal.Decimal,
    items: set[int],
    order: Optional[Order] = None,
    *rest: uuid.UUID,
    path: pathlib.Path = pathlib.Path("."),
    **more: datetime.timedelta,
) -> list[Any]:
    """What has arrived, and of which types it is."""
    kinds = [type(each).__name__ for each in (when, amount, items, order, *rest, path, *more.values())]
    return [kinds, when, amount, items, order, rest, path, more]


def choose(value: Union[decimal.Decimal, int, datetime.date, None, dict[str, Money]]) -> list[Any]:
    return [type(value).__name__, value]


def odd(value: Odd) -> Any:
    return type(value).__name__


def halve(value: float) -> float:
    return value / 2


def priced(name: str, /, kind: str = "", **prices: decimal.Decimal) -> list[Any]:
    """The names of parameters are no others."""
    return [name, kind, type(kind).__name__, {key: type(price).__name__ for key, price in prices.items()}]


def numbers(values: list[int], text: str = "") -> list[Any]:
    """All of it is plain."""
    return [values, text]


def unreadable(day: datetime.date, nothing: Nothing) -> list[Any]:
    return [type(day).__name__, nothing]


def sum_up(amounts: Iterator[decimal.Decimal]) -> list[Any]:
    """What it could read of its input."""
    total, wrong = decimal.Decimal(0), []
    while True:
        try:
            total += next(amounts)
        except ItemError as error:
            wrong.append(str(error))
        except StopIteration:
            return [total, wrong]


async def latest(days: AsyncIterator[datetime.date]) -> Optional[datetime.date]:
    return max([day async for day in days], default=None)


def days(count: int) -> Iterator[datetime.date]:
    for number in range(count):
        yield datetime.date(2026, 1, 1 + number)
    return datetime.timedelta(days=count)  # type: ignore[return-value]


def as_it_is(value: Any) -> Any:
    return value


def returned(what: str) -> Any:
    """Results that need converters to be sent."""
    order = Order(uuid.UUID(int=7), [Line(decimal.Decimal("1.50"), {"a"})])
    nested: Any = 1
    for _ in range(140):
        nested = Box(nested)
    return {
        "order": order,
        "deque": collections.deque([datetime.date(2026, 1, 2)]),
        "cyclic": Cyclic(),
        "deep": nested,
        "huge": decimal.Decimal("1e20000"),
    }[what]


METHODS = [book, choose, odd, halve, priced, numbers, unreadable, sum_up, latest, days, as_it_is, returned]
