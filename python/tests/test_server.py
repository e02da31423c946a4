"""Servers in Python, whose workers are forked from them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TASKFORK, WORKER, is_gone, until
import wire

import taskfork
import taskfork.blocking


@pytest.fixture(params=["own", "program"])
def client(request: Any, own_server: Any, python_server: Any) -> Any:
    """A client of workers of both kinds, of which there is one."""
    server = own_server() if request.param == "own" else python_server()
    with taskfork.blocking.Client(server.address, min_workers=0, max_workers=1, reuse_after_error=True) as client:
        yield client


def call(address: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(TASKFORK), "call", address, *words], capture_output=True, text=True, timeout=60)


def test_nothing_stands_between_a_worker_and_its_client(own_server: Any) -> None:
    server = own_server()
    with taskfork.blocking.Client(server.address, max_workers=1) as client:
        assert client.call("parent") == server.program.pid
        children = Path(f"/proc/{server.program.pid}/task/{server.program.pid}/children").read_text()
        assert str(client.call("pid")) in children.split()


def test_an_exception_of_any_kind_is_the_error_of_its_call(client: Any) -> None:
    pid = client.call("pid")
    with pytest.raises(taskfork.InterfaceError) as unprintable:
        client.call("raise_unprintable")
    assert str(unprintable.value) == "Unprintable"
    assert unprintable.value.type == "__main__.Unprintable"
    for what, said in [("interrupt", "KeyboardInterrupt"), ("generator", "GeneratorExit"), ("exit", "SystemExit: 3")]:
        with pytest.raises(taskfork.InterfaceError) as caught:
            client.call("raise_base", what)
        assert str(caught.value) == said and caught.value.type == said.split(":")[0]
    with pytest.raises(taskfork.ResultError, match="a Hidden cannot be encoded"):
        client.call("return_hidden")
    assert client.call("pid") == pid


def test_results_of_numpy(client: Any) -> None:
    pytest.importorskip("numpy")
    assert client.call("numpy_result", "number") == 5
    assert client.call("numpy_result", "strided") == bytes([0, 2, 4])
    with pytest.raises(taskfork.ResultError, match="array of Python objects"):
        client.call("numpy_result", "objects")


def test_a_result_that_is_too_deep_is_an_error(client: Any) -> None:
    pid = client.call("pid")
    assert client.call("deep_result", 128)
    for levels in (129, 1020, 1022, 1024, 100_000):
        with pytest.raises(taskfork.ResultError, match="deep"):
            client.call("deep_result", levels)
    assert client.call("pid") == pid


def test_the_deadline_passes_through_handlers_of_exceptions(client: Any) -> None:
    for _ in range(3):
        pid = client.call("pid")
        with client.checkout(timeout=0.1) as checkout:
            with pytest.raises(TimeoutError, match="timed out after 0.1 seconds while running") as caught:
                checkout.call("spin_stubbornly")
            assert isinstance(caught.value, taskfork.TimedOut) and caught.value.fatal
            # It has been interrupted there, and not killed.
            assert "in spin_stubbornly" in (caught.value.stack or "").splitlines()[0]
            with pytest.raises(taskfork.TimedOut):
                checkout.call("pid")
        until("its end", lambda: is_gone(pid))


@pytest.mark.parametrize("kind", ["own_server", "python_server"])
def test_a_timeout_has_the_exit_status_of_an_error_that_ends_a_checkout(request: Any, kind: str) -> None:
    # A program may need that long to start.
    done = call(request.getfixturevalue(kind)().address, "--timeout", "500ms", "spin")
    assert (done.returncode, "timed out after 0.5 seconds while" in done.stderr) == (3, True), done.stderr


def test_a_call_that_hangs_in_native_code_says_where(client: Any) -> None:
    client.call("pid")
    with client.checkout(timeout=0.2) as checkout:
        pid = checkout.call("pid")
        with pytest.raises(taskfork.TimedOut, match="timed out after 0.2 seconds while running") as caught:
            checkout.call("sum_in_native_code")
    assert "in sum_in_native_code" in (caught.value.stderr or "")
    until("its end", lambda: is_gone(pid))
    assert client.call("add", 1, 2) == 3


def test_a_class_and_its_setup_that_fails_once(own_server: Any) -> None:
    server = own_server(worker="object")
    with taskfork.blocking.Client(server.address, max_workers=1) as client, client.checkout() as checkout:
        with pytest.raises(taskfork.SetupError, match="setup exception: OSError: no licence"):
            checkout.call("next")
        assert checkout.call("next") == 41
        assert checkout.call("next") == 42
        # An attribute that can be called is no method.
        with pytest.raises(taskfork.UnknownMethod) as caught:
            checkout.call("database", "select 1")
        assert caught.value.known == ["next"]


def test_one_function_for_every_call(own_server: Any) -> None:
    with taskfork.blocking.Client(own_server(worker="any").address) as client:
        assert client.call("method", 1) == ["method", 1]
        assert client.invoke(1, 2) == [None, 1, 2]


def test_a_generator_streams(own_server: Any) -> None:
    address = own_server().address
    streamed = call(address, "lines", "3")
    assert streamed.stdout.splitlines() == ['"line 0"', '"line 1"', '"line 2"', "3"]
    broken = call(address, "broken_lines")
    assert broken.returncode == 1
    assert broken.stdout.splitlines() == ['"line 0"']
    assert "ValueError: no more" in broken.stderr
    with taskfork.blocking.Client(address, max_workers=1) as client:
        with pytest.raises(taskfork.ArgumentsError, match="`lines` streams items, which this call does not read"):
            client.call("lines", 3)
        with client.checkout(timeout=None) as checkout:
            assert checkout.call("add", 1, 2) == 3


class Raw:
    """A connection that speaks the protocol."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(address.partition(":")[2])
        self._decoder = wire.Decoder()
        self._socket.sendall(wire.PREAMBLE)
        self.send([wire.HELLO, {"versions": [wire.VERSION], "name": "raw"}])
        assert self.read()[0] == wire.HELLO

    def send(self, message: list[Any]) -> None:
        self._socket.sendall(wire.frame(wire.encode(message)))

    def read(self) -> list[Any]:
        while (message := self._decoder.next()) is None:
            data = self._socket.recv(1 << 16)
            assert data, "the connection has ended"
            self._decoder.feed(data)
        return message

    def close(self) -> None:
        self._socket.close()


