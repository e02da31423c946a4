"""Methods of workers in Python: arguments by name, time limits of single calls, coroutines and asynchronous generators."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from conftest import is_gone, until

import taskfork
import taskfork.blocking


@pytest.fixture(params=["own_server", "python_server"])
def client(request: Any) -> Any:
    """A client of workers of both kinds, of which there is one."""
    server = request.getfixturevalue(request.param)()
    with taskfork.blocking.Client(server.address, min_workers=0, max_workers=1, reuse_after_error=True) as client:
        yield client


def test_arguments_by_name(client: Any) -> None:
    assert client.call("named", 1) == [1, 2, [], None, {}]
    image = b"x" * 100_000
    assert client.call("named", 1, 3, 4, only=image, method="m", other={"a": [1]}) == [
        1, 3, [4], image, {"method": "m", "other": {"a": [1]}}
    ]  # fmt: skip
    with client.checkout() as checkout:
        assert checkout.call("named", 5, only=6) == [5, 2, [], 6, {}]
        assert list(checkout.stream("named_lines", count=3)) == [0, 1, 2]
        assert checkout.queue("named", 7, only=8).wait() == [7, 2, [], 8, {}]
        with pytest.raises(taskfork.ArgumentsError, match="unexpected keyword argument 'nothing'"):
            checkout.call("pid", nothing=1)
        # By its position, because the client has an option of that name.
        assert checkout.call("named_timeout", "mine") == "mine"


def test_arguments_by_name_in_asyncio(own_server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(own_server().address) as client:
            assert await client.call("named", 1, only=2) == [1, 2, [], 2, {}]
            assert [item async for item in client.stream("named_lines", count=2)] == [0, 1]
            async with client.checkout() as checkout:
                assert await checkout.call("named", 1, only=2) == [1, 2, [], 2, {}]
                assert [item async for item in checkout.stream("named_lines", count=2)] == [0, 1]

    asyncio.run(asyncio.wait_for(test(), 60))


def test_one_function_gets_arguments_by_name(own_server: Any) -> None:
    with taskfork.blocking.Client(own_server(worker="any").address) as client:
        with pytest.raises(taskfork.ArgumentsError, match="unexpected keyword argument"):
            client.invoke(1, name=2)


def test_methods_in_rust_have_no_arguments_by_name(playground: Any) -> None:
    with taskfork.blocking.Client(playground().address) as client:
        with pytest.raises(taskfork.ArgumentsError):
            client.call("echo", "text", name=1)
        assert client.call("echo", "on") == "on"


def test_a_time_limit_of_one_call(client: Any) -> None:
    client.call("pid")
    with pytest.raises(taskfork.TimedOut, match="after 0.3 seconds"):
        client.call("sleep", 20, timeout=0.3)
    with pytest.raises(taskfork.TimedOut, match="after 0.3 seconds"):
        list(client.stream("endless_lines", timeout=0.3))
    with client.checkout(timeout=40) as checkout:
        # None is no limit, and the next call has that of the checkout again.
        assert checkout.call("left", timeout=None) is None
        assert 30 < checkout.call("left") <= 40
        assert 40 < checkout.call("left", timeout=100) <= 100
        with pytest.raises(ValueError, match="a time is 0 or more"):
            checkout.call("left", timeout=-1)
        with pytest.raises(taskfork.TimedOut, match="after 0.3 seconds"):
            checkout.queue("sleep", 20, timeout=0.3).wait()


def test_a_time_limit_of_one_call_in_asyncio(own_server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(own_server().address) as client:
            assert await client.call("left", timeout=None) is None
            assert 40 < await client.call("left", timeout=100) <= 100
            with pytest.raises(taskfork.TimedOut, match="after 0.3 seconds"):
                await client.call("sleep", 20, timeout=0.3)
            async with client.checkout(timeout=40) as checkout:
                assert await checkout.call("left", timeout=None) is None
                assert 30 < await checkout.call("left") <= 40

    asyncio.run(asyncio.wait_for(test(), 60))


def test_coroutines(client: Any) -> None:
    # One after the other it would be 20 times as long.
    assert 0.2 <= client.call("gather_sleeps", 0.2, 100) < 10
    assert client.call("event_loop") == client.call("event_loop")
    with pytest.raises(taskfork.InterfaceError, match="ValueError: later") as caught:
        client.call("fail_later")
    assert "in fail_later" in (caught.value.stack or "").splitlines()[0]
    with pytest.raises(taskfork.ArgumentsError, match="missing a required argument: 'count'"):
        client.call("gather_sleeps", 1)


def test_a_coroutine_is_interrupted_at_its_deadline(own_server: Any, tmp_path: Path) -> None:
    address = own_server().address
    with taskfork.blocking.Client(address, max_workers=1, grace=20) as client:
        for method in ("sleep_for_long", "spin_in_coroutine"):
            pid = client.call("pid")
            cleaned_up = tmp_path / method
            with pytest.raises(taskfork.TimedOut, match="after 0.5 seconds while running"):
                client.call(method, str(cleaned_up), timeout=0.5)
            assert cleaned_up.exists()
            until("its end", lambda: is_gone(pid))


def test_an_asynchronous_generator_streams(client: Any) -> None:
    assert list(client.stream("numbers_later", 200)) == list(range(200))
    with client.checkout() as checkout:
        assert checkout.call("was_cleaned", "items")
        with pytest.raises(taskfork.InterfaceError, match="ItemError: an item of the stream cannot be sent"):
            list(checkout.stream("numbers_later", 3))
    with client.checkout() as checkout:
        stream = checkout.stream("numbers_later", 1_000_000)
        assert next(stream) == 0
        stream.close()
        assert checkout.call("was_cleaned", "items")
