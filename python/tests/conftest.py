"""Servers of the project's own programs, which must have been built."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Iterator, Optional

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"
TASKFORK = TARGET / "taskfork"
PLAYGROUND = TARGET / "examples" / "playground"
WORKER = Path(__file__).with_name("worker_program.py")


# Tests may run under nohup, or in something like it. What they start would not react to SIGHUP then. A shell ignores SIGINT
# in what it runs in the background.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


class Server:
    """A running server; ``address`` is where."""

    def __init__(self, program: subprocess.Popen[bytes], address: str, log: Path) -> None:
        self.program, self.address, self._log = program, address, log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> None:
        if self.program.poll() is None:
            self.program.send_signal(signal.SIGTERM)
            self.program.wait(30)


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers, and stops them at the end."""
    servers: list[Server] = []

    def begin(program: list[str], address: Optional[str] = None, name: str = "s") -> Server:
        if not Path(program[0]).exists():
            pytest.fail(
                f"{program[0]} is not there: run `cargo build -p taskfork-cli` and "
                "`cargo build -p taskfork-more-examples --example playground`"
            )
        socket = tmp_path / name
        log = tmp_path / f"{name}.log"
        address = address or f"unix:{socket}"
        command = [part.replace("ADDRESS", address) for part in program]
        path = os.pathsep.join([str(ROOT / "python" / "src"), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path}
        with log.open("wb") as out:
            running = subprocess.Popen(command, stderr=out, env=environment)
        server = Server(running, address, log)
        servers.append(server)
        until(f"{command} listens", lambda: "listening" in server.log or running.poll() is not None)
        if "listening at " in server.log:
            server.address = server.log.split("listening at ")[1].split()[0].strip('"')
        return server

    yield begin
    for server in servers:
        server.stop()


@pytest.fixture
def python_server(start: Start) -> Callable[..., Server]:
    """Starts a server whose workers are ``worker_program.py``."""

    def begin(*options: str, address: Optional[str] = None, worker: str = "functions", name: str = "s") -> Server:
        # Through TCP a client learns them only if the server's owner wants that.
        details = ["--share-details"] if (address or "").startswith("tcp:") else []
        command = [str(TASKFORK), "serve", "--listen", "ADDRESS", *details, *options]
        return start([*command, "--", sys.executable, str(WORKER), worker], address, name)

    return begin


@pytest.fixture
def own_server(start: Start) -> Callable[..., Server]:
    """Starts ``worker_program.py`` as the server of its workers."""

    def begin(worker: str = "functions", address: Optional[str] = None, name: str = "s") -> Server:
        return start([sys.executable, str(WORKER), worker, "ADDRESS"], address, name)

    return begin


@pytest.fixture
def playground(start: Start) -> Callable[..., Server]:
    """Starts a server in Rust with all kinds of faults."""

    def begin(*options: str, address: Optional[str] = None) -> Server:
        return start([str(PLAYGROUND), "ADDRESS", *options], address)

    return begin


def until(what: str, condition: Callable[[], bool], limit: float = 30.0) -> None:
    """Waits for something to happen."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.005)


async def happens(what: str, condition: Callable[[], bool], limit: float = 30.0) -> None:
    """The same, while the event loop goes on."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        await asyncio.sleep(0.005)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return True
    return state == "Z"
