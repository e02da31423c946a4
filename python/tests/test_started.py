"""Servers that a program starts for itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import ROOT, is_gone, until

import taskfork
import taskfork.blocking

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of servers are in the test's own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


def client(server: taskfork.Server, **options: Any) -> taskfork.blocking.Client:
    return taskfork.blocking.Client(server.address, min_workers=0, **options)


def test_a_server_of_a_class(tmp_path: Path) -> None:
    with taskfork.Server.start("prices:Prices", workers=2, setup="prices:begin") as server:
        with client(server) as caller:
            assert caller.call("quote", "ACME") == 104
            assert list(caller.stream("listed", 3)) == [0, 1, 2]
            # Nothing is between it and its workers.
            assert caller.call("server") == server.pid
        with client(server, timeout=0.3) as caller:
            checkouts = [caller.checkout() for _ in range(2)]
            for checkout in checkouts:
                checkout.ready()
            with pytest.raises(taskfork.FatalError):
                caller.call("pid")
            for checkout in checkouts:
                checkout.release()
        folder = Path(server.address[len("unix:"):]).parent
        assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    assert is_gone(server.pid) and not server.is_alive and not folder.exists()
    server.close()


def test_a_server_of_a_module_at_tcp() -> None:
    with taskfork.Server.start("prices", listen="tcp:127.0.0.1:0") as server, client(server) as caller:
        assert server.address.startswith("tcp:127.0.0.1:") and not server.address.endswith(":0")
        assert caller.call("quote", "ACME") == 4
        with pytest.raises(taskfork.UnknownMethod) as caught:
            caller.call("nothing")
        assert caught.value.known == ["begin", "fail", "quote"]


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    for interface, said in [
        ("nowhere:Prices", "No module named 'nowhere'"),
        ("prices:Nothing", "has no attribute 'Nothing'"),
    ]:
        with pytest.raises(RuntimeError, match=said):
            taskfork.Server.start(interface)
    for listen in ("somewhere", "tcp:1", "tcp:localhost:many"):
        with pytest.raises(ValueError, match="is no address: write unix:PATH or tcp:HOST:PORT"):
            taskfork.Server.start("prices", listen=listen)
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(TimeoutError, match="has not imported its interface within 0.3 seconds"):
            taskfork.Server.start("slow", start_timeout=0.3)
    finally:
        sys.path.remove(str(tmp_path))
    # No folder is left.
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith("taskfork-")] == []
    with taskfork.Server.start("prices:Prices", setup="prices:fail") as server, client(server) as caller:
        with pytest.raises(taskfork.SetupError, match="OSError: no licence"):
            caller.call("pid")


def test_a_server_is_quiet_unless_it_is_asked(capfd: pytest.CaptureFixture[str]) -> None:
    for log in (False, True):
        with taskfork.Server.start("prices", log=log) as server, client(server) as caller:
            assert caller.call("quote", "ACME") == 4
        assert ("listening" in capfd.readouterr().err) == log


def test_a_server_that_is_quiet_logs_nothing_but_errors(capfd: pytest.CaptureFixture[str]) -> None:
    for quiet in (False, True):
        with taskfork.Server.start("prices:Prices", quiet=quiet) as server, client(server) as caller:
            with pytest.raises(taskfork.WorkerDied) as caught:
                caller.call("die")
            assert caught.value.stderr == "dying"
        said = capfd.readouterr().err
        # What its workers write is theirs.
        lines = [line.partition("] ")[2] if line.startswith("[") else line for line in said.splitlines()]
        assert ("WARN" in said) is not quiet and "dying" in lines
        assert not quiet or lines == ["dying"]
    with taskfork.Server.start("prices:Prices", setup="prices:fail", quiet=True) as server, client(server) as caller:
        with pytest.raises(taskfork.SetupError):
            caller.call("pid")
    assert "no licence" in capfd.readouterr().err
    with pytest.raises(ValueError, match="exclude each other"):
        taskfork.Server.start("prices", log=True, quiet=True)


def program(lines: str) -> subprocess.Popen[str]:
    """A program that has started a server, whose process id and address it has printed."""
    path = os.pathsep.join([str(ROOT / "python" / "src"), str(HERE)])
    head = "import os, sys, time, threading, taskfork\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + lines],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


START = """
server = taskfork.Server.start("prices:Prices")
import taskfork.blocking
taskfork.blocking.Client(server.address).call("pid")
print(server.pid, server.address, flush=True)
"""

#: How programs end.
ENDS: dict[str, tuple[str, Callable[[subprocess.Popen[str]], None]]] = {
    "killed": (START + "time.sleep(600)", lambda program: program.kill()),
    "returns": (START, lambda program: None),
    "exits": (START + "os._exit(0)", lambda program: None),
    # The child has copies of all that its parent has open.
    "leaves a child": (
        START + "child = os.fork()\nif child: print(child, flush=True)\ntime.sleep(600)",
        lambda program: program.kill(),
    ),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_server_ends_with_its_parent(how: str) -> None:
    lines, end = ENDS[how]
    with program(lines) as parent:
        assert parent.stdout is not None
        pid, address = parent.stdout.readline().split()
        child = int(parent.stdout.readline()) if "child" in how else None
        end(parent)
        until("the server's end", lambda: is_gone(int(pid)))
        until("the end of its folder", lambda: not Path(address[len("unix:"):]).parent.exists())
        if child is not None:
            assert not is_gone(child)
            os.kill(child, signal.SIGKILL)


def test_a_server_outlives_the_thread_that_started_it() -> None:
    started: list[taskfork.Server] = []
    thread = threading.Thread(target=lambda: started.append(taskfork.Server.start("prices")))
    thread.start()
    thread.join()
    [server] = started
    with server, client(server) as caller:
        assert caller.call("quote", "ACME") == 4


def test_a_server_that_is_garbage_ends() -> None:
    server = taskfork.Server.start("prices")
    pid, folder = server.pid, Path(server.address[len("unix:"):]).parent
    del server
    assert is_gone(pid) and not folder.exists()


def test_a_call_that_runs_at_the_end_has_its_time(tmp_path: Path) -> None:
    (tmp_path / "slow_calls.py").write_text(
        "import pathlib, time\n"
        "def sleep(begun): pathlib.Path(begun).touch(); time.sleep(0.5); return 'slept'\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        server = taskfork.Server.start("slow_calls", shutdown_grace=20)
    finally:
        sys.path.remove(str(tmp_path))
    begun = tmp_path / "begun"
    with client(server) as caller, caller.checkout() as checkout:
        call = checkout.queue("sleep", str(begun))
        until("it runs", begun.exists)
        closing = threading.Thread(target=server.close)
        closing.start()
        assert call.wait() == "slept"
    closing.join()
    assert is_gone(server.pid)


def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **texts: str) -> None:
    """Modules that can be imported."""
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_module_that_starts_a_server_while_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import taskfork\ndef f(): return 1\ntaskfork.Server.start('unguarded')\n"
    modules(tmp_path, monkeypatch, unguarded=text)
    with pytest.raises(RuntimeError, match='put what only the program does below `if __name__ == "__main__":`$'):
        taskfork.Server.start("unguarded")


def test_a_module_with_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\ndef f(): return 1\n"
    modules(tmp_path, monkeypatch, threaded=text)
    with pytest.raises(RuntimeError, match="could not start: this process has 2 threads.* OPENBLAS_NUM_THREADS=1"):
        taskfork.Server.start("threaded")


def test_a_module_with_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules(tmp_path, monkeypatch, vectors="import numpy\ndef total(n): return int(numpy.arange(n).sum())\n")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    with taskfork.Server.start("vectors") as server, client(server) as caller:
        assert caller.call("total", 10) == 45


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"workers": 0}, ValueError, "workers is 0: it takes an integer from 1 on"),
        ({"workers": "2"}, TypeError, "workers is '2': it takes an integer"),
        ({"workers": 1 << 70}, ValueError, "workers is"),
        ({"spare_workers": -1}, ValueError, "spare_workers is -1: it takes an integer from 0 on"),
        ({"max_calls": True}, TypeError, "max_calls is True"),
        ({"max_frame": 1}, ValueError, "max_frame is 1: it takes an integer from 256 on"),
        ({"hung_worker_timeout": "x"}, TypeError, "hung_worker_timeout is 'x': it takes a number of seconds"),
        ({"shutdown_grace": float("nan")}, ValueError, "shutdown_grace is nan: a time is 0 or more"),
        ({"start_timeout": -1}, ValueError, "start_timeout is -1"),
        ({"name": "\ud800"}, ValueError, "without surrogates"),
        ({"pickle": "false"}, TypeError, "pickle is 'false': it takes True or False"),
        ({"setup": len}, TypeError, "setup is <built-in function len>: it takes a text"),
    ],
)
def test_options_that_cannot_be_so(options: dict[str, Any], error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        taskfork.Server.start("prices", **options)


@pytest.mark.parametrize("timeout", [float("inf"), 1e300, 10**400, None])
def test_a_server_may_have_any_time_to_start(timeout: Any) -> None:
    with taskfork.Server.start("prices", start_timeout=timeout) as server:
        assert server.is_alive and str(server.pid) in repr(server)


def test_interfaces_without_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "number = 5\nnone = None\nempty = []\ndef f(): pass\ntwice = [f, f]\nwrong = {'a': 5}\nunnamed = ['f']\n"
    modules(tmp_path, monkeypatch, interfaces=text)
    for name, said in [
        ("number", "the interface is 5: it takes functions"),
        ("none", "the interface is None"),
        ("empty", "the interface has no methods"),
        ("twice", "two functions with the name f"),
        ("wrong", "the interface has 'a': 5: a dict has names and functions"),
        ("unnamed", "the interface has 'f', which is no function with a name"),
    ]:
        with pytest.raises(RuntimeError, match=said):
            taskfork.Server.start(f"interfaces:{name}")


def test_a_long_path_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(ValueError, match="longer than 107 bytes.*or set TMPDIR to a shorter folder"):
        taskfork.Server.start("prices")
    assert list(folder.iterdir()) == []


FORKED = """
server = taskfork.Server.start("prices")
child = os.fork()
if child == 0:
    own = taskfork.Server.start("prices")
    # Its pipe has the number that the pipe of the parent's server had.
    del server
    with taskfork.blocking.Client(own.address) as client:
        client.call("quote", "ACME")
    own.close()
    os._exit(0)
