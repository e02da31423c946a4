"""Objects that are sent as plain values, and what annotations make of values."""

from __future__ import annotations

import asyncio
import collections
import datetime
import decimal
import enum
import pathlib
import types
import typing
import uuid
from typing import Any, FrozenSet, List, Literal, Optional, Tuple, Union

import pytest
from converter_methods import Box, Color, Cyclic, Debt, Line, Money, Order, Permission, Place, Stay

import taskfork
import taskfork.blocking
from taskfork._call import ConvertedCall

UTC = datetime.timezone.utc
EAST = datetime.timezone(datetime.timedelta(hours=5, minutes=30))


@pytest.fixture(params=["own_server", "python_server"])
def client(request: Any) -> Any:
    """A client of workers of both kinds, of which there is one."""
    server = request.getfixturevalue(request.param)(worker="converters")
    with taskfork.blocking.Client(server.address, min_workers=0, max_workers=1, reuse_after_error=True) as client:
        yield client


#: Objects, and what a peer without converters gets.
FORMS: list[tuple[Any, Any]] = [
    (datetime.datetime(2026, 1, 2, 3, 4, 5, 6, UTC), "2026-01-02T03:04:05.000006+00:00"),
    (datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=EAST), "2026-01-02T03:04:05+05:30"),
    (datetime.datetime(1, 1, 1), "0001-01-01T00:00:00"),
    (datetime.date(2026, 1, 2), "2026-01-02"),
    (datetime.time(3, 4, 5, 600), "03:04:05.000600"),
    (datetime.time(3, 4, tzinfo=EAST), "03:04:00+05:30"),
    (datetime.timedelta(days=-1), -86400),
    (datetime.timedelta(milliseconds=1), 0.001),
    (decimal.Decimal("-12.50"), "-12.50"),
    (decimal.Decimal("1E+3"), "1E+3"),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (pathlib.PurePosixPath("/a/b"), "/a/b"),
    ({7}, [7]),
    (frozenset([(1, 2)]), [[1, 2]]),
    (collections.deque([1, 2]), [1, 2]),
    (Color.RED, "red"),
    (Color.PAIR, [1, 2]),
    (Permission.READ | Permission.WRITE, 3),
    (Place(1), [1, "2026-01-01"]),
    (Line(decimal.Decimal(1), {"a"}), {"amount": "1", "tags": ["a"]}),
    (Box(datetime.date(2026, 1, 2)), {"content": "2026-01-02", "inner": None}),
    (Money(5, "EUR"), "5 EUR"),
]


def test_objects_are_sent_as_plain_values_and_made_again(client: Any) -> None:
    assert client.call("as_it_is", [value for value, _ in FORMS]) == [plain for _, plain in FORMS]
    for value, plain in FORMS:
        kind = Box[datetime.date] if isinstance(value, Box) else type(value)
        made = client.call("as_it_is", value, returns=kind)
        assert (made, type(made)) == (value, type(value))
    # Also as keys, in what is derived from these classes, and in views of maps.
    assert client.call("as_it_is", {decimal.Decimal(1): {datetime.date(2026, 1, 2): 3}}) == {"1": {"2026-01-02": 3}}
    assert client.call("as_it_is", [Debt(1, "EUR"), {"a": 1}.keys(), types.MappingProxyType({"b": {2}})]) == [
        "1 EUR", ["a"], {"b": [2]}
    ]  # fmt: skip
    assert client.call("as_it_is", datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone(datetime.timedelta(seconds=90)))) == (
        "2026-01-01T23:58:30+00:00"
    )


def test_parameters_get_what_their_annotations_say(client: Any) -> None:
    when, amount = datetime.datetime(2026, 1, 2, tzinfo=UTC), decimal.Decimal("1.50")
    order = Order(uuid.UUID(int=1), [Line(amount, {"a", "b"})], Order(uuid.UUID(int=2), []))
    kinds, *values = client.call(
        "book", when, amount, {1, 2}, order, uuid.UUID(int=3), uuid.UUID(int=4), path=pathlib.Path("/x"), long=datetime.timedelta(1)
    )
    assert kinds == ["datetime", "Decimal", "set", "Order", "UUID", "UUID", "PosixPath", "timedelta"]
    assert taskfork.convert(values[3], Order) == order
    assert values[4:] == [[str(uuid.UUID(int=3)), str(uuid.UUID(int=4))], "/x", {"long": 86400}]
    # Values of peers in other languages, by name.
    kinds, *values = client.call("book", when="2026-01-02T03:04:05.123456789Z", amount=5, items=[])
    assert kinds == ["datetime", "Decimal", "set", "NoneType", "PosixPath"]
    assert values[:2] == ["2026-01-02T03:04:05.123456+00:00", "5"]


