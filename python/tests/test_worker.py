"""Workers in Python, called from Python through the server in Rust."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TASKFORK, WORKER, happens, is_gone, until

import taskfork


#: A program whose workers start slowly: as a worker by its imports, as a server by their setup.
SLOW_START = """
import os, sys, time

def wait():
    while not os.path.exists({go!r}):
        time.sleep(0.01)

def add(a: int, b: int) -> int:
    return a + b

def hang() -> None:
    time.sleep(1000)

if len(sys.argv) > 1:
    import taskfork.server
    taskfork.server.run([add, hang], listen=sys.argv[1], setup=wait)
else:
    wait()
    from taskfork.worker import serve
    serve([add, hang])
"""


def run(test: Any) -> Any:
    return asyncio.run(asyncio.wait_for(test, 60))


@pytest.fixture(params=["unix", "tcp", "own"])
def server(request: Any, python_server: Any, own_server: Any) -> Any:
    if request.param == "own":
        return own_server()
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
        assert [timer[0] for timer in timers] == ["log", "computing", "instant", "chatter"]
        # A microsecond, as far as times of a slow call are exact.
        assert all(timer[2] - timer[1] > 0.9e-6 for timer in timers)
        assert data == [{"k": "v"}]
        long = [line[1] for line in lines if "x" * 1000 in str(line[1])]
        # A program's message must fit in what the kernel takes at once.
        assert len(long) == 1 and len(long[0]) > 1000

    run(test())


def test_the_deadline_is_an_exception(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address, grace=2.0) as client:
            # The time of a call counts while its worker starts, too. So one is there before.
            await client.call("pid")
            async with client.checkout(timeout=0.2) as checkout:
                with pytest.raises(taskfork.TimedOut, match="timed out after 0.2 seconds while running"):
                    await checkout.call("sleep", 20)
            await client.call("pid")
            async with client.checkout(timeout=0.2) as checkout:
                left = await checkout.call("left")
                assert 0 < left <= 0.2
                # An error of its own, so that the checkout goes on.
                with pytest.raises(taskfork.InterfaceError, match="interrupted, and cleaned up"):
                    await checkout.call("clean_up_late", 20)
            async with client.checkout(timeout=None) as checkout:
                assert await checkout.call("left") is None

    run(test())


def test_one_that_hangs_is_killed_and_says_where(python_server: Any) -> None:
    server = python_server()

    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            await client.call("pid")
            async with client.checkout(timeout=0.3) as checkout:
                pid = await checkout.call("pid")
                with pytest.raises(taskfork.TimedOut) as caught:
                    await checkout.call("hang")
                assert str(caught.value) == "timed out after 0.3 seconds while running (timeout)"
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


def test_process_ids_are_those_that_the_program_sees(server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            async with client.checkout() as checkout:
                pid = await checkout.call("pid")
                with pytest.raises(taskfork.WorkerDied) as caught:
                    await checkout.call("segv")
            death = caught.value
            assert death.pid == pid
            assert death.worker_pid == pid
            assert str(death).startswith(f"worker connection suddenly died: worker {pid}")
            assert f"[{pid}] about to crash\n" in server.log

    run(test())


def test_a_call_whose_time_ends_during_a_slow_start_has_not_run(start: Any, tmp_path: Path) -> None:
    go, program = tmp_path / "go", tmp_path / "slow.py"
    program.write_text(SLOW_START.format(go=str(go)))
    commands = [
        [str(TASKFORK), "serve", "--listen", "ADDRESS", "--", sys.executable, str(program)],
        [sys.executable, str(program), "ADDRESS"],
    ]

    async def test(address: str) -> None:
        async with taskfork.Client(address, min_workers=0) as client:
            for _ in range(2):
                with pytest.raises(taskfork.TimedOut, match="while its worker ran `setup`") as caught:
                    await client.call("add", 1, 2, timeout=0.3)
                assert not caught.value.may_have_run
            waiting = client.call("add", 1, 2, timeout=60)
            go.touch()
            assert await waiting == 3
            with pytest.raises(taskfork.TimedOut, match="while running") as caught:
                await client.call("hang", timeout=0.3)
            assert caught.value.may_have_run

    for number, command in enumerate(commands):
        go.unlink(missing_ok=True)
        run(test(start(command, name=f"s{number}").address))


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
            await client.call("pid")
            async with client.checkout(timeout=0.2) as checkout:
                with pytest.raises(taskfork.TimedOut, match="while running"):
                    await checkout.call("reset_alarm")

    run(test())


def test_another_program_that_is_executed_cannot_answer(python_server: Any) -> None:
    server = python_server()

    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            await client.call("pid")
            async with client.checkout(timeout=0.2) as checkout:
                with pytest.raises(taskfork.TimedOut, match="while running"):
                    await checkout.call("execute")
            assert await client.call("add", 1, 2) == 3

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


def test_the_longest_message_is_that_of_the_server_in_both_directions(python_server: Any) -> None:
    async def test() -> None:
        address = python_server("--max-frame", "1MiB").address
        async with taskfork.Client(address, max_workers=1) as client, client.checkout() as checkout:
            assert await checkout.call("echo", "x" * 500_000) == "x" * 500_000
            with pytest.raises(taskfork.ArgumentsError, match="the limit of a message is 1048576"):
                await checkout.call("echo", "x" * (2 << 20))
            with pytest.raises(taskfork.ResultError, match="over the limit of 1048576"):
                await checkout.call("buffer", 2 << 20)
            assert await checkout.call("add", 1, 2) == 3

    run(test())