def test_a_stream_that_nobody_reads_closes_its_generator(own_server: Any) -> None:
    item, cancel = 11, 4
    raw = Raw(own_server().address)
    raw.send([wire.CALL, {"items": 1000}, "endless_lines", []])
    numbers = []
    while len(numbers) < 3:
        message = raw.read()
        if message[0] == item:
            numbers.append(message[2])
    assert numbers == [1, 2, 3]
    raw.send([cancel, {}, 1])
    while (message := raw.read())[0] == item:
        pass
    assert message == [wire.OK, message[1], None]
    raw.send([wire.CALL, {}, "closed_generators", []])
    assert raw.read()[2] == 1
    raw.close()


def test_progress_is_reported(own_server: Any) -> None:
    raw = Raw(own_server().address)
    raw.send([wire.CALL, {}, "report_progress", []])
    message = raw.read()
    assert message[0] == wire.TELEMETRY and message[1]["progress"] == [1, 3, "rows"]
    raw.close()


def test_a_method_knows_its_call(own_server: Any) -> None:
    with taskfork.blocking.Client(own_server().address, timeout=20) as client:
        remaining, is_cancelled, peer = client.call("context")
        assert 0 < remaining <= 20 and not is_cancelled
        assert str(os.getpid()) in peer
        with client.checkout(timeout=None) as checkout:
            assert checkout.call("context")[0] is None


def test_the_collector_leaves_alone_what_workers_share(own_server: Any) -> None:
    with taskfork.blocking.Client(own_server().address) as client:
        assert client.call("frozen_objects") > 1000