def test_members_of_unions(client: Any) -> None:
    for value, kind, plain in [
        (5, "int", 5), (decimal.Decimal("5.0"), "Decimal", "5.0"), (datetime.date(2026, 1, 2), "date", "2026-01-02"), (None, "NoneType", None),
        ({"a": Money(1, "EUR")}, "dict", {"a": "1 EUR"}),
    ]:  # fmt: skip
        assert client.call("choose", value) == [kind, plain]
    with pytest.raises(taskfork.ArgumentsError, match=r"argument `value` must be Decimal or int or date or None or dict\[str, Money\], and is"):
        client.call("choose", "soon")


def test_what_does_not_fit_is_an_error_of_the_call(client: Any) -> None:
    good: dict[str, Any] = {"when": "2026-01-02T00:00:00", "amount": "1", "items": []}
    for wrong, said in [
        ({"when": 5}, "argument `when` must be datetime, and is an integer, 5"),
        ({"when": "soon"}, "argument `when` must be datetime, and is a text, 'soon': its form is 2026-11-30T08:15:00.5"),
        ({"when": "2026-13-02T00:00:00"}, "month must be in 1..12"),
        ({"when": "9999-12-31T23:59:60"}, "second must be in 0..59"),
        ({"when": "2026-01-02T00:00:00+24:00"}, "less than a day"),
        ({"when": "x" * 1_000_000}, "and is a text, 'xxxxx"),
        ({"amount": 0.1}, "argument `amount` must be Decimal, and is a number, 0.1"),
        ({"amount": True}, "and is a boolean, True"),
        ({"amount": "NaN"}, "its form is -12.50"),
        ({"amount": "1" * 1_000_000}, "it has more than 1000 characters"),
        ({"amount": "1e999999"}, "it has more than 10000 places"),
        ({"amount": "0e-999999999"}, "it has more than 10000 places"),
        ({"items": [1, "2"]}, r"argument `items`\[1\] must be int, and is a text, '2'"),
        ({"items": {}}, r"must be set\[int\], and is a map of 0"),
        ({"order": []}, "argument `order` must be Order or None, and is an array of 0"),
        ({"order": {}}, "its field 'id' is missing"),
        ({"order": {"id": str(uuid.UUID(int=1)), "lines": [{}, {}]}}, r"argument `order`.lines\[0\] must be Line, and is a map of 0: its field 'amount'"),
        ({"order": {"what": 1}}, "Order, and is a map of 1: it has no field 'what'"),
        ({"order": {"id": "1", "lines": []}}, "argument `order`.id must be UUID"),
        ({"order": {"id": b"x" * 16, "lines": [{"amount": -1}]}}, "ValueError: the total is negative"),
        ({"path": "a\0"}, "zero character"),
        ({"long": 1e300}, "argument `long` must be timedelta"),
        ({"long": float("nan")}, "argument `long` must be timedelta"),
    ]:  # fmt: skip
        with pytest.raises(taskfork.ArgumentsError, match=said) as caught:
            client.call("book", **{**good, **wrong})
        assert len(str(caught.value)) < 600
    with pytest.raises(taskfork.ArgumentsError, match=r"argument `rest\[1\]` must be UUID"):
        client.call("book", "2026-01-02T00:00:00", 1, [], None, uuid.UUID(int=1), "x")
    with pytest.raises(taskfork.ArgumentsError, match="missing a required argument: 'amount'"):
        client.call("book", "2026-01-02T00:00:00")
    assert client.call("book", **good)[0][0] == "datetime"


def test_a_converter_that_raises_no_exception_fails_its_call(client: Any) -> None:
    with pytest.raises(taskfork.InterfaceError, match="GeneratorExit"):
        client.call("odd", "exit")
    with pytest.raises(taskfork.ArgumentsError, match="argument `value` must be Odd.*ValueError: else"):
        client.call("odd", "else")
    assert client.call("as_it_is", 1) == 1


