"""Annotations of classes that are derived from others, and those that are texts."""

from __future__ import annotations

import datetime
import decimal
import sys
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

import pytest
from converter_methods import Box, Place

import taskfork

if sys.version_info >= (3, 11):
    from typing import NotRequired, Required
else:
    NotRequired = Required = None

DAY, PLAIN = datetime.date(2026, 1, 2), "2026-01-02"

T = TypeVar("T")
U = TypeVar("U")


@dataclass
class DateBox(Box[datetime.date]):
    """Its fields are those of the generic class."""


@dataclass
class Pair(Box[T], Generic[T, U]):
    """``T`` is the variable of both classes."""

    other: U = None  # type: ignore[assignment]


@dataclass
class Crossed(Pair[U, T], Generic[T, U]):
    """The variables change their places."""


@dataclass
class Lists(Box[list[T]]):
    pass


class Seat(Place):
    """It has no fields of its own."""


class Row(NamedTuple):
    quoted: "datetime.date"
    name: str


@dataclass
class Quoted:
    day: "datetime.date | None"


class Trip(TypedDict):
    begin: Required[datetime.date]
    end: NotRequired[datetime.date]


class Plan(TypedDict, total=False):
    begin: Required[datetime.date]
    end: datetime.date


if sys.version_info >= (3, 11):

    class Page(TypedDict, Generic[T]):
        first: T
        more: NotRequired[list[T]]
        next: NotRequired[Page[T]]

    class Marked(Page[U], Generic[T, U]):
        mark: T

    class Days(Page[datetime.date]):
        name: str

    @dataclass
    class Book(Generic[T]):
        page: Page[T]


def test_classes_that_are_derived_from_others() -> None:
    for value, annotation, made in [
        ({"content": PLAIN}, DateBox, DateBox(DAY)),
        ({"content": PLAIN, "inner": {"content": PLAIN}}, DateBox, DateBox(DAY, Box(DAY))),
        ({"content": PLAIN, "other": "1"}, Pair[datetime.date, decimal.Decimal], Pair(DAY, other=decimal.Decimal(1))),
        ({"content": PLAIN, "other": "1"}, Crossed[decimal.Decimal, datetime.date], Crossed(DAY, other=decimal.Decimal(1))),
        ({"content": [PLAIN]}, Lists[datetime.date], Lists([DAY])),
        ([1, PLAIN], Seat, Seat(1, DAY)),
    ]:
        converted = taskfork.convert(value, annotation)
        assert (converted, type(converted)) == (made, type(made))


def test_annotations_that_are_texts_in_texts() -> None:
    assert taskfork.convert([PLAIN, "x"], Row) == Row(DAY, "x")
    if sys.version_info >= (3, 10):
        assert taskfork.convert([{"day": PLAIN}, {"day": None}], list[Quoted]) == [Quoted(DAY), Quoted(None)]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.11 has brought these")
def test_required_fields_whose_annotations_are_texts() -> None:
    for kind in (Trip, Plan):
        made: Any = taskfork.convert({"begin": PLAIN}, kind)
        assert made == {"begin": DAY}
        assert taskfork.convert({"begin": PLAIN, "end": PLAIN}, kind) == {"begin": DAY, "end": DAY}
        with pytest.raises(ValueError, match="its field 'begin' is missing"):
            taskfork.convert({}, kind)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.11 has brought these")
def test_generic_maps_with_names() -> None:
    inner = {"first": PLAIN, "more": [PLAIN], "next": {"first": PLAIN}}
    made = {"first": DAY, "more": [DAY], "next": {"first": DAY}}
    for value, annotation, converted in [
        (inner, Page[datetime.date], made),
        # The variable of each class is its own.
        ({**inner, "mark": "1"}, Marked[decimal.Decimal, datetime.date], {**made, "mark": decimal.Decimal(1)}),
        ({**inner, "name": PLAIN}, Days, {**made, "name": PLAIN}),
        ({"page": inner}, Book[datetime.date], Book(made)),
        (inner, Page, inner),
    ]:
        assert taskfork.convert(value, annotation) == converted
    with pytest.raises(ValueError, match=r"Page\[datetime.date\].*its field 'first'"):
        taskfork.convert({}, Page[datetime.date])
