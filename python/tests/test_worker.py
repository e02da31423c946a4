"""Workers in Python, called from Python through the server in Rust."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from conftest import WORKER, happens, is_gone, until

import taskfork


def run(test: Any) -> Any:
    return asyncio.run(asyncio.wait_for(test, 60))


@pytest.fixture(params=["unix", "tcp"])
def server(request: Any, python_server: Any) -> Any:
    return python_server(address="tcp:127.0.0.1:0" if request.param == "tcp" else None)


def test_values_there_and_back(server: Any) -> None:
    values = [
        None, True, 0, -1, 2**64 - 1, -(2**63), 1.5, "é😀", b"\0\xff", [1, [2]], {"a": {"b": None}},
        "x" * 300_000, b"x" * 300_000,
    ]  # fmt: skip

    async def test() -> None:
        async with taskfork.Client(server.address) as client, client.checkout() as checkout:
            for value in values:
                assert await checkout.call("echo", value) == value
            assert await checkout.call("buffer", 5) == b"xxxxx"

    run(test())


def test_errors_have_their_causes_and_their_traceback(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address) as client, client.checkout() as checkout:
            with pytest.raises(taskfork.InterfaceError) as caught:
                await checkout.call("boom", "no")
            assert str(caught.value) == "ValueError: no"
            assert caught.value.causes == ["KeyError: 'key'"]
            with pytest.raises(taskfork.InterfaceError, match="ValueError: 100") as long:
                await checkout.call("chain", 100)
            assert long.value.causes[0] == "ValueError: 99" and len(long.value.causes) == 65
            assert long.value.causes[-1] == "36 more causes are left out"
            with pytest.raises(taskfork.InterfaceError, match="ValueError: 0") as endless:
                await checkout.call("cycle")
            assert endless.value.causes == ["ValueError: 1"]
            assert "in boom" in (caught.value.stack or "")
            # The checkout is still good.
            assert await checkout.call("add", 2, 3) == 5
            with pytest.raises(taskfork.UnknownMethod, match="unknown method `ad`: there is add"):
                await checkout.call("ad")
            with pytest.raises(taskfork.ArgumentsError, match="missing a required argument: 'b'"):
                await checkout.call("add", 1)
            with pytest.raises(taskfork.ResultError, match="object cannot be encoded"):
                await checkout.call("unencodable")
            with pytest.raises(taskfork.UnknownMethod, match="must name a method"):
                await checkout.invoke(1)

    run(test())


def test_logs_arrive_as_they_are_wanted(server: Any) -> None:
    async def test() -> None:
        said: list[dict[str, Any]] = []
        async with taskfork.Client(server.address) as client:
            async with client.checkout(log=said.append) as checkout:
                assert await checkout.call("log") == "logged"
                await checkout.call("chatter")
            assert await client.call("log") == "logged"
        lines = [line[1:] for message in said for line in message.get("logs", [])]
        timers = [timer for message in said for timer in message.get("timers", [])]
        data = [message["data"] for message in said if message.get("data")]
        assert [30, "app: about to compute"] in lines
        assert [20, "odd", {"n": 1}] in lines
        assert [40, "app: not unless wanted"] in lines
        assert [-5, "below"] in lines
        assert [1000, "chatty"] in lines
        assert [timer[0] for timer in timers] == ["computing", "instant"]
        assert all(timer[2] - timer[1] >= 1e-6 for timer in timers)
        assert data == [{"k": "v"}]
        assert any(line[0] == 20 and "cut: " in line[1] for line in lines)

    run(test())


def test_the_deadline_is_an_exception(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, grace=2.0) as client:
            async with client.checkout(timeout=0.2) as checkout:
                with pytest.raises(taskfork.InterfaceError, match="the call's time is over"):
                    await checkout.call("sleep", 20)
                left = await checkout.call("left")
                assert 0 < left <= 0.2
                with pytest.raises(taskfork.InterfaceError, match="interrupted, and cleaned up"):
                    await checkout.call("clean_up_late", 20)
            async with client.checkout(timeout=None) as checkout:
                assert await checkout.call("left") is None

    run(test())


def test_one_that_hangs_is_killed_and_says_where(python_server: Any) -> None:
    server = python_server()

    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            async with client.checkout(timeout=0.3) as checkout:
                pid = await checkout.call("pid")
                with pytest.raises(taskfork.TimedOut) as caught:
                    await checkout.call("hang")
                assert str(caught.value) == "timed out after 0.3 seconds while running"
                await happens("its end", lambda: is_gone(pid))
                with pytest.raises(taskfork.TimedOut):
                    await checkout.call("add", 1, 1)
            assert await client.call("add", 1, 1) == 2

    run(test())


@pytest.mark.parametrize(
    ("method", "args", "said"),
    [
        ("exit_now", [7], "exited with status 7 during a call"),
        ("segv", [], "was killed by SIGSEGV during a call"),
    ],
)
def test_deaths_are_told(server: Any, method: str, args: list[Any], said: str) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            with pytest.raises(taskfork.WorkerDied, match=said) as caught:
                await client.call(method, *args)
            if method == "segv":
                assert "about to crash" in (caught.value.stderr or "")
                # Where it was, by faulthandler.
                assert "in segv" in (caught.value.stderr or "")
            assert caught.value.may_have_run
            assert await client.call("add", 1, 1) == 2

    run(test())


def test_a_class_and_its_setup_that_fails_once(python_server: Any) -> None:
    server = python_server(worker="object")

    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client:
            async with client.checkout() as checkout:
                with pytest.raises(taskfork.SetupError, match="setup exception: OSError: no licence"):
                    await checkout.call("next")
                assert await checkout.call("next") == 41
                assert await checkout.call("next") == 42

    run(test())


def test_one_function_for_every_call(python_server: Any) -> None:
    server = python_server(worker="any")

    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            assert await client.call("method", 1) == ["method", 1]
            assert await client.invoke(1, 2) == [None, 1, 2]

    run(test())


def test_checkout_done_runs_after_each_checkout(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, min_workers=0, max_workers=1) as client:
            for count in range(3):
                assert await client.call("checkouts") == count

    run(test())


def test_a_child_that_returns_answers_nothing(server: Any) -> None:
    async def test() -> None:
        said: list[dict[str, Any]] = []
        async with taskfork.Client(server.address, max_workers=1) as client:
            worker = await client.call("return_twice")
            for number in range(20):
                assert await client.call("echo", number) == number
            for what, status in (("returns", 70), ("raises", 70), ("exits", 9)):
                async with client.checkout(log=said.append) as checkout:
                    assert await checkout.call("status_of_child", what) == status
                    assert await checkout.call("echo", what) == what
            assert await client.call("pid") == worker
        assert "said by the child" not in str(said)

    run(test())


def test_a_death_is_told_while_a_child_holds_the_connection(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client:
            async with client.checkout(timeout=None) as checkout:
                with pytest.raises(taskfork.WorkerDied, match="was killed by SIGKILL during a call"):
                    await checkout.call("crash_with_holder")
            assert await client.call("add", 1, 1) == 2

    run(test())


def test_an_alarm_that_kills_is_a_time_out(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, grace=20.0) as client:
            async with client.checkout(timeout=0.2) as checkout:
                with pytest.raises(taskfork.TimedOut, match="while running"):
                    await checkout.call("reset_alarm")

    run(test())


def test_another_program_that_is_executed_cannot_answer(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            async with client.checkout(timeout=0.2) as checkout:
                with pytest.raises(taskfork.TimedOut, match="while running"):
                    await checkout.call("execute")
            async with client.checkout(timeout=None) as checkout:
                with pytest.raises(taskfork.WorkerDied, match="exited with status 76") as caught:
                    await checkout.call("execute")
            assert "it has closed its connection" in (caught.value.stderr or "")

    run(test())


def test_one_that_dies_between_calls_is_replaced_unseen(python_server: Any) -> None:
    import os
    import signal

    server = python_server("--spare-workers", "1")

    async def test() -> None:
        async with taskfork.Client(server.address, min_workers=1, max_workers=1) as client:
            for _ in range(3):
                pid = await client.call("pid")
                os.kill(pid, signal.SIGKILL)
                await happens("its end", lambda pid=pid: is_gone(pid))
                assert await client.call("echo", "next") == "next"

    run(test())


def test_it_goes_on_whatever_a_terminal_or_a_service_manager_sends(server: Any) -> None:
    import os
    import signal

    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=1) as client, client.checkout() as checkout:
            pid = await checkout.call("pid")
            running = checkout.call("sleep", 0.5)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTTOU):
                os.kill(pid, number)
            await running
            assert await checkout.call("pid") == pid

    run(test())


def test_programs_that_it_starts_ignore_the_same_signals_unless_told_otherwise(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            assert await client.call("terminated") == [False, True]

    run(test())


def test_started_by_hand_it_says_how_to_start_it() -> None:
    done = subprocess.run(
        [sys.executable, str(WORKER), "functions"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(WORKER.parents[1] / "src")},
        check=False,
    )
    assert done.returncode == 2
    assert "start it by `taskfork serve --listen" in done.stderr


def test_a_worker_ends_with_its_server(python_server: Any) -> None:
    server = python_server()

    async def test() -> int:
        async with taskfork.Client(server.address) as client:
            pid: int = await client.call("pid")
            return pid

    pid = run(test())
    server.stop()
    until("its end", lambda: is_gone(pid))
