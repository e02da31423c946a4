"""Programs of ``taskfork serve`` with the package: they take the places of the workers that start them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any, Optional

import pytest
from conftest import ROOT, TASKFORK, Server, is_gone, until

import taskfork
import taskfork.blocking

VERSION = (ROOT / "Cargo.toml").read_text().split('\nversion = "')[1].split('"')[0]

PROGRAM = '''
    import atexit, os, subprocess, sys, threading, time
    from taskfork.worker import context, serve

    folder = sys.argv[1]

    def note(what):
        with open(os.path.join(folder, "notes"), "a") as notes:
            notes.write(f"{what} {os.getpid()}\\n")

    def has(name):
        return os.path.exists(os.path.join(folder, name))

    def setup():
        note("setup")

    def ids():
        return os.getpid(), os.getppid()

    def add(a: int, b: int) -> int:
        return a + b

    def length(data: bytes) -> int:
        return len(data)

    def peer():
        return context().peer

    def hang():
        time.sleep(1000)

    def hang_in_native_code():
        lock = threading.Lock()
        lock.acquire()
        while True:
            try:
                lock.acquire()
            except BaseException:
                pass

    def variables():
        return sorted(name for name in os.environ if name.startswith("TASKFORK"))

    def child():
        return subprocess.Popen(["sleep", "1000"]).pid

    note("imported")
    if __name__ == "__main__":
        atexit.register(note, "exit")
        while has("wait") and "TASKFORK_WORKER" in os.environ:
            time.sleep(0.01)
        if has("fails"):
            raise RuntimeError("there is no database")
        serve([ids, add, length, peer, hang, hang_in_native_code, variables, child], setup=setup)
        note("served")
'''


class Programs:
    def __init__(self, start: Any, folder: Path, *options: str) -> None:
        self.folder = folder
        (folder / "program.py").write_text(textwrap.dedent(PROGRAM))
        command = [str(TASKFORK), "serve", "--listen", "ADDRESS", *options]
        self.server: Server = start([*command, "--", sys.executable, str(folder / "program.py"), str(folder)])

    def noted(self, what: str) -> list[int]:
        notes = self.folder / "notes"
        lines = notes.read_text().splitlines() if notes.exists() else []
        return [int(line.split()[1]) for line in lines if line.split()[0] == what]

    def client(self, **options: Any) -> taskfork.blocking.Client:
        # No other worker starts meanwhile.
        return taskfork.blocking.Client(self.server.address, min_workers=0, max_workers=1, **options)

    def status(self) -> str:
        shown = subprocess.run([TASKFORK, "status", self.server.address], capture_output=True, text=True, check=True)
        return shown.stdout

    def learn(self) -> None:
        """Waits until the server starts each program once."""
        while True:
            before = len(self.noted("imported"))
            with self.client() as client:
                client.call("ids")
            if len(self.noted("imported")) == before + 1:
                return


@pytest.fixture
def programs(start: Any, tmp_path: Path) -> Programs:
    return Programs(start, tmp_path)


def test_no_process_stands_between_client_and_program(programs: Programs) -> None:
    with programs.client() as client:
        with client.checkout() as checkout:
            pid, parent = checkout.call("ids")
            assert parent == programs.server.program.pid
            assert f"\n1       {pid} " in programs.status(), programs.status()
            assert not Path(f"/proc/{pid}/task/{pid}/children").read_text()
            assert str(os.getpid()) in checkout.call("peer")
            # What the user's programs inherit names no descriptors of this one.
            assert checkout.call("variables") == ["TASKFORK_SERVER_ID"]


def test_the_first_program_is_started_twice_and_serves_once(programs: Programs) -> None:
    with programs.client() as client:
        pid, _ = client.call("ids")
    first, again = programs.noted("imported")
    assert (again, programs.noted("setup")) == (pid, [pid])
    # The other one has ended as any program does that returns nothing.
    assert programs.noted("exit")[:1] == [first] and first != pid
    until("the worker's own code has gone on", lambda: programs.noted("served") == [pid])
    until("its exit handlers have run", lambda: pid in programs.noted("exit"))
    programs.learn()
    imported = len(programs.noted("imported"))
    with programs.client() as client:
        client.call("ids")
    assert len(programs.noted("imported")) == imported + 1


def test_spare_programs_wait_for_a_client(start: Any, tmp_path: Path) -> None:
    programs = Programs(start, tmp_path, "--spare-workers", "2")
    until("the spares are there", lambda: programs.status().count(" spare ") == 2)
    ready = programs.noted("setup")
    with programs.client() as client:
        pid, parent = client.call("ids")
    assert pid in ready and parent == programs.server.program.pid


@pytest.mark.parametrize("method", ["hang", "hang_in_native_code"])
def test_a_program_that_hangs_says_where(programs: Programs, method: str) -> None:
    for _ in range(2):
        with programs.client(timeout=60, grace=0.5) as client:
            client.call("ids")
            with client.checkout(timeout=0.5) as checkout:
                if method == "hang":
                    with pytest.raises(taskfork.TimedOut, match="in the worker:(.|\n)*in hang\n"):
                        checkout.call(method)
                else:
                    with pytest.raises(taskfork.TimedOut) as caught:
                        checkout.call(method)
                    assert "in hang_in_native_code" in (caught.value.stderr or ""), caught.value.stderr
                    assert caught.value.stack is None
        programs.learn()


def test_a_program_that_fails_while_it_is_imported_says_why(programs: Programs) -> None:
    programs.learn()
    for _ in range(2):
        (programs.folder / "fails").touch()
        with programs.client() as client:
            with pytest.raises(taskfork.WorkerDied, match="exited with status 1") as caught:
                client.call("ids")
            assert "RuntimeError: there is no database" in (caught.value.stderr or "")
            (programs.folder / "fails").unlink()
            assert client.call("add", 1, 2) == 3
    assert "has ended before it took its connection over" in programs.server.log


def test_a_signal_to_a_program_that_starts_does_not_end_it(programs: Programs) -> None:
    (programs.folder / "wait").touch()
    with programs.client() as client:
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(client.call("ids")))
        thread.start()
        until("the program is executed", lambda: len(programs.noted("imported")) == 2)
        pid = programs.noted("imported")[1]
        os.kill(pid, signal.SIGALRM)
        (programs.folder / "wait").unlink()
        thread.join(30)
    assert found[0][0] == pid


@pytest.mark.parametrize("level", ["compute", "no-network"])
def test_programs_serve_in_a_sandbox(start: Any, tmp_path: Path, level: str) -> None:
    opened = {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, ROOT / "python" / "src", "/usr", "/lib", "/lib64", "/etc")}
    options = [f"--allow-read={path}" for path in opened if os.path.exists(path)]
    executed = {os.path.realpath(path) for path in (sys.executable, "/usr/lib", "/lib64")}
    options += [f"--allow-execute={path}" for path in executed if os.path.exists(path)]
    programs = Programs(start, tmp_path, f"--sandbox={level}", f"--allow-write={tmp_path}", *options, "--max-memory=1GiB")
    for _ in range(2):
        with programs.client() as client:
            with client.checkout() as checkout:
                pid, parent = checkout.call("ids")
                assert parent == programs.server.program.pid
                assert "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()
                assert checkout.call("length", b"x" * (4 << 20)) == 4 << 20
        programs.learn()


def test_what_a_program_has_started_ends_with_a_killed_server(programs: Programs) -> None:
    with programs.client() as client:
        with client.checkout() as checkout:
            pid, _ = checkout.call("ids")
            child = checkout.call("child")
            programs.server.program.kill()
            until("the program's end", lambda: is_gone(pid))
            until("its child's end", lambda: is_gone(child))


def test_a_server_that_restarts_keeps_its_programs(start: Any, tmp_path: Path) -> None:
    # The process that the test has started ends the last server.
    programs = Programs(start, tmp_path, "--restart-on-hangup", "--keep-pid")
    with programs.client() as client:
        with client.checkout() as checkout:
            pid, _ = checkout.call("ids")
            programs.server.program.send_signal(signal.SIGHUP)
            until("another process serves", lambda: programs.server.log.count("listening") >= 2)
            assert checkout.call("ids")[0] == pid
        assert client.call("ids")[0] != pid


def run_by_hand(state: Optional[bytes] = None) -> subprocess.CompletedProcess[str]:
    """Runs a program without a server, or with this state of a worker."""
    program = "import taskfork.worker as worker; worker.serve([print]); print('served')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python" / "src")}
    passed = []
    if state is not None:
        file = os.memfd_create("state")
        os.write(file, state)
        passed.append(file)
        environment["TASKFORK_WORKER"] = str(file)
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, pass_fds=passed, capture_output=True, text=True, timeout=60
    )


def test_a_program_without_a_server_says_how_to_start_it() -> None:
    ended = run_by_hand()
    assert ended.returncode == 2 and "start it by `taskfork serve --listen unix:PATH -- python3" in ended.stderr


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (b"0.0.0\nwhatever", "the other one 0.0.0: the package of the program and the command or crate of the server must"),
        (b"", "the other one unknown"),
        (f"{VERSION}\n".encode(), "the state of the worker cannot be read"),
        (f"{VERSION}\n".encode() + b"\1\0\0\0\xc0", "the state of the worker cannot be read"),
        (f"{VERSION}\n".encode() + b"\xff\xff\xff\xff\xc0", "the state of the worker cannot be read"),
    ],
)
def test_a_program_refuses_the_state_of_another_version(state: bytes, said: str) -> None:
    ended = run_by_hand(state)
    assert ended.returncode == 1 and said in ended.stderr and "served" not in ended.stdout, ended
    assert ended.stderr.startswith("taskfork: ") and "Traceback" not in ended.stderr
