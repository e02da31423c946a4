"""What the supervisor does for workers that are programs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest
from conftest import ROOT, TASKFORK, WORKER, happens, is_gone, until

import taskfork


def run(test: Any) -> Any:
    return asyncio.run(asyncio.wait_for(test, 60))


def status(address: str) -> Any:
    """What the server tells; nothing while one server takes over from another."""
    command = [str(TASKFORK), "top", address, "--once", "--json"]
    out = subprocess.run(command, capture_output=True, check=False)
    return json.loads(out.stdout) if out.returncode == 0 else {"pid": None, "workers": []}


@pytest.mark.parametrize(
    ("options", "lives"),
    [(["--max-calls", "2"], 2), (["--max-memory", "1"], 1), (["--max-memory", "100GiB"], 6)],
)
def test_workers_are_replaced_in_time(python_server: Any, options: list[str], lives: int) -> None:
    server = python_server(*options)

    async def test() -> None:
        async with taskfork.Client(server.address, min_workers=0, max_workers=1) as client:
            pids = [await client.call("pid") for _ in range(6)]
            assert [pids.index(pid) for pid in pids] == [n - n % lives for n in range(6)]

    run(test())


def test_limits_hold_and_are_named(python_server: Any) -> None:
    server = python_server("--limit", "cpu-time=1", "--limit", "core-size=0")

    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            with pytest.raises(taskfork.WorkerDied, match="its limit of processor time was reached"):
                await client.call("spin")

    run(test())


def test_spares_are_set_up_before_anybody_comes(python_server: Any) -> None:
    server = python_server("--spare-workers", "2")
    until(
        "two spares",
        lambda: [worker["state"] for worker in status(server.address)["workers"]] == ["spare"] * 2,
    )

    async def test() -> None:
        async with taskfork.Client(server.address) as client:
            assert await client.call("add", 1, 2) == 3

    run(test())


def test_the_scoreboard_knows_what_runs(python_server: Any) -> None:
    server = python_server()

    async def test() -> None:
        async with taskfork.Client(server.address, min_workers=0) as client:
            call = client.call("sleep", 20)
            while not any(
                (worker["state"], worker["method"]) == ("busy", "sleep")
                for worker in status(server.address)["workers"]
            ):
                await asyncio.sleep(0.01)
            (worker,) = status(server.address)["workers"]
            # The interpreter is in it.
            assert worker["memory"] > 8 << 20
            call.cancel()
            await happens("the end", lambda: not status(server.address)["workers"])

    run(test())


def test_a_new_server_takes_over_without_a_failed_call(python_server: Any) -> None:
    server = python_server("--spare-workers", "1", "--restart-on-hangup")
    first = status(server.address)["pid"]

    async def test() -> None:
        async with taskfork.Client(server.address, max_workers=2) as client:
            over = False

            async def load() -> int:
                count = 0
                while not over:
                    assert await client.call("echo", count) == count
                    count += 1
                return count

            loads = [asyncio.ensure_future(load()) for _ in range(2)]
            while not any(worker["calls"] for worker in status(server.address)["workers"]):
                await asyncio.sleep(0.01)
            os.kill(first, signal.SIGHUP)
            while (now := status(server.address)["pid"]) in (first, None):
                await asyncio.sleep(0.01)
            await happens("the first server's end", lambda: is_gone(first))
            await client.call("echo", 1)
            over = True
            assert min([await load for load in loads]) > 0
            os.kill(now, signal.SIGTERM)
            await happens("the second server's end", lambda: is_gone(now))

    run(test())


def test_the_service_managers_socket_is_served(tmp_path: Any) -> None:
    path = tmp_path / "s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    descriptor = listener.fileno()
    worker = f"{sys.executable} {WORKER} functions"
    script = f"export LISTEN_FDS=1 LISTEN_PID=$$; exec {TASKFORK} serve -- {worker} 3<&{descriptor}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python" / "src")}
    program = subprocess.Popen(["bash", "-c", script], pass_fds=[descriptor], env=environment)
    try:

        async def test() -> None:
            async with taskfork.Client(f"unix:{path}") as client:
                assert await client.call("add", 1, 2) == 3

        run(test())
    finally:
        program.send_signal(signal.SIGTERM)
        assert program.wait(30) == 0
    listener.close()
