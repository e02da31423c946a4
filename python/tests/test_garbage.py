"""Cycles of references through native objects, which the collector finds."""

from __future__ import annotations

import asyncio
import gc
import sys
import warnings
import weakref
from pathlib import Path
from typing import Any, Iterator

import pytest
from conftest import happens

import taskfork
import taskfork.blocking

ODD = Path(__file__).with_name("odd_methods.py")


@pytest.fixture
def server(start: Any) -> Iterator[Any]:
    with warnings.catch_warnings():
        # Of checkouts that are garbage.
        warnings.simplefilter("ignore", ResourceWarning)
        yield start([sys.executable, str(ODD), "ADDRESS"])


class Session:
    """A checkout whose log function is a method of this."""

    def __init__(self, client: Any) -> None:
        self.checkout = client.checkout(log=self.on_log)
        self.messages: list[Any] = []

    def on_log(self, message: Any) -> None:
        self.messages.append(message)


class Queue:
    """A call whose input is a generator of this."""

    def __init__(self, client: Any) -> None:
        self.checkout = client.checkout()
        self.call = self.checkout.queue("total", input=self.rows())

    def rows(self) -> Iterator[Any]:
        yield 1
        yield type(self).__name__


class Streamer:
    """A stream whose input is a generator of this."""

    def __init__(self, client: Any) -> None:
        self.stream = client.stream("both", input=self.rows())

    def rows(self) -> Iterator[Any]:
        while True:
            yield type(self).__name__


def are_gone(objects: list[weakref.ref[Any]]) -> bool:
    gc.collect()
    return not any(each() for each in objects)


def test_checkouts_whose_log_function_refers_to_them(server: Any) -> None:
    with taskfork.blocking.Client(server.address, max_workers=2, timeout=20) as client:
        objects = []
        # As many as there are workers, and again as many.
        for is_released in (False, False, True, True):
            session = Session(client)
            assert session.checkout.call("echo", 1) == 1
            assert session.messages
            if is_released:
                session.checkout.release()
            objects.append(weakref.ref(session))
            del session
            gc.collect()
        asyncio.run(happens("their end", lambda: are_gone(objects)))
        assert client.call("echo", 1) == 1

    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=2, timeout=20) as client:
            objects = []
            for is_released in (False, False, True, True):
                session = Session(client)
                assert await session.checkout.call("echo", 1) == 1
                if is_released:
                    session.checkout.release()
                objects.append(weakref.ref(session))
                del session
                gc.collect()
            await happens("their end", lambda: are_gone(objects))
            assert await client.call("echo", 1) == 1

    asyncio.run(asyncio.wait_for(test(), 60))


@pytest.mark.parametrize("kind", [Queue, Streamer])
def test_calls_whose_input_refers_to_them(server: Any, kind: Any) -> None:
    with taskfork.blocking.Client(server.address, max_workers=2, timeout=20) as client:
        objects = [weakref.ref(kind(client)) for _ in range(4)]
        asyncio.run(happens("their end", lambda: are_gone(objects)))
        assert client.call("echo", 1) == 1


def test_results_that_refer_to_their_calls(server: Any) -> None:
    class Holder:
        call: Any = None
        error: Any = None

    with taskfork.blocking.Client(server.address) as client, client.checkout() as checkout:
        objects = []
        for method in ("echo", "fail"):
            holder = Holder()
            holder.call = checkout.queue(method, {} if method == "echo" else "surrogate")
            try:
                holder.call.wait()["holder"] = holder
            except taskfork.Error as error:
                holder.error = error
            objects.append(weakref.ref(holder))
            del holder
        assert are_gone(objects)


def test_streams_in_asyncio_whose_input_refers_to_them(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=2, timeout=20) as client:
            objects = [weakref.ref(Streamer(client)) for _ in range(4)]
            await happens("their end", lambda: are_gone(objects))
            assert await client.call("echo", 1) == 1

    asyncio.run(asyncio.wait_for(test(), 60))


def test_what_a_checkout_logs_last_arrives_although_nobody_has_it(server: Any) -> None:
    async def test() -> None:
        messages: list[Any] = []
        async with taskfork.Client(server.address, timeout=20) as client:
            checkout = client.checkout(log=lambda message: messages.append(message))
            call = checkout.call("log", "keys")
            checkout.release()
            del checkout
            gc.collect()
            assert await call == "logged"
            assert any("it is" in line for message in messages for line in message.get("logs", ()))

    asyncio.run(asyncio.wait_for(test(), 60))


@pytest.mark.parametrize("kind", ["call", "input", "log"])
def test_a_loop_that_ends_with_calls_in_it_is_garbage(server: Any, kind: str) -> None:
    async def test() -> weakref.ref[Any]:
        client = taskfork.Client(server.address)
        if kind == "call":
            client.call("sleep", 100, timeout=None)
        elif kind == "input":

            def rows() -> Iterator[Any]:
                yield 1
                yield client

            client.call("total", input=rows(), timeout=None)
        else:
            client.checkout(log=lambda _: client).call("sleep", 100, timeout=None)
        await asyncio.sleep(0)
        return weakref.ref(asyncio.get_running_loop())

    loops = [asyncio.run(test()) for _ in range(3)]
    asyncio.run(happens("their end", lambda: are_gone(loops)))
