"""The client in Python against a server in Rust with all kinds of faults."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
from conftest import happens, is_gone

import taskfork
import taskfork.blocking


def run(test: Any) -> Any:
    return asyncio.run(asyncio.wait_for(test, 60))


@pytest.fixture(params=["unix", "tcp"])
def server(request: Any, playground: Any) -> Any:
    return playground(address="tcp:127.0.0.1:0" if request.param == "tcp" else None)


def test_calls_run_in_the_order_in_which_they_are_made(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address) as client, client.checkout() as checkout:
            calls = [checkout.call("echo", number) for number in range(20)]
            for number, call in reversed(list(enumerate(calls))):
                assert await call == number
            assert await checkout.invoke(1, "two") == [1, "two"]
            assert len(await checkout.call("blob", 100_000)) == 100_000

    run(test())


def test_a_surge_of_checkouts_is_served_in_order_by_few_workers(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=3) as client:
            answers = await asyncio.gather(*(client.call("echo", n) for n in range(200)))
            assert answers == list(range(200))
            pids = set(await asyncio.gather(*(client.call("pid") for _ in range(50))))
            assert len(pids) <= 3

    run(test())


def test_errors_drop_what_is_queued_and_keep_the_checkout(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client:
            async with client.checkout() as checkout:
                first = await checkout.call("pid")
                calls = [
                    checkout.call("echo", 1),
                    checkout.call("boom", "ouch"),
                    checkout.call("echo", 3),
                    checkout.call("echo", 4),
                ]
                assert await calls[0] == 1
                with pytest.raises(taskfork.InterfaceError, match="ouch"):
                    await calls[1]
                for call in calls[2:]:
                    with pytest.raises(taskfork.Dropped, match="the call of `boom` failed before"):
                        await call
                assert await checkout.call("echo", "after") == "after"
                with pytest.raises(taskfork.PanicError, match=r"panicked: no \(.*\.rs:\d+"):
                    await checkout.call("panic", "no")
            # Replaced after an error.
            assert await client.call("pid") != first
        async with taskfork.Client(
            server.address, max_workers=1, reuse_after_error=True
        ) as client:
            first = await client.call("pid")
            with pytest.raises(taskfork.CallError):
                await client.call("boom", "ouch")
            assert await client.call("pid") == first

    run(test())


@pytest.mark.parametrize(
    ("method", "args", "said"),
    [
        ("exit", [3], "exited with status 3"),
        ("abort", [], "was killed by SIGABRT"),
        ("segv", [], "was killed by SIGSEGV"),
    ],
)
def test_fatal_errors_stick(server: Any, method: str, args: list[Any], said: str) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address) as client, client.checkout() as checkout:
            behind = None
            with pytest.raises(taskfork.WorkerDied, match=said) as caught:
                call = checkout.call(method, *args)
                behind = checkout.call("echo", 1)
                await call
            assert caught.value.fatal
            for later in (behind, checkout.call("echo", 2), checkout.ready()):
                with pytest.raises(taskfork.WorkerDied) as again:
                    await later
                assert str(again.value) == str(caught.value)
            assert await client.call("echo", 3) == 3

    run(test())


def test_times_run_out(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client:
            async with client.checkout(timeout=0.2) as checkout:
                pid = await checkout.call("pid")
                with pytest.raises(taskfork.TimedOut) as caught:
                    await checkout.call("hang")
                assert str(caught.value) == "timed out after 0.2 seconds while running (timeout)"
                # There may be no time for the stack.
                assert "park" in (caught.value.stack or "") or caught.value.no_stack
                await happens("its end", lambda: is_gone(pid))
            holder = client.checkout()
            await holder.ready()
            with pytest.raises(taskfork.TimedOut, match="while waiting for a worker") as waited:
                await client.checkout(timeout=0.1).call("echo", 1)
            assert not waited.value.may_have_run
            assert client.stats().queued == 0
            holder.release()
            assert await client.call("echo", 1) == 1

    run(test())


def test_no_server_is_told_as_such(tmp_path: Any) -> None:
    async def test() -> None:
        address = f"unix:{tmp_path}/nobody"
        async with taskfork.Client(address, timeout=0.3) as client:
            with pytest.raises(taskfork.CannotConnect, match="no server answered at unix:") as caught:
                await client.call("echo", 1)
            assert isinstance(caught.value.__cause__, FileNotFoundError)

    run(test())


def test_checkouts_may_be_made_before_the_server_exists(playground: Any, tmp_path: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(f"unix:{tmp_path}/s") as client:
            early = [client.call("echo", number) for number in range(5)]
            await asyncio.sleep(0)
            await asyncio.get_running_loop().run_in_executor(None, playground)
            assert [await call for call in early] == list(range(5))

    run(test())


def test_a_cancelled_call_ends_with_its_checkout(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client:
            pids: list[int] = []

            async def work() -> None:
                async with client.checkout() as checkout:
                    pids.append(await checkout.call("pid"))
                    await checkout.call("hang")

            task = asyncio.ensure_future(work())
            while not pids:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await happens("its end", lambda: is_gone(pids[0]))
            assert await client.call("echo", 1) == 1

    run(test())


def test_a_call_cancelled_before_its_turn_is_not_run(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client:
            async with client.checkout() as checkout:
                slow = checkout.call("sleep", 0.1)
                unwanted = checkout.call("exit", 1)
                unwanted.cancel()
                await slow
                assert await checkout.call("echo", 1) == 1

    run(test())


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"call": 1}, "the answer to call 1"),
        ({}, "an answer without a number"),
    ],
)
def test_the_answer_to_another_call_breaks_the_checkout(
    tmp_path: Any, meta: dict[str, Any], said: str
) -> None:
    import wire

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = {"version": wire.VERSION, "pid": 1}
        writer.write(wire.PREAMBLE + wire.frame(wire.encode([wire.HELLO, hello])))
        decoder, calls = wire.Decoder(), 0
        while data := await reader.read(1 << 16):
            decoder.feed(data)
            while message := decoder.next():
                if message[0] == wire.CALL:
                    calls += 1
                    answer = {"call": 1} if calls == 1 else meta
                    writer.write(wire.frame(wire.encode([wire.OK, answer, 5])))
        writer.close()

    async def test() -> None:
        server = await asyncio.start_unix_server(serve, tmp_path / "fake")
        async with taskfork.Client(f"unix:{tmp_path / 'fake'}", min_workers=0) as client:
            async with client.checkout() as checkout:
                assert await checkout.call("five") == 5
                expected = f"the worker sent {said} where that to call 2 was due"
                with pytest.raises(taskfork.ProtocolError, match=expected):
                    await checkout.call("five")
        server.close()

    run(test())


def test_a_worker_that_may_be_kept_after_its_error_is_kept(tmp_path: Any) -> None:
    import wire

    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(len(connections))
        hello = {"version": wire.VERSION, "pid": 1}
        writer.write(wire.PREAMBLE + wire.frame(wire.encode([wire.HELLO, hello])))
        decoder, calls = wire.Decoder(), 0
        while data := await reader.read(1 << 16):
            decoder.feed(data)
            while message := decoder.next():
                if message[0] == wire.CALL:
                    calls += 1
                    error = {"kind": "interface", "message": "no", **message[3][0]}
                    writer.write(wire.frame(wire.encode([wire.ERROR, {"call": calls}, error])))
        writer.close()

    async def test() -> None:
        server = await asyncio.start_unix_server(serve, tmp_path / "fake")
        async with taskfork.Client(
            f"unix:{tmp_path / 'fake'}", min_workers=0, max_workers=1
        ) as client:
            for error in ({"keep": True}, {"keep": True}, {}):
                with pytest.raises(taskfork.InterfaceError, match="no"):
                    await client.call("fail", error)
            assert len(connections) == 1
            with pytest.raises(taskfork.InterfaceError, match="no"):
                await client.call("fail", {})
            assert len(connections) == 2
        server.close()

    run(test())


def test_throw_fatal_error_ends_the_call_that_runs(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            checkout = client.checkout()
            pid = await checkout.call("pid")
            call = checkout.call("hang")
            await asyncio.sleep(0.05)
            checkout.abort("the user pressed stop")
            with pytest.raises(taskfork.Aborted, match="the user pressed stop"):
                await call
            await happens("its end", lambda: is_gone(pid))

    run(test())


def test_workers_are_replaced_after_max_checkouts(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1, max_checkouts=2) as client:
            pids = [await client.call("pid") for _ in range(6)]
            assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4] == pids[5]

    run(test())


def test_a_full_queue_refuses(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1, max_queue=1) as client:
            holder = client.checkout()
            await holder.ready()
            waiting = client.call("echo", 1)
            with pytest.raises(taskfork.Overloaded, match="1 checkouts wait already"):
                await client.call("echo", 2)
            holder.release()
            assert await waiting == 1

    run(test())


def test_a_server_that_comes_back_is_found(playground: Any) -> None:
    first = playground()

    async def test() -> None:
        async with taskfork.Client(first.address) as client:
            assert await client.call("echo", 1) == 1
            first.program.send_signal(signal.SIGKILL)
            first.program.wait()
            call = client.call("echo", 2)
            await asyncio.get_running_loop().run_in_executor(None, playground)
            assert await call == 2

    run(test())


def test_an_idle_workers_death_is_nobodys_error(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, min_workers=1, max_workers=1) as client:
            for _ in range(5):
                pid = await client.call("pid")
                os.kill(pid, signal.SIGKILL)
                assert await client.call("echo", 1) == 1

    run(test())


@pytest.mark.parametrize("language", ["rust", "python"])
def test_a_server_must_serve_what_the_client_requires(
    playground: Any, python_server: Any, language: str
) -> None:
    is_typed = language == "rust"
    server = playground("--streams") if is_typed else python_server(worker="streams")

    async def test() -> None:
        async with taskfork.Client(server.address, interfaces=["Streams"]) as client:
            assert await client.call("echo", "on") == "on"
        # Workers in Python do not know the names of interfaces, and serve any.
        async with taskfork.Client(server.address, interfaces=["Streams", "Reports"]) as client:
            if not is_typed:
                assert await client.call("echo", "on") == "on"
                return
            for _ in range(2):
                calls = [client.call("echo", "on"), client.call("echo", "on")]
                for call in calls:
                    with pytest.raises(taskfork.WrongInterface, match="interface `Reports`: it serves `Streams`") as caught:
                        await call
                    assert not caught.value.may_have_run

    run(test())


def test_options_that_cannot_be(server: Any) -> None:
    async def test() -> None:
        for options, said in [
            ({"max_workers": 0}, "max_workers is 0"),
            ({"max_workers": 1, "min_workers": 2}, "max_workers is 1, which is less than min_workers, 2"),
            ({"max_checkouts": 0}, "max_checkouts is 0"),
            ({"interfaces": "Streams"}, "interfaces is a list of at most 64 names"),
            ({"interfaces": ["Streams"] * 65}, "interfaces is a list of at most 64 names"),
        ]:
            with pytest.raises(ValueError, match=said):
                taskfork.Client(server.address, **options)
        for address in ("somewhere", "tcp:host", "tcp:host:99999", "unix:"):
            with pytest.raises(ValueError, match="write (unix|tcp):"):
                taskfork.Client(address)

    run(test())


def test_arguments_that_cannot_be_encoded(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_frame=1000) as client:
            async with client.checkout() as checkout:
                with pytest.raises(taskfork.ArgumentsError, match="a object cannot be encoded"):
                    await checkout.call("echo", object())
                with pytest.raises(taskfork.ArgumentsError, match="over the limit of 1000"):
                    await checkout.call("echo", "x" * 2000)
                assert await checkout.call("echo", 1) == 1

    run(test())


def test_a_closed_client_says_so(server: Any) -> None:
    async def test() -> None:
        client = taskfork.Client(server.address, max_workers=1)
        checkout = client.checkout()
        call = checkout.call("hang")
        await asyncio.sleep(0.05)
        await client.close()
        with pytest.raises(taskfork.Aborted):
            await call
        with pytest.raises(taskfork.Aborted, match="the client is closed"):
            await client.call("echo", 1)

    run(test())


def test_without_asyncio(server: Any) -> None:
    with taskfork.blocking.Client(server.address, max_workers=2) as client:
        assert client.call("add", 2, 3) == 5
        assert client.invoke(1) == [1]
        with client.checkout() as checkout:
            checkout.ready()
            queued = [checkout.queue("echo", number) for number in range(5)]
            assert [call.wait() for call in queued] == list(range(5))
            with pytest.raises(taskfork.InterfaceError, match="ouch"):
                checkout.call("boom", "ouch")
            assert checkout.call("echo", "after") == "after"
        with pytest.raises(taskfork.WorkerDied):
            client.call("abort")
        with client.checkout(timeout=0.2) as checkout, pytest.raises(taskfork.TimedOut):
            checkout.call("hang")
        assert client.stats().queued == 0


@pytest.mark.parametrize("option", ["timeout", "grace", "connect_timeout"])
@pytest.mark.parametrize("time", [float("inf"), 1e300, 1e15, 1e10, 1e-9])
def test_times_of_every_size(server: Any, option: str, time: float) -> None:
    async def test() -> None:
        options: dict[str, Any] = {option: time}
        async with taskfork.Client(server.address, max_workers=1, **options) as client:
            limit = 0.2 if option == "connect_timeout" else time
            call = client.checkout(timeout=limit).call("echo", 5)
            try:
                assert await call == 5
            except taskfork.FatalError:
                # It may be late.
                assert time == 1e-9

    run(test())


def test_times_with_which_nothing_is_in_time(server: Any) -> None:
    async def test() -> None:
        for options in [{"timeout": 0}, {"connect_timeout": 0.0}, {"timeout": -1}, {"grace": float("nan")}]:
            with pytest.raises(ValueError, match="timeout|grace"):
                taskfork.Client(server.address, **options)

    run(test())


def test_a_client_waits_while_the_server_has_all_its_workers(python_server: Any) -> None:
    server = python_server("--max-workers", "1")

    async def test() -> None:
        first = taskfork.Client(server.address, min_workers=0, max_workers=1)
        second = taskfork.Client(
            server.address, min_workers=0, max_workers=1, connect_timeout=0.05
        )
        async with first, second:
            async with first.checkout() as held:
                await held.call("add", 1, 2)
                late = second.checkout(timeout=0.3).call("add", 2, 3)
                with pytest.raises(taskfork.CannotConnect, match="it has all of its 1 workers"):
                    await late
                waiting = second.call("add", 2, 3)
                await asyncio.sleep(0.3)
            assert await waiting == 5
            assert await first.call("add", 2, 3) == 5

    run(test())