def test_names_of_parameters_are_no_others(client: Any) -> None:
    said = client.call("priced", "tea", kind="green", name="5", small="1.50")
    assert said == ["tea", "green", "str", {"name": "Decimal", "small": "Decimal"}]


def test_plain_annotations_are_not_looked_at(client: Any) -> None:
    assert client.call("numbers", "no list", 5) == ["no list", 5]
    # What cannot be resolved is as no annotation.
    assert client.call("unreadable", datetime.date(2026, 1, 2), "x") == ["date", "x"]


def test_an_annotation_that_cannot_be_used_is_a_warning(own_server: Any) -> None:
    server = own_server(worker="converters")
    assert "the annotation of `nothing` in unreadable cannot be used: NameError: name 'Nothing' is not defined" in server.log
    assert server.log.count("RuntimeWarning") == 1


def test_items_are_converted(client: Any) -> None:
    total, wrong = client.call("sum_up", input=[decimal.Decimal("1.5"), "x", 2], returns=tuple[decimal.Decimal, list[str]])
    assert total == decimal.Decimal("3.5")
    assert wrong == ["an item of the input must be Decimal, and is a text, 'x': its form is -12.50"]
    day = datetime.date(2026, 1, 2)
    assert client.call("latest", input=[day, datetime.date(2026, 1, 1)], returns=Optional[datetime.date]) == day
    stream = client.stream("days", 3, yields=datetime.date, returns=datetime.timedelta)
    assert list(stream) == [datetime.date(2026, 1, day) for day in (1, 2, 3)]
    assert stream.result() == datetime.timedelta(days=3)
    # The stream goes on behind what does not fit.
    stream = client.stream("days", 2, yields=Literal["2026-01-02"], returns=int)
    with pytest.raises(taskfork.ResultError, match="an item must be Literal"):
        next(stream)
    assert list(stream) == ["2026-01-02"]
    stream = client.stream("days", 1, returns=uuid.UUID)
    with pytest.raises(taskfork.ResultError, match="the result must be UUID, and is an integer, 86400"):
        stream.result()


def test_results_are_converted(client: Any) -> None:
    order = client.call("returned", "order", returns=Order)
    assert order.lines == [Line(decimal.Decimal("1.50"), {"a"})] and order.total == decimal.Decimal("1.50")
    with client.checkout() as checkout:
        assert checkout.call("returned", "deque", returns=List[datetime.date]) == [datetime.date(2026, 1, 2)]
        queued = checkout.queue("as_it_is", "x", returns=datetime.date)
        with pytest.raises(taskfork.ResultError, match="the result must be date, and is a text, 'x'") as caught:
            queued.wait()
        assert caught.value.may_have_run and not caught.value.fatal
        assert checkout.call("as_it_is", 1) == 1
    for what, said in [
        ("cyclic", "a Cyclic cannot be encoded: its converters lead to no end"),
        ("deep", "nested deeper than"),
        ("huge", "a Decimal cannot be encoded: it has more than 10000 places"),
    ]:
        with pytest.raises(taskfork.ResultError, match=said):
            client.call("returned", what)
    assert client.call("as_it_is", 1) == 1


