"""Calls that stream, and reports of progress: the client in Python with workers in Python and in Rust."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any, AsyncIterator, Callable

import pytest
from conftest import TASKFORK, happens, is_gone
import wire

import taskfork
import taskfork.blocking

WINDOW = 262_144


def run(test: Any) -> Any:
    return asyncio.run(asyncio.wait_for(test, 60))


@pytest.fixture(params=["program-unix", "program-tcp", "own-unix", "own-tcp", "rust-unix", "rust-tcp"])
def server(request: Any, python_server: Any, own_server: Any, playground: Any) -> Any:
    kind, transport = request.param.split("-")
    address = "tcp:127.0.0.1:0" if transport == "tcp" else None
    if kind != "rust":
        return {"program": python_server, "own": own_server}[kind](address=address, worker="streams")
    return playground("--streams", address=address)


@pytest.fixture(params=["program-unix", "program-tcp", "own-unix", "own-tcp"])
def python(request: Any, python_server: Any, own_server: Any) -> Any:
    kind, transport = request.param.split("-")
    address = "tcp:127.0.0.1:0" if transport == "tcp" else None
    return {"program": python_server, "own": own_server}[kind](address=address, worker="streams")


def test_the_command_finds_out_that_a_method_streams(python: Any) -> None:
    words = [str(TASKFORK), "call", python.address, "numbers", "3"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("0\n1\n2\n3\n", "")


def test_items_arrive_in_order_and_the_result_behind_them(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            stream = client.stream("numbers", 20_000)
            assert [item async for item in stream] == list(range(20_000))
            assert [item async for item in stream] == []
            assert await stream.result() == 20_000
            assert await stream.result() == 20_000
            async with client.checkout() as checkout:
                assert await checkout.stream("numbers", 0).result() == 0
                # Items that nobody has read are discarded.
                assert await checkout.stream("numbers", 20_000).result() == 20_000
                some = checkout.stream("numbers", 5_000)
                assert [await some.__anext__(), await some.__anext__()] == [0, 1]
                assert await some.result() == 5_000

    run(test())


def test_without_asyncio_it_is_an_iterator(server: Any) -> None:
    with taskfork.blocking.Client(server.address) as client:
        stream = client.stream("numbers", 500)
        assert list(stream) == list(range(500))
        assert list(stream) == []
        assert stream.result() == 500
        with client.checkout() as checkout:
            read = []
            with pytest.raises(taskfork.InterfaceError, match="failed"):
                for item in checkout.stream("two_and_then", "fail"):
                    read.append(item)
            assert read == [1, 2]
            assert checkout.stream("numbers", 5_000).result() == 5_000
            with checkout.stream("endless") as endless:
                assert next(endless) == 0
            for item in checkout.stream("endless"):
                if item == 3:
                    break
            assert checkout.call("echo", "on") == "on"
            endless.close()
        with client.stream("endless") as endless:
            assert next(endless) == 0
        assert client.call("echo", "on") == "on"


def test_a_worker_that_is_ahead_of_its_reader_waits(python: Any, tmp_path: Path) -> None:
    length = 10_000
    file = tmp_path / "sent"
    # What the windows hold, an item that exceeds each of them, and one on its way.
    ahead = WINDOW // length + 3

    def sent() -> int:
        return int(file.read_text() or 0) if file.exists() else 0

    async def test() -> None:
        async with taskfork.Client(python.address, max_workers=1) as client:
            texts = client.stream("texts", length, 200, str(file))
            await happens("the first items", lambda: sent() >= WINDOW // length)
            # If it did not wait, it would send all of them in this time.
            await asyncio.sleep(0.2)
            assert sent() <= ahead
            for _ in range(100):
                assert len(await texts.__anext__()) == length
            await happens("more items", lambda: sent() >= 100 + WINDOW // length - 2 * (WINDOW // 2 // length))
            await asyncio.sleep(0.1)
            assert sent() <= 100 + ahead
            assert [len(text) async for text in texts] == [length] * 100

    run(test())


def test_large_items_and_blobs_pass(server: Any) -> None:
    # Longer than the window, long enough to be memory, short, and empty.
    lengths = [3 << 20, 200_000, 10, 0, 1 << 20]

    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            for _ in range(3):
                read = [len(memoryview(item)) async for item in client.stream("blobs", lengths)]
                assert read == lengths

    run(test())


@pytest.mark.parametrize("fault", ["fail", "abort", "hang"])
def test_a_failure_comes_behind_the_items_before_it(server: Any, fault: str) -> None:
    expected, said = {
        "fail": (taskfork.InterfaceError, "failed"),
        "abort": (taskfork.WorkerDied, "was killed by SIGABRT during a call"),
        "hang": (taskfork.TimedOut, "while running"),
    }[fault]

    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client:
            # One that hangs still has time to start, and to send its items.
            async with client.checkout(timeout=2 if fault == "hang" else 30) as checkout:
                stream = checkout.stream("two_and_then", fault)
                behind = checkout.stream("numbers", 3)
                items = []
                with pytest.raises(expected, match=said) as caught:
                    async for item in stream:
                        items.append(item)
                assert items == [1, 2]
                assert caught.value.may_have_run
                if str(caught.value).startswith("ValueError"):
                    # The traceback begins in the generator.
                    assert "in two_and_then" in (caught.value.stack or "").splitlines()[0]
                # The error is raised once by the iterator, and always by the result.
                assert [item async for item in stream] == []
                with pytest.raises(expected, match=said):
                    await stream.result()
                with pytest.raises(taskfork.Dropped if fault == "fail" else expected):
                    await behind.result()
            assert await client.call("echo", "on") == "on"

    run(test())


def test_a_stream_that_nobody_reads_on_stops_its_worker(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client:
            async with client.checkout() as checkout:
                pid = await checkout.call("pid")
                # Each of them ends the call, and the worker remains.
                async with checkout.stream("endless") as stream:
                    assert await stream.__anext__() == 0
                with pytest.raises(taskfork.Aborted, match="the stream was closed"):
                    await stream.__anext__()
                assert 0 < await checkout.call("sent") < 100_000
                stream = checkout.stream("endless")
                assert await stream.__anext__() == 0
                await stream.aclose()
                assert 0 < await checkout.call("sent") < 100_000
                async for item in checkout.stream("endless"):
                    if item == 1_000:
                        break
                assert 1_000 < await checkout.call("sent") < 100_000
                assert await checkout.call("pid") == pid
            # This one is alone in its checkout.
            async for _ in client.stream("endless"):
                break
            await happens("the worker's end", lambda: is_gone(pid))
            assert await client.call("pid") != pid

    run(test())


def test_a_stream_taken_back_before_its_turn_is_not_run(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client:
            async with client.checkout() as checkout:
                first = checkout.stream("endless")
                assert await first.__anext__() == 0
                unwanted = checkout.stream("two_and_then", "abort")
                await unwanted.aclose()
                await first.aclose()
                assert await checkout.call("echo", "on") == "on"

    run(test())


def test_a_wait_for_an_item_that_is_cancelled_loses_none(server: Any, tmp_path: Path) -> None:
    file = tmp_path / "go on"

    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            stream = client.stream("steps", str(file))
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(stream.__anext__(), 0.02)
            file.touch()
            assert [item async for item in stream] == [2]

    run(test())


def test_many_streams_and_calls_at_once(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=3) as client:

            async def count(number: int) -> tuple[int, str]:
                async with client.checkout() as checkout:
                    stream, behind = checkout.stream("numbers", number), checkout.call("echo", "behind")
                    read = [item async for item in stream]
                    return len(read), await behind

            counts = await asyncio.gather(*(count(number * 300) for number in range(20)))
            assert counts == [(number * 300, "behind") for number in range(20)]

    run(test())


def test_wrong_uses_are_explained(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address) as client, client.checkout() as checkout:
            with pytest.raises(taskfork.ArgumentsError, match="streams no items: make a call, and no stream"):
                await checkout.stream("echo", "x").result()
            with pytest.raises(taskfork.ArgumentsError, match="make a stream, and no call"):
                await checkout.call("numbers", 3)
            assert await checkout.call("echo", "on") == "on"

    run(test())


def test_a_json_client_and_a_json_program_do_not_stream(start: Any, python_server: Any) -> None:
    server = python_server(worker="streams")
    call = [str(TASKFORK), "call", "--protocol", "json", server.address, "numbers", "3"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode != 0, done.stdout
    assert "clients that speak JSON cannot" in done.stderr or "without streams" in done.stderr, done.stderr

    serve = [str(TASKFORK), "serve", "--protocol", "json", "--listen", "ADDRESS"]
    program = start([*serve, "--", "sleep", "1000"], name="json")

    async def test() -> None:
        async with taskfork.Client(program.address) as client:
            with pytest.raises(taskfork.ArgumentsError, match="programs that stream no items"):
                await client.stream("numbers", 3).result()

    run(test())


def test_an_item_that_cannot_be_sent_is_an_error_in_the_generator(python: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(python.address) as client:
            stream = client.stream("unsendable")
            assert [item if isinstance(item, int) else len(item) async for item in stream] == [7, 2 << 20, 8]
            assert "object cannot be encoded" in await stream.result()
            with pytest.raises(taskfork.InterfaceError, match="an item of the stream cannot be sent: a object"):
                await client.stream("unsendable_and_nothing_else").result()
        async with taskfork.Client(python.address, max_frame=1 << 20) as client:
            stream = client.stream("unsendable")
            # A worker knows the limit of its client.
            assert [item async for item in stream] == [7, 8]
            assert "over the limit" in await stream.result()

    run(test())


def test_a_generator_learns_how_it_ends(python: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(python.address, max_workers=1, grace=20.0) as client:
            async with client.checkout(timeout=None) as checkout:
                async for _ in checkout.stream("watchful"):
                    break
                assert await checkout.call("seen") == "the end"
            async with client.checkout(timeout=1.0) as checkout:
                stream = checkout.stream("watchful")
                with pytest.raises(taskfork.TimedOut, match="timed out after 1 second while running"):
                    async for item in stream:
                        last = item
                assert last == b"last"
            assert await client.call("seen") in ("the deadline", "")

    run(test())


def test_generators_stream_without_an_annotation(python: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(python.address) as client:
            for method in ("plain", "wrapped"):
                assert [item async for item in client.stream(method, 3)] == [0, 1, 2]

    run(test())


def test_iterators_stream_if_the_annotation_says_so(python: Any, tmp_path: Path) -> None:
    (tmp_path / "words").write_text("one\ntwo\n")

    async def test() -> None:
        async with taskfork.Client(python.address) as client:
            stream = client.stream("lines", str(tmp_path / "words"))
            assert [line async for line in stream] == ["one\n", "two\n"]
            assert await stream.result() is None
            assert [part async for part in client.stream("parts")] == [0, 1, 2]

    run(test())


def test_a_child_that_streams_sends_nothing(python: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(python.address, max_workers=1) as client:
            pid = await client.call("pid")
            assert [item async for item in client.stream("child")] == [pid, pid]
            assert await client.call("pid") == pid

    run(test())


def test_progress_reaches_the_caller_and_the_status(server: Any, tmp_path: Path) -> None:
    file = tmp_path / "go on"

    # A server at TCP tells of itself only at a status socket.
    shows_status = server.address.startswith("unix:")

    def status() -> Any:
        said = subprocess.check_output([str(TASKFORK), "status", "--json", server.address], text=True)
        return [worker.get("progress") for worker in json.loads(said)["workers"]]

    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client:
            stream = client.stream("steps", str(file))
            reports = stream.progress()
            report = await reports.__anext__()
            assert report == taskfork.Progress(1, 3, "steps")
            assert (str(report), report.fraction) == ("1 of 3 steps", 1 / 3)
            assert reports.latest == stream.progress().latest == report
            if shows_status:
                assert {"done": 1, "total": 3, "what": "steps"} in status()
                shown = subprocess.check_output([str(TASKFORK), "status", server.address], text=True)
                assert "1 of 3 steps" in shown
            file.touch()
            assert [item async for item in stream] == [2]
            assert [report async for report in reports] == []
            assert await client.call("echo", "on") == "on"
            assert not shows_status or status() == [None]

    run(test())


def test_a_caller_gets_the_latest_report_and_no_more_than_20_a_second(python: Any, tmp_path: Path) -> None:
    file = tmp_path / "go on"
    last = taskfork.Progress(20_000, None, "é" * 32)

    async def test() -> None:
        loop = asyncio.get_running_loop()
        async with taskfork.Client(python.address) as client:
            begun = loop.time()
            call = client.call("many_reports", 20_000, str(file))
            reports = []
            async for report in call.progress():
                reports.append(report)
                if report.total is None:
                    file.touch()
            assert await call == "done"
            assert 1 <= len(reports) <= (loop.time() - begun) / 0.05 + 1
            assert [report.done for report in reports] == sorted(report.done for report in reports)
            assert reports[-1] == last
            with pytest.raises(taskfork.InterfaceError, match="ValueError: progress is counted in integers"):
                await client.call("wrong_report")

    run(test())


def test_progress_without_asyncio(python: Any, tmp_path: Path) -> None:
    file = tmp_path / "go on"
    with taskfork.blocking.Client(python.address) as client, client.checkout() as checkout:
        call = checkout.queue("many_reports", 10, str(file))
        reports = call.progress()
        while (report := next(reports)).total is not None:
            pass
        assert reports.latest == report
        file.touch()
        assert call.wait() == "done"
        assert list(reports) == []
        file.unlink()
        stream = checkout.stream("steps", str(file))
        assert next(stream.progress()) == taskfork.Progress(1, 3, "steps")
        file.touch()
        assert list(stream) == [2]


Answer = Callable[[asyncio.StreamWriter, Any], None]


@contextlib.asynccontextmanager
async def by_hand(path: Path, answer: Answer, **hello: Any) -> AsyncIterator[list[Any]]:
    """A server whose worker is played by hand: ``answer`` gets each message but the hello. Gives the messages."""
    received: list[Any] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeting = {"version": wire.VERSION, "pid": 1, **hello}
        writer.write(wire.PREAMBLE + wire.frame(wire.encode([wire.HELLO, greeting])))
        decoder = wire.Decoder()
        while data := await reader.read(1 << 16):
            decoder.feed(data)
            while message := decoder.next():
                if message[0] != wire.HELLO:
                    received.append(message)
                    answer(writer, message)
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield received
    finally:
        server.close()


def send(writer: asyncio.StreamWriter, *message: Any) -> None:
    writer.write(wire.frame(wire.encode(list(message))))


def test_a_server_without_streams_is_told_as_such(tmp_path: Path) -> None:
    def answer(writer: asyncio.StreamWriter, message: Any) -> None:
        if message[0] == wire.CALL:
            assert "items" not in message[1]
            send(writer, wire.OK, {"call": 1}, 5)

    async def test() -> None:
        async with by_hand(tmp_path / "fake", answer):
            async with taskfork.Client(f"unix:{tmp_path / 'fake'}", min_workers=0) as client:
                async with client.checkout() as checkout:
                    for _ in range(2):
                        stream = checkout.stream("numbers", 3)
                        with pytest.raises(taskfork.ArgumentsError, match="without streams, or is older") as caught:
                            await stream.__anext__()
                        assert not caught.value.may_have_run
                    assert await checkout.call("five") == 5

    run(test())


@pytest.mark.parametrize(
    "meta",
    [
        {"call": 1},
        {"call": 1, "cost": 260},
        {"call": 1, "cost": True},
        {"call": 1, "cost": "500"},
        {"call": 2, "cost": 500},
        {"cost": 500},
    ],
)
def test_items_that_break_the_protocol(tmp_path: Path, meta: dict[str, Any]) -> None:
    def answer(writer: asyncio.StreamWriter, message: Any) -> None:
        if message[0] == wire.CALL:
            assert message[1]["items"] == WINDOW
            send(writer, wire.ITEM, {"call": 1, "cost": 500}, "good")
            send(writer, wire.ITEM, meta, "bad")

    async def test() -> None:
        async with by_hand(tmp_path / "fake", answer, items=True):
            async with taskfork.Client(f"unix:{tmp_path / 'fake'}", min_workers=0) as client:
                stream = client.stream("numbers")
                assert await stream.__anext__() == "good"
                with pytest.raises(taskfork.ProtocolError, match="protocol broken: "):
                    await stream.__anext__()

    run(test())


def test_an_item_that_nobody_asked_for(tmp_path: Path) -> None:
    def answer(writer: asyncio.StreamWriter, message: Any) -> None:
        if message[0] == wire.CALL:
            send(writer, wire.ITEM, {"call": 1, "cost": 500}, "unwanted")

    async def test() -> None:
        async with by_hand(tmp_path / "fake", answer, items=True):
            async with taskfork.Client(f"unix:{tmp_path / 'fake'}", min_workers=0) as client:
                with pytest.raises(taskfork.ProtocolError, match="an item that no call asked for"):
                    await client.call("numbers")

    run(test())


def test_credit_follows_the_reader_and_more_than_it_is_a_violation(tmp_path: Path) -> None:
    def answer(writer: asyncio.StreamWriter, message: Any) -> None:
        if message[0] == wire.CALL:
            for number in range(2):
                send(writer, wire.ITEM, {"call": 1, "cost": WINDOW - 1}, number)
        elif message[0] == wire.CREDIT and len(received) == 2:
            # Both items were taken: 2 more than was given may be used once, and then nothing more.
            send(writer, wire.ITEM, {"call": 1, "cost": 1 << 62}, 2)
        elif message[0] == wire.CREDIT:
            send(writer, wire.ITEM, {"call": 1, "cost": 500}, 3)
            send(writer, wire.ITEM, {"call": 1, "cost": 1 << 63}, 4)
            send(writer, wire.ITEM, {"call": 1, "cost": 500}, 5)

    received: list[Any] = []

    async def test() -> None:
        nonlocal received
        async with by_hand(tmp_path / "fake", answer, items=True) as received:
            async with taskfork.Client(f"unix:{tmp_path / 'fake'}", min_workers=0) as client:
                stream = client.stream("numbers")
                assert await stream.__anext__() == 0
                await happens("credit", lambda: len(received) == 2)
                assert received[1] == [wire.CREDIT, {}, 1, 2 * WINDOW - 1]
                assert [await stream.__anext__(), await stream.__anext__()] == [1, 2]
                read = []
                with pytest.raises(taskfork.ProtocolError, match="an item without credit"):
                    async for item in stream:
                        read.append(item)
                assert read == [3, 4]

    run(test())


def test_a_cancelled_stream_is_told_and_what_comes_meanwhile_is_discarded(tmp_path: Path) -> None:
    def answer(writer: asyncio.StreamWriter, message: Any) -> None:
        calls = sum(1 for each in received if each[0] == wire.CALL)
        if message[0] == wire.CALL and calls == 1:
            send(writer, wire.ITEM, {"call": 1, "cost": 500}, 0)
        elif message[0] == wire.CANCEL:
            for number in range(1, 4):
                send(writer, wire.ITEM, {"call": 1, "cost": 100_000}, number)
            send(writer, wire.OK, {"call": 1}, "unwanted")
        elif message[0] == wire.CALL:
            send(writer, wire.OK, {"call": 2}, "on")

    received: list[Any] = []

    async def test() -> None:
        nonlocal received
        async with by_hand(tmp_path / "fake", answer, items=True) as received:
            async with taskfork.Client(f"unix:{tmp_path / 'fake'}", min_workers=0) as client:
                async with client.checkout() as checkout:
                    stream = checkout.stream("numbers")
                    assert await stream.__anext__() == 0
                    behind = checkout.call("echo")
                    await stream.aclose()
                    assert await behind == "on"
                    # Nothing but the cancellation comes between the two calls.
                    assert [message[0] for message in received] == [wire.CALL, wire.CANCEL, wire.CALL]
                    assert received[1] == [wire.CANCEL, {}, 1]
                    with pytest.raises(taskfork.Aborted, match="the stream was closed"):
                        await stream.__anext__()

    run(test())


def test_a_stream_that_has_begun_is_not_repeated(tmp_path: Path) -> None:
    connections: list[Any] = []

    def answer(writer: asyncio.StreamWriter, message: Any) -> None:
        connections.append(writer.transport)
        send(writer, wire.ITEM, {"call": 1, "cost": WINDOW}, "first")
        # Credit remains unread.
        connections[-1].pause_reading()

    async def test() -> None:
        async with by_hand(tmp_path / "fake", answer, items=True):
            async with taskfork.Client(f"unix:{tmp_path / 'fake'}", min_workers=0) as client:
                stream = client.stream("numbers")
                assert await stream.__anext__() == "first"
                # It ends without a notice.
                connections[0].abort()
                with pytest.raises(taskfork.WorkerDied) as caught:
                    await stream.__anext__()
                assert caught.value.may_have_run
        assert len(connections) == 1

    run(test())


def test_reports_that_cannot_be_read_are_ignored(tmp_path: Path) -> None:
    def answer(writer: asyncio.StreamWriter, message: Any) -> None:
        if message[0] == wire.CALL:
            wrong = [None, 5, [], [1, 2], [-1, 2, ""], [1, -2, ""], [1, 2, 3], [True, 2, ""]]
            for report in [*wrong[:4], [1, 2, "x" * 100], *wrong[4:]]:
                send(writer, wire.TELEMETRY, {"progress": report})
            send(writer, wire.OK, {"call": 1}, 5)

    async def test() -> None:
        async with by_hand(tmp_path / "fake", answer):
            async with taskfork.Client(f"unix:{tmp_path / 'fake'}", min_workers=0) as client:
                call = client.call("five")
                reports = call.progress()
                assert await call == 5
                assert reports.latest == taskfork.Progress(1, 2, "x" * 64)

    run(test())
