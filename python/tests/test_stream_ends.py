"""How the iteration of a stream ends that others close, or of which they ask the result."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any, AsyncIterator, Iterator

import pytest
from conftest import happens, until

import taskfork
import taskfork.blocking

ODD = Path(__file__).with_name("odd_methods.py")


@pytest.fixture
def server(start: Any) -> Any:
    return start([sys.executable, str(ODD), "ADDRESS"])


async def some() -> AsyncIterator[int]:
    """Items that never end."""
    yield 1
    yield 2
    await asyncio.Event().wait()


async def read(stream: Any, items: list[Any]) -> str:
    try:
        async for item in stream:
            items.append(item)
    except (taskfork.Aborted, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "complete"


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("client", "Aborted: the client is closed"),
        ("aclose", "Aborted: the stream was closed"),
        ("result", "RuntimeError: the result of this stream was asked for before its last item"),
    ],
)
def test_a_stream_that_others_end_is_not_complete(server: Any, end: str, said: str) -> None:
    async def test() -> None:
        client = taskfork.Client(server.address, timeout=50)
        stream, items = client.stream("both", input=some()), list[Any]()
        reading = asyncio.ensure_future(read(stream, items))
        await happens("two items", lambda: items == [1, 2])
        other = asyncio.ensure_future(stream.result()) if end == "result" else None
        await asyncio.sleep(0)
        await (client.close() if end == "client" else stream.aclose())
        assert (await reading).startswith(said)
        # Whoever was not waiting meanwhile learns it too.
        assert (await read(stream, items)).startswith(said)
        if other is not None:
            with pytest.raises(taskfork.Aborted):
                await other
        await client.close()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_stream_that_is_complete_remains_so(server: Any) -> None:
    async def test() -> None:
        client = taskfork.Client(server.address, timeout=50)
        stream, items = client.stream("both", input=[1, 2]), list[Any]()
        assert await read(stream, items) == "complete"
        await client.close()
        assert await read(stream, items) == "complete"
        assert items == [1, 2]

    asyncio.run(asyncio.wait_for(test(), 60))


class Slow:
    """Items that never end, until it is told."""

    def __init__(self) -> None:
        self.is_asked, self.go_on = threading.Event(), threading.Event()

    def rows(self) -> Iterator[int]:
        yield 1
        # The thread that reads the stream is here.
        self.is_asked.set()
        self.go_on.wait(50)
        yield 2


def test_a_stream_of_a_blocking_client_that_is_closed_is_not_complete(server: Any) -> None:
    client = taskfork.blocking.Client(server.address, timeout=50)
    slow = Slow()
    stream, items, said = client.stream("both", input=slow.rows()), list[Any](), list[str]()

    def reads() -> None:
        try:
            for item in stream:
                items.append(item)
            said.append("complete")
        except taskfork.Aborted as error:
            said.append(str(error))

    thread = threading.Thread(target=reads)
    thread.start()
    assert slow.is_asked.wait(50)
    closing = threading.Thread(target=client.close)
    closing.start()
    # Its thread waits for the input meanwhile.
    until("the end", lambda: stream._items.ending is not None)
    slow.go_on.set()
    thread.join(50)
    closing.join(50)
    assert said == ["the client is closed"]


def test_a_result_that_is_asked_for_while_another_thread_reads(server: Any) -> None:
    with taskfork.blocking.Client(server.address, timeout=50) as client:
        slow = Slow()
        stream, items = client.stream("both", input=slow.rows()), list[Any]()
        thread = threading.Thread(target=lambda: items.extend(stream))
        thread.start()
        assert slow.is_asked.wait(50)
        with pytest.raises(RuntimeError, match="another thread waits for this object"):
            stream.result()
        slow.go_on.set()
        thread.join(50)
        # It has disturbed nothing.
        assert items == [1, 2]
        assert stream.result() is None