def test_results_are_converted_in_asyncio(own_server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(own_server(worker="converters").address) as client:
            order = await client.call("returned", "order", returns=Order)
            assert type(order) is Order
            async with client.checkout() as checkout:
                calls = [checkout.call("as_it_is", day, returns=datetime.date) for day in ("2026-01-02", "2026-01-03")]
                assert await asyncio.gather(*calls) == [datetime.date(2026, 1, 2), datetime.date(2026, 1, 3)]
                with pytest.raises(taskfork.ResultError, match="the result must be date"):
                    await checkout.call("as_it_is", 5, returns=datetime.date)
                stream = checkout.stream("days", 2, yields=datetime.date, returns=datetime.timedelta)
                assert [type(item) async for item in stream] == [datetime.date] * 2
                assert await stream.result() == datetime.timedelta(days=2)
            with pytest.raises(TypeError, match="'Order' is a text, and no annotation"):
                client.call("as_it_is", 1, returns="Order")
            for annotation in (5, 5.0, [int], len):
                with pytest.raises(TypeError, match="is no type of values"):
                    client.call("as_it_is", 1, returns=annotation)
                with pytest.raises(TypeError, match="is no type of values"):
                    client.stream("days", 1, yields=annotation)
            with pytest.raises(taskfork.ResultError, match="must be Place0, .*no converter is known for this class"):
                await client.call("as_it_is", 1, returns=type("Place0", (), {}))
            with pytest.raises(TypeError, match="is a text"):
                client.stream("days", 1, yields="date")
            assert client.stats().busy == 0

    asyncio.run(asyncio.wait_for(test(), 60))


def test_what_cannot_be_sent_is_an_error_of_the_call(client: Any) -> None:
    nested: Any = 1
    for _ in range(140):
        nested = Box(nested)
    endless: Box[Any] = Box(None)
    endless.content = [endless]
    for value, said in [
        (decimal.Decimal("Infinity"), "argument 1: a Decimal cannot be encoded: it is no finite number"),
        (decimal.Decimal("1" * 2000), "it has more than 1000 digits"),
        (datetime.timedelta.max, "a timedelta cannot be encoded: it has more microseconds"),
        (datetime.time(1, tzinfo=datetime.timezone(datetime.timedelta(seconds=1))), "its distance from UTC has seconds"),
        (datetime.datetime.min.replace(tzinfo=datetime.timezone(datetime.timedelta(seconds=1))), "OverflowError"),
        (pathlib.Path("\udc80"), "surrogates not allowed"),
        (Line, "a type cannot be encoded"),
        (Cyclic(), "its converters lead to no end"),
        (nested, "deep"),
        (endless, "deep"),
        (Money, "a type cannot be encoded"),
        ([Money(1, "EUR"), object()], "a object cannot be encoded"),
    ]:
        with pytest.raises(taskfork.ArgumentsError, match=said):
            client.call("as_it_is", value)
    assert client.call("as_it_is", 1) == 1


class Temperature:
    def __init__(self, degrees: float) -> None:
        self.degrees = degrees


def test_converters_of_users() -> None:
    taskfork.add_converter(Temperature, receive=lambda degrees: Temperature(degrees / 2))
    assert taskfork.convert([4], list[Temperature])[0].degrees == 2
    # What is read again is not what was kept of it.
    taskfork.add_converter(Temperature, receive=Temperature)
    assert taskfork.convert([4], list[Temperature])[0].degrees == 4
    with pytest.raises(ValueError, match=r"the value\[0\] must be Money, and is an integer, 5: AttributeError: 'int' object has no"):
        taskfork.convert([5], list[Money])
    assert taskfork.convert(None, Optional[Money]) is None
    for kind, functions in [(Money, {}), ("Money", {"send": str})]:
        with pytest.raises(TypeError, match="add_converter takes a class, and a function"):
            taskfork.add_converter(kind, **functions)  # type: ignore[arg-type]


def test_annotations_of_all_kinds() -> None:
    day, plain = datetime.date(2026, 1, 2), "2026-01-02"
    for value, annotation, made in [
        ([plain, plain], Tuple[datetime.date, ...], (day, day)),
        ([plain, 1], Tuple[datetime.date, int], (day, 1)),
        ([1, 2], tuple, (1, 2)),
        ([plain], FrozenSet[datetime.date], frozenset([day])),
        ([[1, [2]]], set, {(1, (2,))}),
        ({plain: [plain]}, "dict", None),
        ({"begin": plain, "nights": 2}, Stay, {"begin": day, "nights": 2}),
        ([1], Place, Place(1)),
        ([1, plain], Place, Place(1, day)),
        (3, Permission, Permission.READ | Permission.WRITE),
        ({"content": {"content": plain}}, Box[Box[datetime.date]], Box(Box(day))),
        ({"content": "1", "inner": {"content": "2"}}, Box[decimal.Decimal], Box(decimal.Decimal(1), Box(decimal.Decimal(2)))),
        ("1.5", Union[float, decimal.Decimal], decimal.Decimal("1.5")),
        (1, Union[float, decimal.Decimal, int], 1),
        ("1", Union[pathlib.PurePath, decimal.Decimal], pathlib.PurePath("1")),
        ("1", Union[decimal.Decimal, pathlib.PurePath], decimal.Decimal(1)),
        (plain, Union[datetime.date, str], plain),
        (plain, Union[str, datetime.date], plain),
        (5, Union[datetime.timedelta, int], 5),
        (datetime.date, Union[decimal.Decimal, Any], datetime.date),
        (b"x", memoryview, memoryview(b"x")),
        (2, Box[float] | float if hasattr(types, "UnionType") else float, 2.0),
    ]:  # fmt: skip
        if annotation == "dict":
            assert taskfork.convert(value, dict[datetime.date, list[datetime.date]]) == {day: [day]}
            continue
        converted = taskfork.convert(value, annotation)
        assert (converted, type(converted)) == (made, type(made))


def test_equal_annotations_are_not_the_same() -> None:
    for first, second in [
        (Union[pathlib.PurePath, decimal.Decimal], Union[decimal.Decimal, pathlib.PurePath]),
        (list[Union[pathlib.PurePath, decimal.Decimal]], list[Union[decimal.Decimal, pathlib.PurePath]]),
    ]:
        assert first == second
        value: Any = "1" if typing.get_origin(first) is Union else ["1"]
        assert taskfork.convert(value, first) != taskfork.convert(value, second)


def test_what_a_converter_raises_is_an_error_of_the_value(monkeypatch: Any) -> None:
    for value, annotation, said in [
        (10**5000, float, "the value must be float, and is an integer, 0x.{16}… of 16610 bits: int too large"),
        (-(10**5000), str, "the value must be str, and is an integer, -0x"),
        ({10**5000: "x"}, dict[int, int], r"the value\[0x.{16}… of 16610 bits\] must be int"),
    ]:
        with pytest.raises(ValueError, match=said):
            taskfork.convert(value, annotation)

    def broken(*_: Any) -> Any:
        raise AttributeError("broken")

    monkeypatch.setattr(uuid.UUID, "__init__", broken)
    with pytest.raises(ValueError, match="the value must be UUID, and is a text, .*: AttributeError: broken"):
        taskfork.convert("00000000-0000-0000-0000-000000000001", uuid.UUID)


def test_a_future_whose_conversion_is_interrupted_is_complete() -> None:
    async def test() -> None:
        def interrupted(_: Any) -> Any:
            raise KeyboardInterrupt

        loop = asyncio.get_running_loop()
        call: Any = ConvertedCall(interrupted, loop)
        with pytest.raises(KeyboardInterrupt):
            call.set_result(1)
        assert call.done() and isinstance(call.exception(), KeyboardInterrupt)

        def failing(_: Any) -> Any:
            raise LookupError("odd")

        call = ConvertedCall(failing, loop)
        call.set_result(1)
        with pytest.raises(taskfork.ResultError, match="the result cannot be converted: LookupError: odd"):
            await call

    asyncio.run(test())


def test_values_that_fit_no_annotation() -> None:
    for value, annotation, said in [
        ([1, 2, 3], Place, "it must have 1 to 2 elements"),
        ([1], Tuple[int, datetime.date], "it must have 2 elements"),
        ([[{}]], set, "unhashable type: 'dict'"),
        ([[[{}]]], Color, "is not a valid Color"),
        (True, Permission, "must be Permission, and is a boolean"),
        ({"1.0": 1, "1": 2}, dict[decimal.Decimal, int], "two keys are the same"),
        ({"x": 1}, dict[decimal.Decimal, int], r"the value\['x'\] must be Decimal"),
        ({"nights": "2"}, Stay, r"the value.nights must be int, and is a text, '2'"),
        ({1: "x"}, Line, "it has no field 1"),
        ("00000000-0000-0000-0000-00000000000g", uuid.UUID, "its form is"),
        (b"x", uuid.UUID, "its bytes are 16"),
        ("2026-02-30", datetime.date, "day is out of range|day .* must be in range"),
        ("\u0662026-01-01", datetime.date, "its form is"),
    ]:
        with pytest.raises(ValueError, match=said):
            taskfork.convert(value, annotation)
    for annotation, said in [
        (Union[list[int], set[int]], r"an array can be for list\[int\] or set\[int\]"),
        (Union[Line, Box[int]], r"a map can be for Line or .*Box\[int\]"),
    ]:
        with pytest.raises(TypeError, match=said):
            taskfork.convert(1, annotation)


class Tree(enum.Enum):
    """Its values are looked up by what arrives, whatever that contains."""

    LEAF = ("leaf", 1)


def test_a_deep_value_is_an_error_and_no_crash() -> None:
    nested: Any = {"content": 1}
    for _ in range(5000):
        nested = {"content": 1, "inner": nested}
    assert taskfork.convert(["leaf", 1], Tree) is Tree.LEAF
    with pytest.raises(ValueError, match="nested too deeply"):
        taskfork.convert(nested, Box[decimal.Decimal])
