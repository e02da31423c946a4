"""Values that are pickled where both sides have agreed, and refused otherwise."""

from __future__ import annotations

import asyncio
import decimal
import io
import json
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import TASKFORK
from pickle_methods import Coin, Exits, Interrupts, Point, Touches

import taskfork
import taskfork.blocking
import taskfork.worker

REFUSED = "a value is pickled, and this side has not agreed to that"


@pytest.fixture(params=["own_server", "python_server"])
def client(request: Any) -> Any:
    """Makes a client of workers of both kinds, which agree to pickled values or do not."""
    made: list[taskfork.blocking.Client] = []
    addresses: dict[str, str] = {}

    def begin(worker: str, **options: Any) -> taskfork.blocking.Client:
        if worker not in addresses:
            addresses[worker] = request.getfixturevalue(request.param)(worker=worker, name=worker).address
        made.append(
            taskfork.blocking.Client(addresses[worker], min_workers=0, max_workers=1, reuse_after_error=True, **options)
        )
        return made[-1]

    yield begin
    for each in made:
        each.close()


Begin = Callable[..., taskfork.blocking.Client]


def test_values_are_pickled_where_both_sides_agree(client: Begin) -> None:
    agreed = client("pickles", pickle=True)
    point = Point(1, 2)
    for value in (point, [point, {"a": point, point: 1}], 2**70, [-(2**70)], [1j]):
        assert agreed.call("echo", value) == value
    assert agreed.call("kinds", point, 2**70, decimal.Decimal("NaN"), 5, {point}) == ["Point", "int", "Decimal", "int", "list"]
    assert agreed.call("echo", 1, named=point) == [1, {"named": point}]
    assert agreed.call("echo", io.StringIO("text")).read() == "text"
    with agreed.checkout() as checkout:
        stream = checkout.stream("points", 3)
        assert list(stream) == [Point(0, 0), Point(1, 0), Point(2, 0)]
        assert stream.result() == Point(0, 3)
        assert checkout.call("added", input=[point, Point(3, 4)]) == [4, 6, []]
        assert checkout.queue("echo", point).wait() == point
    for value in (threading.Lock(), [threading.Lock()]):
        with pytest.raises(taskfork.ArgumentsError, match="a lock cannot be encoded.*; and it cannot be pickled: TypeError"):
            agreed.call("echo", value)
    with pytest.raises(taskfork.ResultError, match="a lock cannot be encoded.*; and it cannot be pickled: TypeError"):
        agreed.call("lock")
    assert agreed.call("echo", 1) == 1


def test_a_sender_that_has_not_agreed_says_what_to_do(client: Begin) -> None:
    said = r"cannot be encoded.*\(if both sides have `pickle=True`, it is pickled\)"
    for value in (Point(1, 2), [Point(1, 2)]):
        with pytest.raises(taskfork.ArgumentsError, match=f"a Point {said}"):
            client("pickles").call("echo", value)
    with pytest.raises(taskfork.ArgumentsError, match=r"more than 64 bits: send it as a text \(if both sides"):
        client("pickles").call("echo", 2**70)
    with pytest.raises(taskfork.ResultError, match=f"a lock {said}"):
        client("refuses_pickles").call("lock")
    with pytest.raises(taskfork.InterfaceError, match=f"ItemError: an item of the stream cannot be sent: .*a Point {said}"):
        list(client("refuses_pickles").stream("points", 1))


def test_a_worker_that_has_not_agreed_refuses_pickled_values(client: Begin, tmp_path: Path) -> None:
    path = tmp_path / "touched"
    agreed = client("refuses_pickles", pickle=True)
    with agreed.checkout() as checkout:
        for value in (Touches(str(path)), [1, {"a": Touches(str(path))}]):
            with pytest.raises(taskfork.ArgumentsError, match=f"{REFUSED}.*pass `pickle=True` to `Client`, and to `serve` or `run`"):
                checkout.call("echo", value)
        with pytest.raises(taskfork.ArgumentsError, match=REFUSED):
            checkout.call("echo", named=Touches(str(path)))
        x, y, wrong = checkout.call("added", input=[Touches(str(path)), Point(3, 4)])
        assert (x, y, len(wrong)) == (0, 0, 2) and all(REFUSED in text for text in wrong)
        assert checkout.call("echo", 1) == 1
    assert not path.exists()


@pytest.mark.parametrize("how", ["call", "stream", "asyncio"])
def test_a_client_within_a_worker_agrees_for_itself_only(client: Begin, own_server: Any, tmp_path: Path, how: str) -> None:
    path = tmp_path / "touched"
    backend = own_server(worker="pickles", name="backend").address
    given = [Touches(str(path)), 5]
    # The client in the worker has agreed, and asks for these items while it sends its own.
    refused, plain = client("refuses_pickles", pickle=True).call("relayed", backend, how, input=given, timeout=60)
    assert REFUSED in refused and plain == 5
    assert not path.exists()


def test_a_client_that_has_not_agreed_refuses_pickled_values(client: Begin, tmp_path: Path) -> None:
    path = tmp_path / "touched"
    # In a process in which another client has agreed.
    client("pickles", pickle=True).call("echo", Point(1, 2))
    with client("pickles").checkout() as checkout:
        with pytest.raises(taskfork.ResultError, match=REFUSED) as caught:
            checkout.call("touching", str(path))
        assert caught.value.may_have_run and not caught.value.fatal
        stream = checkout.stream("touching_items", str(path))
        assert next(stream) == 1
        with pytest.raises(taskfork.ResultError, match=REFUSED):
            list(stream)
    assert client("pickles").call("echo", 1) == 1
    assert not path.exists()
    assert client("pickles", pickle=True).call("touching", str(path)) == ["touched"]
    assert path.exists()