status = os.waitpid(child, 0)[1]
with taskfork.blocking.Client(server.address, timeout=20) as client:
    print(status, client.call("quote", "ACME"))
"""


def test_a_child_leaves_the_server_of_its_parent() -> None:
    with program("import taskfork.blocking" + FORKED) as running:
        said, _ = running.communicate(timeout=120)
    assert said == "0 4\n"


def test_a_path_can_be_used_again(tmp_path: Path) -> None:
    listen = f"unix:{tmp_path / 'own'}"
    with taskfork.Server.start("prices", listen=listen) as server, client(server) as caller:
        assert caller.call("quote", "ACME") == 4
        with pytest.raises(OSError, match="another server may listen there: choose another address by `listen`"):
            taskfork.Server.start("prices", listen=listen)
    assert not (tmp_path / "own").exists()
    # What a server that was killed leaves.
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "own"))
    with taskfork.Server.start("prices", listen=listen) as server, client(server) as caller:
        assert caller.call("quote", "ACME") == 4
    (tmp_path / "own").write_text("no socket")
    with pytest.raises(OSError, match="choose another address"):
        taskfork.Server.start("prices", listen=listen)
    assert (tmp_path / "own").read_text() == "no socket"


def test_paths_and_options_of_the_interpreter_are_passed_on(tmp_path: Path) -> None:
    text = "import sys\ndef options(): return [__debug__, sys.warnoptions]\n"
    (tmp_path / "flags.py").write_text(text)
    program = """
import pathlib, sys, taskfork, taskfork.blocking
sys.path.append(pathlib.Path(sys.argv[1]))
with taskfork.Server.start("flags") as server, taskfork.blocking.Client(server.address) as client:
    print(client.call("options"))
"""
    done = subprocess.run(
        [sys.executable, "-O", "-W", "error", "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "python" / "src")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "[False, ['error']]\n", done.stderr


def test_a_server_imports_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    (tmp_path / "imported.py").write_text("import sys\ndef modules(): return list(sys.modules)\n")
    sys.path.insert(0, str(tmp_path))
    try:
        with taskfork.Server.start("imported") as server, client(server) as caller:
            found = set(caller.call("modules"))
    finally:
        sys.path.remove(str(tmp_path))
    # Those of clients, of workers that are programs, and of whoever starts a server.
    assert "taskfork.server" in found
    unneeded = {"asyncio", "json", "msgpack", "shutil", "socket", "subprocess", "tempfile", "taskfork._server", "taskfork._program"}
    assert not unneeded & found
