"""Calls that stream an input to their methods: the client in Python with workers in Python and in Rust, and the command."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import pickle
import signal
import socket
import subprocess
import threading
import traceback
import weakref
from pathlib import Path
from typing import Any, AsyncIterator, Iterator

import pytest
from conftest import TASKFORK, happens, is_gone, until
import wire

import taskfork
import taskfork.blocking
import taskfork.server
from taskfork.worker import DeadlineExceeded

WINDOW = 262_144


def run(test: Any) -> Any:
    return asyncio.run(asyncio.wait_for(test, 60))


@pytest.fixture(params=["program-unix", "program-tcp", "own-unix", "own-tcp", "rust-unix", "rust-tcp"])
def server(request: Any, python_server: Any, own_server: Any, playground: Any) -> Any:
    kind, transport = request.param.split("-")
    address = "tcp:127.0.0.1:0" if transport == "tcp" else None
    if kind != "rust":
        return {"program": python_server, "own": own_server}[kind](address=address, worker="inputs")
    return playground("--streams", address=address)


@pytest.fixture(params=["program-unix", "program-tcp", "own-unix", "own-tcp"])
def python(request: Any, python_server: Any, own_server: Any) -> Any:
    kind, transport = request.param.split("-")
    address = "tcp:127.0.0.1:0" if transport == "tcp" else None
    return {"program": python_server, "own": own_server}[kind](address=address, worker="inputs")


class Rows:
    """An iterator that counts what was taken of it."""

    def __init__(self, item: Any, count: int) -> None:
        self._item, self._count = item, count
        self.taken = 0

    def __iter__(self) -> Rows:
        return self

    def __next__(self) -> Any:
        if self.taken == self._count:
            raise StopIteration
        self.taken += 1
        return self._item


async def later(items: Any) -> AsyncIterator[Any]:
    """The items one by one, each after a turn of the event loop."""
    for item in items:
        await asyncio.sleep(0)
        yield item


class Watched:
    """Generators of numbers, and whether they were closed."""

    def __init__(self) -> None:
        self.taken = 0
        self.is_closed = False

    def plain(self) -> Iterator[int]:
        try:
            while True:
                self.taken += 1
                yield self.taken
        finally:
            self.is_closed = True

    async def asynchronous(self) -> AsyncIterator[int]:
        try:
            while True:
                self.taken += 1
                yield self.taken
        finally:
            # It may wait in the end.
            await asyncio.sleep(0.001)
            self.is_closed = True

    async def waiting(self, count: int) -> AsyncIterator[int]:
        """So many, and then it waits for ever."""
        try:
            for number in range(count):
                self.taken += 1
                yield number
            await asyncio.get_running_loop().create_future()
        finally:
            self.is_closed = True


#: Values that no client in Python sends: a map with a map as a key, and a list of 200 levels.
UNREADABLE = [b"\x81\x80\x01", b"\x91" * 200 + b"\x01"]


def test_an_item_that_cannot_be_read_is_an_error_in_its_place(python: Any) -> None:
    kind, _, place = python.address.partition(":")
    with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as peer:
        peer.connect(place if kind == "unix" else ("127.0.0.1", int(place.rpartition(":")[2])))
        peer.settimeout(30)
        decoder = wire.Decoder()

        def send(*message: Any, value: bytes = b"") -> None:
            head = wire.encode(list(message))
            # One more element than is encoded, if a value follows.
            head = bytes([head[0] + (1 if value else 0)]) + head[1:]
            peer.sendall(wire.frame(head + value))

        def receive(wanted: int) -> list[Any]:
            while True:
                while (message := decoder.next()) is None:
                    data = peer.recv(1 << 16)
                    assert data, "the worker has ended"
                    decoder.feed(data)
                if message[0] == wanted:
                    return message

        peer.sendall(wire.PREAMBLE)
        send(wire.HELLO, {"versions": [wire.VERSION], "name": "by hand"})
        send(wire.CALL, {"input": True}, "readable", [])
        receive(wire.CREDIT)
        for value in [b"\x07", *UNREADABLE, b"\xa3end"]:
            send(wire.ITEM, {"call": 1, "cost": 1000}, value=value)
        send(wire.INPUT_END, {}, 1)
        seven, *unreadable, last = receive(wire.OK)[2]
        assert (seven, last) == ("7", "'end'")
        assert len(unreadable) == len(UNREADABLE), unreadable
        assert all(text.startswith("ItemError: an item of the input") for text in unreadable), unreadable
        # The same as arguments are the error of their call, and the worker goes on.
        for number, value in enumerate(UNREADABLE, 2):
            send(wire.CALL, {}, "echo", value=b"\x91" + value)
            answer = receive(wire.ERROR)
            assert answer[1]["call"] == number and answer[2]["kind"] == "arguments", answer
        send(wire.CALL, {}, "echo", ["on"])
        assert receive(wire.OK)[2] == "on"


@pytest.mark.parametrize("value", UNREADABLE)
def test_an_item_of_a_stream_that_cannot_be_read_is_an_error_of_its_call(tmp_path: Path, value: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = wire.encode([wire.HELLO, {"version": wire.VERSION, "pid": 1, "items": True}])
        writer.write(wire.PREAMBLE + wire.frame(hello))
        decoder, calls = wire.Decoder(), 0
        while data := await reader.read(1 << 16):
            decoder.feed(data)
            while message := decoder.next():
                if message[0] != wire.CALL:
                    continue
                calls += 1
                meta = {"call": calls}
                for item in (b"\x07", value):
                    head = wire.encode([wire.ITEM, {**meta, "cost": 1000}])
                    writer.write(wire.frame(bytes([head[0] + 1]) + head[1:] + item))
                writer.write(wire.frame(wire.encode([wire.OK, meta, 5])))
        writer.close()

    async def test() -> None:
        server = await asyncio.start_unix_server(serve, tmp_path / "fake")
        async with taskfork.Client(f"unix:{tmp_path / 'fake'}", min_workers=0) as client:
            async with client.checkout() as checkout:
                stream = checkout.stream("numbers")
                assert await stream.__anext__() == 7
                with pytest.raises(taskfork.CallError, match="item"):
                    await stream.__anext__()
                # The checkout goes on.
                assert await checkout.stream("numbers").__anext__() == 7
        server.close()

    run(test())


def test_a_method_gets_all_items_in_order(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            assert await client.call("total", 1, input=range(20_000)) == sum(range(20_000)) + 1
            assert await client.call("total", 5, input=[]) == 5
            assert await client.call("total", 0, input=later(range(500))) == sum(range(500))
            # With and without rings, which are offered after 32 calls.
            for _ in range(50):
                assert await client.call("echo", "on") == "on"
            assert await client.call("total", 0, input=later(range(500))) == sum(range(500))
            async with client.checkout() as checkout:
                calls = [checkout.call("total", number, input=[1, 2]) for number in range(20)]
                assert await asyncio.gather(*calls) == list(range(3, 23))
                assert await checkout.call("total", 0, input=(number for number in (1, 2, 3))) == 6
                # It runs though it is not awaited.
                call = checkout.call("total", 0, input=later([4, 5]))
                await happens("its end", call.done)
                assert call.result() == 9

    run(test())


def test_without_asyncio_it_is_an_iterable(server: Any) -> None:
    with taskfork.blocking.Client(server.address) as client:
        assert client.call("total", 1, input=range(20_000)) == sum(range(20_000)) + 1
        assert list(client.stream("doubled", input=[1, 2, 3])) == [2, 4, 6]
        with client.checkout() as checkout:
            assert checkout.call("total", 0, input={1, 2, 3}) == 6
            queued = checkout.queue("total", 0, input=iter([4, 5]))
            assert queued.wait() == 9
            stream = checkout.stream("doubled", input=range(3_000))
            assert [next(stream), next(stream)] == [0, 2]
            assert stream.result() == 3_000
            assert checkout.call("echo", "on") == "on"


def test_an_input_and_a_stream_of_results_go_on_together(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            for items in (range(10_000), later(range(1_000))):
                stream = client.stream("doubled", input=items)
                doubled = [item async for item in stream]
                assert doubled == [2 * number for number in range(len(doubled))]
                assert await stream.result() == len(doubled) in (1_000, 10_000)
            # Each is sent back while nothing else is there.
            numbers: asyncio.Queue[int] = asyncio.Queue()

            async def queued() -> AsyncIterator[int]:
                for _ in range(50):
                    yield await numbers.get()

            async with client.checkout() as checkout:
                stream = checkout.stream("doubled", input=queued())
                for number in range(50):
                    numbers.put_nowait(number)
                    assert await stream.__anext__() == 2 * number
                assert await stream.result() == 50

    run(test())


@pytest.mark.parametrize("client_kind", ["asyncio", "blocking", "asynchronous"])
def test_items_are_taken_as_fast_as_the_worker_takes_them(server: Any, tmp_path: Path, client_kind: str) -> None:
    length = 10_000
    rows = Rows("x" * length, 200)
    # What the windows hold, an item that exceeds each of them, and one that waits to be sent.
    ahead = WINDOW // length + 3

    async def test() -> None:
        async with taskfork.Client(server.address) as client:

            async def pulled() -> AsyncIterator[Any]:
                for row in rows:
                    yield row

            items: Any = rows if client_kind == "asyncio" else pulled()
            call = client.call("wait_for", str(tmp_path / "go on"), input=items)
            await happens("the first items", lambda: rows.taken >= 10)
            # If it did not wait, it would take all of them in this time.
            await asyncio.sleep(0.2)
            assert rows.taken <= ahead
            (tmp_path / "go on").touch()
            assert await call == 200

    if client_kind != "blocking":
        return run(test())
    with taskfork.blocking.Client(server.address) as client:
        results = []
        arguments = ("wait_for", str(tmp_path / "go on"))
        thread = threading.Thread(target=lambda: results.append(client.call(*arguments, input=rows)))
        thread.start()
        until("the first items", lambda: rows.taken >= 10)
        thread.join(0.2)
        assert rows.taken <= ahead
        (tmp_path / "go on").touch()
        thread.join()
        assert results == [200]


def test_nothing_is_taken_before_the_method_begins(server: Any, tmp_path: Path) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client, client.checkout() as checkout:
            rows = Rows(1, 3)
            first = checkout.call("wait_for", str(tmp_path / "go on"), input=["x"])
            behind = checkout.call("total", 0, input=rows)
            await happens("the first call", lambda: client.stats().busy == 1)
            await asyncio.sleep(0.05)
            assert rows.taken == 0
            (tmp_path / "go on").touch()
            assert (await first, await behind) == (1, 3)

    run(test())


def test_large_items_and_memory_reach_the_method(server: Any) -> None:
    numpy = pytest.importorskip("numpy")

    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            for _ in range(3):
                shared = taskfork.BlobMut(1 << 20)
                blobs = [b"x" * (3 << 20), b"y" * 200_000, b"", shared.freeze(), bytearray(b"z" * 50_000)]
                lengths = [3 << 20, 200_000, 0, 1 << 20, 50_000]
                array = numpy.arange(100_000, dtype="f8")
                assert await client.call("lengths", input=[*blobs, array]) == [*lengths, 800_000]

    run(test())


def test_items_have_all_kinds_of_values(python: Any) -> None:
    numpy = pytest.importorskip("numpy")
    items = [None, True, -5, 2**64 - 1, 1.5, "é", b"b", [1, (2,)], {"a": {1: None}}, numpy.int32(7), numpy.arange(3, dtype="u1")]
    shown = [
        "NoneType None", "bool True", "int -5", "int 18446744073709551615", "float 1.5", "str 'é'", "bytes b'b'",
        "list [1, [2]]", "dict {'a': {1: None}}", "int 7", "bytes b'\\x00\\x01\\x02'",
    ]  # fmt: skip
    with taskfork.blocking.Client(python.address) as client:
        assert client.call("shown", input=items) == shown

        async def test() -> None:
            async with taskfork.Client(python.address) as client:
                assert await client.call("shown", input=later(items)) == shown

        run(test())


class Own(Exception):
    pass


def failing() -> Iterator[int]:
    yield 1
    raise Own("the disk is gone")


async def failing_later() -> AsyncIterator[int]:
    yield 1
    await asyncio.sleep(0)
    raise Own("the disk is gone")


def test_an_iterable_that_fails_is_the_error_of_the_call(server: Any) -> None:
    said = "the input of the call has failed: .*the disk is gone"

    async def test() -> None:
        async with taskfork.Client(server.address, reuse_after_error=True) as client:
            for items in (failing, failing_later):
                async with client.checkout() as checkout:
                    with pytest.raises(taskfork.InputError, match=said) as caught:
                        await checkout.call("total", 0, input=items())
                    assert isinstance(caught.value.__cause__, Own)
                    # Its own traceback is there.
                    text = "".join(traceback.format_exception(Own, caught.value, caught.value.__traceback__))
                    assert "in failing" in text and "Own: the disk is gone" in text
                    assert not caught.value.fatal and caught.value.may_have_run
                    copy = pickle.loads(pickle.dumps(caught.value))
                    assert type(copy) is taskfork.InputError and str(copy) == str(caught.value)
                    assert await checkout.call("echo", "on") == "on"
                    stream = checkout.stream("doubled", input=items())
                    assert await stream.__anext__() == 2
                    with pytest.raises(taskfork.InputError, match=said) as caught:
                        await stream.__anext__()
                    assert isinstance(caught.value.__cause__, Own)
                    with pytest.raises(taskfork.InputError, match=said) as caught:
                        await checkout.stream("doubled", input=items()).result()
                    assert isinstance(caught.value.__cause__, Own)
                    assert await checkout.call("echo", "on") == "on"

    run(test())
    with taskfork.blocking.Client(server.address) as client:
        with pytest.raises(taskfork.InputError, match=said) as caught:
            client.call("total", 0, input=failing())
        assert isinstance(caught.value.__cause__, Own)
        with pytest.raises(taskfork.InputError, match=said) as caught:
            list(client.stream("doubled", input=failing()))
        assert isinstance(caught.value.__cause__, Own)


def test_the_method_learns_that_the_iterable_has_failed(python: Any) -> None:
    with taskfork.blocking.Client(python.address, max_workers=1, reuse_after_error=True) as client:
        for method, behind in (("watchful", ", and then None"), ("watchful_coroutine", "")):
            with client.checkout() as checkout:
                with pytest.raises(taskfork.InputError):
                    checkout.call(method, input=failing())
                said = checkout.call("seen")
                assert said.startswith("InputFailed: ") and said.endswith(f"the disk is gone{behind}"), said
                checkout.call("watchful", input=[1, 2])
                assert checkout.call("seen") == "2 items and the end, again None"


def test_an_item_that_cannot_be_sent_is_the_error_of_the_call(server: Any) -> None:
    closed = []

    def items() -> Iterator[Any]:
        try:
            yield 1
            yield object()
        finally:
            closed.append(True)

    with taskfork.blocking.Client(server.address) as client:
        with pytest.raises(taskfork.InputError, match="item 2 cannot be sent: a object cannot be encoded") as caught:
            client.call("total", 0, input=items())
        assert caught.value.__cause__ is None
        assert closed == [True]
        with pytest.raises(taskfork.InputError, match="item 1 cannot be sent: .*64 bits"):
            client.call("total", 0, input=[2**70])
        assert client.call("echo", "on") == "on"


def test_ctrl_c_in_an_iterable_ends_the_call(server: Any) -> None:
    def items() -> Iterator[int]:
        yield 1
        os.kill(os.getpid(), signal.SIGINT)
        yield 2

    with taskfork.blocking.Client(server.address) as client:
        with pytest.raises(KeyboardInterrupt):
            client.call("total", 0, input=items())
        with pytest.raises(KeyboardInterrupt):
            list(client.stream("doubled", input=items()))
        assert client.call("echo", "on") == "on"


def test_an_early_answer_closes_the_iterable(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client, client.checkout() as checkout:
            for kind in ("plain", "asynchronous", "waiting"):
                watched = Watched()
                items = watched.waiting(3) if kind == "waiting" else getattr(watched, kind)()
                assert await checkout.call("first", 3, input=items) == (3 if kind == "waiting" else 6)
                await happens("its end", lambda: watched.is_closed)
                assert watched.taken < 3_000
            # What has come too late is no part of the next input.
            assert await checkout.call("total", 0, input=[5]) == 5

    run(test())
    with taskfork.blocking.Client(server.address) as client:
        watched = Watched()
        assert client.call("first", 3, input=watched.plain()) == 6
        assert watched.is_closed


def test_an_iterable_that_is_no_generator_is_left_open(server: Any, tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("one\ntwo\n" * 5)
    with taskfork.blocking.Client(server.address) as client, open(tmp_path / "lines") as lines:
        assert client.call("wait_for", str(tmp_path / "lines"), input=lines) == 10
        lines.seek(0)
        assert next(lines) == "one\n"


@pytest.mark.parametrize("kind", ["plain", "asynchronous", "waiting"])
def test_cancelling_a_call_closes_the_iterable(server: Any, tmp_path: Path, kind: str) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client:
            pid = await client.call("pid")
            watched = Watched()
            items = watched.waiting(3) if kind == "waiting" else getattr(watched, kind)()
            call = client.call("wait_for", str(tmp_path / "never"), input=items)
            await happens("the first items", lambda: watched.taken >= 3)
            call.cancel()
            await happens("the end of the iterable", lambda: watched.is_closed)
            with pytest.raises(asyncio.CancelledError):
                await call
            await happens("the worker's end", lambda: is_gone(pid))
            # A stream in the same way.
            watched = Watched()
            items = watched.waiting(3) if kind == "waiting" else getattr(watched, kind)()
            stream = client.stream("doubled", input=items)
            assert [await stream.__anext__() for _ in range(2)] in ([0, 2], [2, 4])
            await stream.aclose()
            await happens("the end of the iterable", lambda: watched.is_closed)
            assert await client.call("echo", "on") == "on"

    run(test())


def test_a_call_that_is_cancelled_before_its_turn_takes_nothing(server: Any, tmp_path: Path) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client, client.checkout() as checkout:
            watched = [Watched(), Watched()]
            first = checkout.call("wait_for", str(tmp_path / "go on"), input=[])
            calls = [
                checkout.call("total", 0, input=watched[0].plain()),
                checkout.call("total", 0, input=watched[1].asynchronous()),
            ]
            await asyncio.sleep(0.02)
            for call in calls:
                call.cancel()
            (tmp_path / "go on").touch()
            assert await first == 0
            assert await checkout.call("echo", "on") == "on"
            assert [each.taken for each in watched] == [0, 0]

    run(test())


@pytest.mark.parametrize("method", ["watchful", "watchful_coroutine"])
def test_a_method_learns_that_its_caller_has_gone(python: Any, method: str) -> None:
    async def test() -> None:
        async with taskfork.Client(python.address, max_workers=1) as client, client.checkout() as checkout:
            pid = await checkout.call("pid")
            watched = Watched()
            call = checkout.call(method, input=watched.waiting(3))
            await happens("the items", lambda: watched.taken == 3)
            call.cancel()
            said = await checkout.call("seen")
            assert said.startswith("InputClosed: the caller no longer waits for the call"), said
            assert await checkout.call("pid") == pid

    run(test())


def test_the_end_of_a_client_closes_the_iterable(server: Any, tmp_path: Path) -> None:
    async def test() -> None:
        watched = [Watched() for _ in range(3)]
        async with taskfork.Client(server.address, max_workers=3) as client:
            stream = client.stream("doubled", input=watched[0].waiting(1))
            assert await stream.__anext__() == 0
            call = client.call("total", 0, input=watched[1].asynchronous())
            other = client.call("wait_for", str(tmp_path / "never"), input=watched[2].plain())
            await happens("the items", lambda: all(each.taken for each in watched))
        for each in (call, other):
            with pytest.raises(taskfork.Aborted):
                await each
        await happens("the ends", lambda: all(each.is_closed for each in watched))

    run(test())


def test_a_deadline_interrupts_the_wait_for_an_item(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client:
            # The worker is there: the time of a call that comes before ends without it.
            assert await client.call("echo", "on") == "on"
            watched = Watched()
            with pytest.raises(taskfork.TimedOut, match="timed out after 0.5 seconds"):
                await client.call("total", 0, input=watched.waiting(3), timeout=0.5)
            await happens("the end of the iterable", lambda: watched.is_closed)
            assert await client.call("echo", "on") == "on"

    run(test())


@pytest.mark.parametrize("method", ["watchful", "watchful_coroutine"])
def test_a_method_that_waits_for_an_item_learns_of_its_deadline(python: Any, method: str) -> None:
    async def test() -> None:
        # If the wait went on, the worker would be killed after the grace.
        async with taskfork.Client(python.address, max_workers=1, grace=20.0, reuse_after_error=True) as client:
            pid = await client.call("pid")
            watched = Watched()
            with pytest.raises(taskfork.TimedOut, match="timed out after 0.5 seconds while running") as caught:
                await client.call(method, input=watched.waiting(3), timeout=0.5)
            assert method != "watchful" or "in watchful" in (caught.value.stack or "")
            if await client.call("pid") == pid:
                assert await client.call("seen") in ("the deadline", "cancelled")

    run(test())


def test_a_generator_gets_its_deadline_once(own_server: Any) -> None:
    async def test() -> None:
        server = own_server(worker="inputs")
        async with taskfork.Client(server.address, max_workers=1, grace=20.0) as client:
            async with client.checkout() as checkout:
                stream = checkout.stream("watchful_generator", input=Watched().waiting(2), timeout=1.0)
                items = []
                with pytest.raises(taskfork.TimedOut, match="timed out after 1 second while running"):
                    async for item in stream:
                        items.append(item)
                assert items == [0, 1, "late", "later"]

    run(test())


def test_the_signal_of_a_deadline_that_has_ended_a_wait_is_ignored(monkeypatch: Any) -> None:
    """Which of both comes first is decided by the machine, so the worker's loop is played by hand here."""

    class LateReceiver:
        def open(self) -> None:
            pass

        def take(self, waits: bool) -> None:
            """The time of the call is over."""

    def method(items: Iterator[int]) -> Iterator[str]:
        with pytest.raises(DeadlineExceeded):
            next(items)
        os.kill(os.getpid(), signal.SIGALRM)
        yield "late"
        yield "later"

    monkeypatch.setattr("taskfork._native.is_cancelled", lambda: True)
    before = signal.getsignal(signal.SIGALRM)
    try:
        worker = taskfork.server._Worker([method], None, None)
        worker.handle_signals()
        worker._pid = os.getpid()
        kind, items = worker.call("method", (), 1.0, 0, True, LateReceiver())  # type: ignore[arg-type]
        assert kind == "items"
        assert [worker.step(items, None) for _ in range(3)] == [("item", "late"), ("item", "later"), ("ok", None)]
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_worker_that_dies_closes_the_iterable(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client:
            watched = Watched()
            with pytest.raises(taskfork.WorkerDied, match="was killed by SIGABRT during a call") as caught:
                await client.call("die", input=watched.asynchronous())
            assert caught.value.may_have_run
            await happens("the end of the iterable", lambda: watched.is_closed)
            assert await client.call("echo", "on") == "on"

    run(test())


def test_wrong_uses_are_explained(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address) as client, client.checkout() as checkout:
            watched = Watched()
            with pytest.raises(taskfork.ArgumentsError, match="takes no input: make a call without one"):
                await checkout.call("echo", "x", input=watched.plain())
            with pytest.raises(taskfork.ArgumentsError, match="takes an input, which this call does not stream: .*input="):
                await checkout.call("total", 1)
            with pytest.raises(taskfork.ArgumentsError):
                await checkout.call("total", input=watched.plain())
            with pytest.raises(taskfork.ArgumentsError, match="streams items, which this call does not read"):
                await checkout.call("doubled", input=watched.plain())
            with pytest.raises(taskfork.ArgumentsError, match="streams no items"):
                await checkout.stream("total", 1, input=watched.plain()).result()
            with pytest.raises(taskfork.UnknownMethod, match="nothing"):
                await checkout.call("nothing", input=watched.plain())
            assert watched.taken == 0
            for wrong, name in ((5, "int"), ("text", "str"), (b"bytes", "bytes"), (object(), "object")):
                with pytest.raises(TypeError, match=f"input is a {name}, and no iterable of items"):
                    checkout.call("total", 1, input=wrong)  # type: ignore[arg-type]
            assert await checkout.call("echo", "on") == "on"

    run(test())
    with taskfork.blocking.Client(server.address) as client:
        with pytest.raises(TypeError, match="asynchronous iterable, which only the client for asyncio"):
            client.call("total", 0, input=later([1]))


def test_a_server_without_inputs_is_told_as_such(start: Any) -> None:
    serve = [str(TASKFORK), "serve", "--protocol", "json", "--listen", "ADDRESS"]
    program = start([*serve, "--", "sleep", "1000"], name="json")
    with taskfork.blocking.Client(program.address) as client:
        with pytest.raises(taskfork.ArgumentsError, match="programs that take no input"):
            client.call("total", 0, input=[1])


def test_the_input_has_its_place_among_the_arguments(python: Any) -> None:
    with taskfork.blocking.Client(python.address) as client, client.checkout() as checkout:
        assert checkout.call("placed", 1, 2, input=[7]) == [1, [7], 2, [], 3]
        assert checkout.call("placed", 1, 2, 3, 4, third=5, input=[7, 8]) == [1, [7, 8], 2, [3, 4], 5]
        assert checkout.call("placed", 1, second=2, input=[]) == [1, [], 2, [], 3]
        assert checkout.call("by_name", a=1, input=[2]) == [[2], {"a": 1}]
        assert checkout.call("optional", input=[3]) == [3]
        assert checkout.call("optional") == []
        with pytest.raises(taskfork.ArgumentsError, match="missing a required argument: 'second'"):
            checkout.call("placed", 1, input=[])
        with pytest.raises(taskfork.ArgumentsError, match="too many positional arguments|unexpected"):
            checkout.call("total", 1, 2, input=[])
        with pytest.raises(taskfork.ArgumentsError, match="several parameters that take an input: first and second"):
            checkout.call("two_inputs", input=[])
        assert checkout.call("echo", "on") == "on"


def test_coroutines_take_inputs(python: Any, tmp_path: Path) -> None:
    async def test() -> None:
        async with taskfork.Client(python.address) as client, client.checkout() as checkout:
            # With rings, which are offered after 32 calls, a worker that waits elsewhere must say that it sleeps.
            for _ in range(50):
                assert await checkout.call("echo", "on") == "on"
            assert await checkout.call("async_total", 1, input=range(5_000)) == sum(range(5_000)) + 1
            assert await checkout.call("async_total", 1, input=later(range(200))) == sum(range(200)) + 1
            stream = checkout.stream("async_doubled", input=later(range(200)))
            assert [item async for item in stream] == [2 * number for number in range(200)]

            async def until_ticked() -> AsyncIterator[int]:
                yield 1
                await happens("the other coroutine", (tmp_path / "ticked").exists)
                yield 2

            assert await checkout.call("ticks_meanwhile", str(tmp_path / "ticked"), input=until_ticked()) >= 20

            async def queued() -> AsyncIterator[int]:
                await asyncio.sleep(0.05)
                for number in range(3):
                    yield number

            said = await checkout.call("awaited_twice", input=queued())
            assert said.startswith("another task waits for this input, and then [") and said.endswith("2]"), said

    run(test())


def test_a_method_may_leave_its_input(python: Any) -> None:
    with taskfork.blocking.Client(python.address, reuse_after_error=True) as client, client.checkout() as checkout:
        watched = Watched()
        assert checkout.call("unread", input=watched.plain()) == "not read"
        assert watched.is_closed or watched.taken == 0
        with pytest.raises(taskfork.InterfaceError, match="ValueError: enough"):
            checkout.call("fail_after", 2, input=Watched().plain())
        assert checkout.call("keep", input=[8, 9]) == 8
        assert checkout.call("kept") == "the call of this input has ended"
        said = checkout.call("in_a_thread", input=[1])
        assert said == "the input of a call can only be used by the thread that runs its method"
        # A child that uses it ends.
        assert checkout.call("child", input=[1, 2, 3]) == [1, 2, 3]
        assert checkout.call("echo", "on") == "on"


def test_the_command_streams_to_workers_in_python(python: Any) -> None:
    def call(*words: str, lines: str) -> Any:
        command = [str(TASKFORK), "call", python.address, *words]
        done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60)
        return done.stdout, done.stderr

    assert call("total", "5", lines="1\n2\n\n3\n") == ("11\n", "")
    assert call("doubled", lines="1\n2\n") == ("2\n4\n2\n", "")
    assert call("async_total", "5", lines="1\n") == ("6\n", "")