def test_what_cannot_be_unpickled_is_an_error_of_the_call(client: Begin, monkeypatch: Any) -> None:
    agreed = client("pickles", pickle=True)
    # A module that the workers cannot import.
    OnlyHere = type("OnlyHere", (), {"__module__": "only_here"})
    monkeypatch.setitem(sys.modules, "only_here", types.SimpleNamespace(OnlyHere=OnlyHere))
    with pytest.raises(taskfork.ArgumentsError, match="a pickled value cannot be read: ModuleNotFoundError: No module named"):
        agreed.call("echo", OnlyHere())
    with pytest.raises(taskfork.ArgumentsError, match="a pickled value cannot be read: SystemExit: not here"):
        agreed.call("echo", Exits())
    with pytest.raises(taskfork.ResultError, match="a pickled value cannot be read: SystemExit: not here"):
        agreed.call("exits")
    assert agreed.call("echo", 1) == 1


def test_parameters_take_pickled_objects_of_their_classes(client: Begin) -> None:
    agreed = client("pickles", pickle=True)
    nan, coin = decimal.Decimal("NaN"), Coin(1, 2)
    assert agreed.call("paid", nan, coin, coin, other=coin) == ["Decimal", "Coin", "Coin", "Coin"]
    assert agreed.call("paid", "1", 5) == ["Decimal", "Coin", "int"]
    with pytest.raises(taskfork.ArgumentsError, match="argument `amount` must be Decimal, and is Point"):
        agreed.call("paid", Point(1, 2))
    assert agreed.call("echo", nan, returns=decimal.Decimal).is_nan()
    assert agreed.call("echo", Point(1, 2), returns=Point) == Point(1, 2)
    with pytest.raises(taskfork.ResultError, match="the result must be Point, and is Coin|no converter is known"):
        agreed.call("echo", 5, returns=Point)


def test_long_integers_are_no_end_of_a_worker(client: Begin) -> None:
    with client("pickles", pickle=True).checkout() as checkout:
        for method, argument in (("dated", 10**5000), ("dated", {10**5000: 1}), ("paid", Point(1, 2))):
            with pytest.raises(taskfork.ArgumentsError, match="argument `(value|amount)` must be"):
                checkout.call(method, argument)
        assert checkout.call("echo", 1) == 1


def test_values_of_logs_are_not_pickled(client: Begin) -> None:
    messages: list[Any] = []
    agreed = client("pickles", pickle=True)
    with agreed.checkout(log=messages.append) as checkout:
        checkout.call("logged")
    data = {name: value for message in messages for name, value in message.get("data", {}).items()}
    assert "Point object" in data["point"]
    (line,) = [line for message in messages for line in message.get("logs", [])]
    assert line[1:3] == [20, "a line"] and line[3] == str(2**70) and "Point object" in line[4]["point"]


def test_what_interrupts_an_item_is_no_error_of_it(own_server: Any) -> None:
    with taskfork.blocking.Client(own_server(worker="pickles").address, pickle=True) as client:
        assert client.call("next_of", input=[Exits(), 1]) == "ItemError"
        assert client.call("next_of", input=[Interrupts(), 1]) == "KeyboardInterrupt"


def test_what_interrupts_a_result_is_raised(client: Begin) -> None:
    agreed = client("pickles", pickle=True)
    with pytest.raises(KeyboardInterrupt):
        agreed.call("interrupts")
    assert agreed.call("echo", 1) == 1


@pytest.mark.parametrize("pickle", ["no", 1, None])
def test_an_agreement_is_a_choice(pickle: Any) -> None:
    with pytest.raises(TypeError, match="pickle is .*: it takes True or False"):
        taskfork.worker.serve([len], pickle=pickle)


def test_pickled_values_in_asyncio(own_server: Any, tmp_path: Path) -> None:
    path = tmp_path / "touched"

    async def test() -> None:
        address = own_server(worker="pickles").address
        async with taskfork.Client(address, pickle=True) as agreed, taskfork.Client(address) as other:
            point = Point(1, 2)
            # The answers are read in the same turns of the event loop.
            calls = [client.call("touching", str(path)) for client in (other, other)]
            good = [agreed.call("echo", point) for _ in range(20)]
            assert await asyncio.gather(*good) == [point] * 20
            for call in calls:
                with pytest.raises(taskfork.ResultError, match=REFUSED):
                    await call
            assert [item async for item in agreed.stream("points", 2)] == [Point(0, 0), Point(1, 0)]
            with pytest.raises(taskfork.ArgumentsError, match="a Point cannot be encoded"):
                await other.call("echo", point)

    asyncio.run(asyncio.wait_for(test(), 60))
    assert not path.exists()


def test_peers_in_other_languages_do_not_unpickle(playground: Any, own_server: Any) -> None:
    with taskfork.blocking.Client(playground().address, pickle=True) as client:
        with pytest.raises(taskfork.CallError):
            client.call("add", Point(1, 2), 3)
        assert client.call("add", 1, 2) == 3
    call = [str(TASKFORK), "call", own_server(worker="pickles", name="own").address, "exits"]
    shown = json.loads(subprocess.run(call, capture_output=True, text=True, timeout=60, check=True).stdout)
    assert (shown["extension"], set(shown)) == (6, {"base64", "extension"})


def test_a_started_server_can_agree() -> None:
    with taskfork.Server.start("pickle_methods:METHODS", workers=1, pickle=True) as server:
        with taskfork.blocking.Client(server.address, pickle=True) as client:
            assert client.call("echo", Point(1, 2)) == Point(1, 2)