@pytest.mark.parametrize("count", [3, 300])
def test_generators_of_random_numbers_differ(own_server: Any, count: int) -> None:
    # Many workers are forked in another way.
    async def test() -> None:
        async with taskfork.Client(own_server().address, max_workers=count, timeout=120) as client:
            checkouts = [client.checkout() for _ in range(count)]
            numbers = await asyncio.gather(*(checkout.call("random_number") for checkout in checkouts))
            assert len(set(numbers)) == count
            pids = await asyncio.gather(*(checkout.call("pid") for checkout in checkouts))
            assert len(set(pids)) == count
            for checkout in checkouts:
                checkout.release()

    asyncio.run(test())


def test_threads_of_a_worker_run_between_calls(own_server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(own_server().address, max_workers=1) as client:
            async with client.checkout() as checkout:
                await checkout.call("start_thread")
                before = await checkout.call("count_ticks")
                # The worker is only asked now and then.
                while await checkout.call("count_ticks") < before + 20:
                    await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_worker_that_dies_is_told_and_replaced(own_server: Any) -> None:
    with taskfork.blocking.Client(own_server().address, max_workers=1) as client:
        pid = client.call("pid")
        with pytest.raises(taskfork.WorkerDied, match="exited with status 7 during a call") as exited:
            client.call("exit_now", 7)
        assert (exited.value.pid, exited.value.exit) == (pid, 7)
        with pytest.raises(taskfork.WorkerDied, match="was killed by SIGSEGV during a call") as caught:
            client.call("segv")
        assert "in segv" in (caught.value.stderr or "")
        assert client.call("add", 1, 2) == 3


def test_a_worker_ends_with_its_server(own_server: Any) -> None:
    server = own_server()
    with taskfork.blocking.Client(server.address, max_workers=1) as client:
        pid = client.call("pid")
        server.program.send_signal(signal.SIGKILL)
        server.program.wait()
        until("its end", lambda: is_gone(pid))


def test_a_signal_ends_the_server(own_server: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        server = own_server()
        server.program.send_signal(number)
        assert server.program.wait(30) == 0


def test_a_new_version_takes_over(own_server: Any) -> None:
    server = own_server()
    with taskfork.blocking.Client(server.address, min_workers=0, max_workers=1) as client:
        assert client.call("parent") == server.program.pid
        server.program.send_signal(signal.SIGHUP)
        assert server.program.wait(60) == 0
        successor = client.call("parent")
        assert successor != server.program.pid
        os.kill(successor, signal.SIGTERM)
        until("its end", lambda: is_gone(successor))


def test_a_server_that_cannot_start_says_why(own_server: Any, tmp_path: Path) -> None:
    server = own_server()
    command = [sys.executable, str(WORKER), "functions"]
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parents[1] / "src")}

    def start(*words: str) -> str:
        done = subprocess.run([*command, *words], capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 1
        return done.stderr.splitlines()[-1]

    assert "RuntimeError" in start(server.address)
    assert "RuntimeError" in start("somewhere")
    program = tmp_path / "threads.py"
    program.write_text(
        "import sys, threading, time, taskfork.server\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "taskfork.server.run([len], listen=sys.argv[1])\n"
    )
    command = [sys.executable, str(program)]
    assert "thread" in start(f"unix:{tmp_path}/other")


def test_a_forked_child_of_a_call_answers_nothing(own_server: Any) -> None:
    async def test() -> None:
        async with taskfork.Client(own_server().address, max_workers=1) as client:
            worker = await client.call("return_twice")
            assert await client.call("pid") == worker
            for what, status in (("returns", 70), ("raises", 70), ("exits", 9)):
                assert await client.call("status_of_child", what) == status

    asyncio.run(test())


#: A server that has imported NumPy.
WITH_NUMPY = """
import gc, os, sys
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import numpy
import taskfork.server

def own_memory() -> int:
    gc.collect()
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith("Private_"))

taskfork.server.run([own_memory], listen=sys.argv[1])
"""


def test_a_worker_shares_what_its_server_has_imported(start: Any, tmp_path: Path) -> None:
    program = tmp_path / "with_numpy.py"
    program.write_text(WITH_NUMPY)
    server = start([sys.executable, str(program), "ADDRESS"])
    with taskfork.blocking.Client(server.address) as client:
        own = client.call("own_memory")
    # 2 MB, of which half is the interpreter's own. A collection that visits what was there before the fork makes it 7.
    assert own < 3 << 20