def test_progress_of_a_call_with_an_input(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            call = client.call("total", 0, input=later(range(100)))
            assert [report async for report in call.progress()] == []
            assert await call == sum(range(100))

    run(test())


def test_iterables_run_in_the_context_of_their_caller(own_server: Any) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    def plain() -> Iterator[int]:
        yield variable.get()

    async def asynchronous() -> AsyncIterator[int]:
        yield variable.get()

    async def test() -> None:
        async with taskfork.Client(own_server(worker="inputs").address) as client:
            variable.set(7)
            calls = client.call("total", 0, input=plain()), client.call("total", 0, input=asynchronous())
            variable.set(8)
            assert await asyncio.gather(*calls) == [7, 7]

    run(test())


def test_an_iterable_may_make_calls(server: Any) -> None:
    with taskfork.blocking.Client(server.address, max_workers=2) as client:
        numbers = (client.call("total", number, input=[1]) for number in range(5))
        assert client.call("total", 0, input=numbers) == 15

    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=2) as client:

            async def numbers() -> AsyncIterator[int]:
                for number in range(5):
                    yield await client.call("total", number, input=[1])

            assert await client.call("total", 0, input=numbers()) == 15

    run(test())


def test_a_loop_that_ends_with_an_input_is_garbage(own_server: Any) -> None:
    server = own_server(worker="inputs")

    async def test() -> Any:
        client = taskfork.Client(server.address)
        watched = Watched()
        client.call("total", 0, input=watched.waiting(1))
        await happens("the first item", lambda: watched.taken == 1)
        return weakref.ref(asyncio.get_running_loop()), watched

    loop, watched = asyncio.run(asyncio.wait_for(test(), 60))
    assert watched.is_closed
    gc.collect()
    assert loop() is None


def test_many_inputs_at_once(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=3) as client:
            calls = [
                client.call("total", 0, input=(range(500) if number % 2 else later(range(500)))) for number in range(20)
            ]
            assert await asyncio.gather(*calls) == [sum(range(500))] * 20

    run(test())
