"""Servers that are forks of the program."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any, Iterator

import pytest
from conftest import ROOT, happens, is_gone, until

import taskfork
import taskfork.blocking
from taskfork.executor import BrokenProcessPool, Executor

HERE = Path(__file__).parent
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of servers are in the test's own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture
def executor() -> Iterator[Executor]:
    with Executor(2, FORK) as executor:
        yield executor


def client(server: taskfork.Server, **options: Any) -> taskfork.blocking.Client:
    return taskfork.blocking.Client(server.address, min_workers=0, **options)


def parent(_: Any = None) -> int:
    return os.getppid()


def files(pid: Any = "self") -> dict[int, str]:
    """What a process has open."""
    found = {}
    for file in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(file)] = os.readlink(f"/proc/{pid}/fd/{file}")
        except OSError:
            continue
    return found


def sockets(pid: Any = "self") -> set[str]:
    return {target for target in files(pid).values() if target.startswith("socket:")}


#: What programs begin with.
HEAD = """
import atexit, multiprocessing, os, signal, sys, threading, time, taskfork, taskfork.blocking
FORK = multiprocessing.get_context("fork")
def parent(): return os.getppid()
"""


def program(lines: str, *options: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT / "python" / "src"), str(HERE)])
    # Output is buffered.
    others = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        [sys.executable, *options, "-c", HEAD + lines],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**others, "PYTHONPATH": path},
    )


def output(lines: str, *options: str) -> str:
    with program(lines, *options) as running:
        try:
            out, err = running.communicate("input of the program\n", 120)
        finally:
            running.kill()
    assert (err, running.returncode) == ("", 0)
    return out


def test_the_server_is_a_fork_of_the_program(executor: Executor) -> None:
    server = executor.submit(parent).result()
    assert server != os.getpid()
    of_server = Path(f"/proc/{server}/stat").read_text().rsplit(")", 1)[1].split()
    assert int(of_server[1]) == os.getpid()
    # The terminal's signals are for the program.
    assert os.getsid(server) == server


def test_functions_of_a_main_module_that_cannot_be_imported() -> None:
    said = output(
        """
state = "set by the program"
def read(): return state
class Counter:
    value = 3
    def add(self): return self.value + 1
def begin(closure): global begun; begun = closure()
def get(): return begun
sys.modules["cloudpickle"] = None
word = ["closure"]
with taskfork.Executor(1, FORK, begin, (lambda: word[0],)) as executor:
    print([executor.submit(each).result() for each in (read, Counter().add, get)])
    def later(): return 1
    try: executor.submit(later).result()
    except AttributeError as error: print(error)
"""
    )
    results, error, *_ = said.splitlines()
    assert results == "['set by the program', 4, 'closure']"
    assert "what the program had at the executor's first call" in error


def test_functions_of_such_a_main_module_share_its_state() -> None:
    said = output(
        """
value = None
def begin(): global value; value = "of the initializer"
def read(): return value
class Found: pass
def find(): return Found()
def raises(): raise Found.Error("x")
Found.Error = type("Error", (ValueError,), {"__qualname__": "Found.Error"})
with taskfork.Executor(1, FORK, begin) as executor:
    print(executor.submit(read).result(), type(executor.submit(find).result()) is Found)
    print(type(executor.submit(raises).exception()) is Found.Error)
    value = "of the program"
    # What is defined later is sent by value.
    def later(): return read()
    print(executor.submit(later).result())
    def read(): return "again"
    print(executor.submit(read).result(), executor.submit(later).result())
"""
    )
    assert said == "of the initializer True\nTrue\nof the program\nagain again\n"


def test_what_such_a_main_module_defines_later_is_what_a_worker_runs() -> None:
    said = output(
        """
import typing
def calls(): return second()
def name(variable): return variable.__name__
class Found:
    def method(self): return "old"
def begin():
    global Later
    class Later: pass
def find(): return [Found(), Later()]
with taskfork.Executor(1, FORK, begin) as executor:
    print(*[type(each).__name__ for each in executor.submit(find).result()], type(executor.submit(Found).result()) is Found)
    def second(): return "new"
    print(executor.submit(calls).result())
    T = typing.TypeVar("T")
    print(executor.submit(name, T).result())
with taskfork.Executor(1, FORK) as executor:
    print(executor.submit(Found().method).result())
    Found.method = lambda self: "new"
    print(executor.submit(Found().method).result())
"""
    )
    assert said == "Found Later True\nnew\nT\nold\nnew\n"


#: Interrupts the start of a server at each point where Python may call a handler of a signal, one after the other.
INTERRUPTED = """
import gc
def children(): return open(f"/proc/self/task/{os.getpid()}/children").read().split()
def run(at):
    seen = 0
    def trace(frame, event, arg):
        nonlocal seen
        name = os.path.basename(frame.f_code.co_filename)
        if os.getpid() != program or name not in ("_server.py", "_forked.py", "weakref.py", "contextlib.py"):
            return None
        if event in ("line", "return"):
            seen += 1
            if seen == at: raise KeyboardInterrupt
        return trace
    sys.settrace(trace)
    try: server = taskfork.Server.start([parent], start_method="fork")
    finally: sys.settrace(None)
    server.close()
program, at, points = os.getpid(), 1, 0
while True:
    try: run(at)
    except KeyboardInterrupt: points += 1
    else: break
    gc.collect()
    end = time.monotonic() + 60
    while children():
        assert time.monotonic() < end, (at, children())
        time.sleep(0.001)
    at += 1
print(points > 100, os.listdir(os.environ["TMPDIR"]))
"""


def test_an_interrupt_at_any_point_leaves_no_server() -> None:
    assert output(INTERRUPTED) == "True []\n"


def test_a_server_serves_objects_of_the_program() -> None:
    of_thread = threading.local()
    of_thread.name = "this thread"
    counts = [0]

    def count() -> int:
        counts[0] += 1
        return counts[0]

    class Prices:
        def __init__(self, begun: list[str]) -> None:
            self.begun = begun

        def begun_by(self) -> list[str]:
            return self.begun

    with taskfork.Server.start([count, parent], workers=1, start_method="fork") as server, client(server) as caller:
        assert [caller.call("count"), caller.call("count")] == [1, 2]
        assert caller.call("parent") == server.pid and server.is_alive
    assert is_gone(server.pid) and not server.is_alive and counts == [0]
    with taskfork.Server.start(Prices, setup=lambda: [of_thread.name], start_method="fork") as server:
        with client(server) as caller:
            assert caller.call("begun_by") == ["this thread"]
    # And what has a name.
    with taskfork.Server.start("prices:Prices", setup="prices:begin", start_method="fork") as server:
        with client(server) as caller:
            assert caller.call("quote", "ACME") == 104


class Context:
    def __init__(self, method: str) -> None:
        self._method = method

    def get_start_method(self) -> str:
        return self._method


def test_wrong_start_methods_are_told() -> None:
    for context in ("fork", object()):
        with pytest.raises(TypeError, match="it takes a context of `multiprocessing`"):
            Executor(1, context)
    with pytest.raises(ValueError, match="no start method 'loky'"):
        Executor(1, Context("loky"))
    with pytest.raises(ValueError, match="no start method 'vfork'"):
        taskfork.Server.start("prices", start_method="vfork")
    with pytest.raises(TypeError, match="takes a text such as `module:name`"):
        taskfork.Server.start([parent], start_method="spawn")


@pytest.mark.parametrize("method", ["spawn", "forkserver", None])
def test_other_contexts_start_an_interpreter(method: Any) -> None:
    with Executor(1, None if method is None else multiprocessing.get_context(method)) as executor:
        server = executor.submit(parent).result()
        # A fork has the same memory, and so the module at the same place.
        places = [Path(f"/proc/{pid}/maps").read_text().split("-")[0] for pid in (os.getpid(), server)]
        assert places[0] != places[1]


def test_a_server_that_cannot_serve_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="No module named 'nowhere'"):
        taskfork.Server.start("nowhere", start_method="fork")
    with pytest.raises(TypeError, match="setup is 7: it takes a function"):
        taskfork.Server.start([parent], setup=7, start_method="fork")  # type: ignore[arg-type]
    with Executor(1, FORK, max_tasks_per_child=1 << 80) as executor:
        with pytest.raises(BrokenProcessPool, match="the server could not start: .*max_calls"):
            executor.submit(parent).result()
    assert [each.name for each in tmp_path.iterdir()] == []


def test_a_fork_that_the_system_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(process: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("taskfork._native.fork", refuse)
    with pytest.raises(OSError, match="the program cannot be forked for the server of its workers: Resource temp"):
        taskfork.Server.start([parent], start_method="fork")
    with Executor(1, FORK) as executor:
        with pytest.raises(OSError, match="the program cannot be forked"):
            executor.submit(parent)
        assert [each.name for each in tmp_path.iterdir()] == []
        # The next call tries again.
        monkeypatch.undo()
        assert executor.submit(parent).result() != os.getpid()


def test_clients_of_the_program_go_on() -> None:
    async def main() -> None:
        with taskfork.Server.start("prices", workers=4) as other, client(other) as blocking:
            async with taskfork.Client(other.address, min_workers=0) as caller:
                checkout = caller.checkout()
                assert await checkout.call("quote", "ACME") == blocking.call("quote", "ACME") == 4
                with Executor(2, FORK) as executor:
                    # In the middle of the event loop, which the workers do not have.
                    loop = asyncio.get_running_loop()
                    server = await loop.run_in_executor(executor, parent)
                    assert await loop.run_in_executor(executor, in_event_loop) == server
                    for _ in range(10):
                        assert await checkout.call("quote", "ACME") == await caller.call("quote", "ACME") == 4
                        assert blocking.call("quote", "ACME") == 4
                assert await checkout.call("quote", "ACME") == await caller.call("quote", "ACME") == 4
                assert blocking.call("quote", "ACME") == 4
                checkout.release()

    asyncio.run(main())


def in_event_loop() -> int:
    async def run() -> int:
        await asyncio.sleep(0)
        return os.getppid()

    return asyncio.run(run())


def test_a_client_of_the_program_is_made_anew_in_a_worker() -> None:
    with taskfork.Server.start("prices", workers=4) as other, client(other) as caller:
        assert caller.call("quote", "ACME") == 4

        def ask() -> Any:
            return caller.call("quote", "ACME")

        with taskfork.Server.start([ask], start_method="fork") as server, client(server) as asker:
            assert [asker.call("ask"), caller.call("quote", "ACME"), asker.call("ask")] == [4, 4, 4]


def test_no_connection_of_the_program_is_left_in_the_server() -> None:
    with taskfork.Server.start("prices", workers=4) as other, client(other, max_workers=3) as caller:
        before = sockets()
        checkouts = [caller.checkout() for _ in range(3)]
        for checkout in checkouts:
            assert checkout.call("quote", "ACME") == 4
        connections = sockets() - before
        assert len(connections) >= 3
        with taskfork.Server.start([parent], workers=1, start_method="fork") as server, client(server) as second:
            assert second.call("parent") == server.pid
            assert not connections & sockets(server.pid)
            # The sockets at which servers say that they serve, and the pipes that end them.
            [lifeline] = [target for file, target in files().items() if file == other._parts.lifeline]
            assert lifeline not in files(server.pid).values()
            for checkout in checkouts:
                assert checkout.call("quote", "ACME") == 4
                checkout.release()


def test_a_worker_sees_that_the_program_has_dropped_it(tmp_path: Path) -> None:
    # Its connection would be open in the server that has been forked meanwhile.
    (tmp_path / "slow_calls.py").write_text(
        "import os, pathlib, time\ndef sleep(path): pathlib.Path(path).write_text(str(os.getpid())); time.sleep(600)\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        other = taskfork.Server.start("slow_calls", workers=1)
    finally:
        sys.path.remove(str(tmp_path))
    begun = tmp_path / "begun"

    async def main() -> None:
        async with taskfork.Client(other.address, min_workers=0) as caller:
            call = caller.call("sleep", str(begun))
            await happens("it runs", lambda: begun.exists() and begun.read_text() != "")
            with Executor(1, FORK) as executor:
                assert await asyncio.get_running_loop().run_in_executor(executor, parent) != other.pid
                call.cancel()
                await happens("the worker's end", lambda: is_gone(int(begun.read_text())))

    with other:
        asyncio.run(main())


def test_a_server_that_starts_within_a_call_is_not_part_of_it() -> None:
    # What a result raises is the error of its own call, and no later call within the worker has it.
    said = output(
        """
class Exits:
    def __reduce__(self): raise SystemExit("of a result")
def give(): return Exits()
def ask():
    with taskfork.blocking.Client(first.address, min_workers=0) as caller: return caller.call("quote", "ACME")
class Starts:
    def __reduce__(self):
        with taskfork.Server.start([give, ask], start_method="fork", workers=1, pickle=True) as server:
            with taskfork.blocking.Client(server.address, min_workers=0, pickle=True, reuse_after_error=True) as caller:
                try: caller.call("give")
                except taskfork.ResultError as error: print(error)
                print(caller.call("ask"))
        return str, ("ACME",)
with taskfork.Server.start("prices", workers=4, pickle=True) as first:
    with taskfork.blocking.Client(first.address, min_workers=0, pickle=True) as caller:
        print(caller.call("quote", Starts()))
"""
    )
    assert said == "the result cannot be sent: of a result\n4\n4\n"


def of_siblings() -> list[str]:
    """The names of the server's children."""
    children = Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text().split()
    return [Path(f"/proc/{child}/comm").read_text().strip() for child in children]


def note_siblings() -> None:
    global kept
    kept = of_siblings()


def noted_siblings() -> Any:
    return kept


def test_the_guardian_is_there_before_code_of_the_user_runs() -> None:
    # A fork takes long now. The first worker is forked before the guardian, because its client waits already.
    memory = bytearray(os.urandom(1) * (512 << 20))
    for _ in range(6):
        with Executor(1, FORK, note_siblings) as executor:
            # It may not have its name yet.
            assert len(executor.submit(noted_siblings).result()) == 2
    del memory


def test_other_threads_are_warned_of() -> None:
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        with Executor(1, FORK) as executor, pytest.warns(DeprecationWarning, match="this program has other threads") as caught:
            assert executor.submit(parent).result() != os.getpid()
        [said] = caught
        assert said.filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Executor(1, FORK) as executor, pytest.raises(DeprecationWarning):
                executor.submit(parent)
    finally:
        ended.set()
        thread.join()


def test_the_packages_own_threads_are_not_warned_of() -> None:
    said = output(
        """
with taskfork.Executor(1, FORK) as executor, taskfork.Server.start("prices") as server:
    print(executor.submit(parent).result() != os.getpid())
    with taskfork.blocking.Client(server.address) as caller:
        print(caller.call("quote", "ACME"))
        with taskfork.Executor(1, FORK) as another: print(another.submit(parent).result() != os.getpid())
""",
        "-W",
        "error",
    )
    assert said == "True\n4\nTrue\n"


def test_threads_that_make_calls_do_not_stop_the_server() -> None:
    said = output(
        """
import warnings
warnings.simplefilter("ignore")
ended = threading.Event()
def busy():
    while not ended.is_set():
        caller.call("quote", "ACME"); bytearray(1 << 20)
with taskfork.Server.start("prices", workers=4) as server, taskfork.blocking.Client(server.address) as caller:
    threads = [threading.Thread(target=busy) for _ in range(2)]
    for each in threads: each.start()
    for _ in range(5):
        with taskfork.Executor(1, FORK) as executor: assert executor.submit(parent).result() != os.getpid()
    ended.set()
    for each in threads: each.join()
print("all")
"""
    )
    assert said == "all\n"


def test_exit_handlers_and_output_are_the_programs() -> None:
    said = output(
        """
import gc
gc.disable()
atexit.register(lambda: print("exit handler of", os.getpid() == program))
class Thing:
    def __del__(self): print("finalizer of", os.getpid() == program)
program = os.getpid()
thing = Thing()
cycle = Thing(); cycle.itself = cycle; del cycle
print("before", end=" ")
# The C library has a buffer of its own.
import ctypes
library = ctypes.CDLL(None)
library.printf(b"of C\\n")
with taskfork.Executor(1, FORK, max_tasks_per_child=1) as executor:
    def say(): print("worker", flush=True); gc.collect()
    executor.submit(say).result(); executor.submit(say).result()
print("after", flush=True)
gc.collect()
library.fflush(None)
"""
    )
    assert sorted(said.splitlines()) == sorted(
        ["before worker", "worker", "of C", "after", "exit handler of True", "finalizer of True", "finalizer of True"]
    )


def test_signals_of_the_program_are_not_the_servers() -> None:
    reads, wakes = socket.socketpair()
    with reads, wakes:
        reads.setblocking(False)
        wakes.setblocking(False)
        before = signal.signal(signal.SIGUSR2, lambda *_: None)
        other = signal.set_wakeup_fd(wakes.fileno())
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGQUIT])
        try:
            interface = [parent, get_handler, sleep]
            with taskfork.Server.start(interface, start_method="fork") as server, client(server) as caller:
                assert caller.call("get_handler") == int(signal.SIG_DFL)
                # The worker gets SIGALRM, and Python handles it.
                with pytest.raises(taskfork.TimedOut):
                    caller.call("sleep", timeout=0.1)
                blocked = Path(f"/proc/{server.pid}/status").read_text().split("SigBlk:")[1].split()[0]
                assert not int(blocked, 16) >> (signal.SIGQUIT - 1) & 1
            with pytest.raises(BlockingIOError):
                reads.recv(1)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGQUIT])
            signal.set_wakeup_fd(other)
            signal.signal(signal.SIGUSR2, before)


def sleep() -> None:
    time.sleep(60)


def get_handler() -> int:
    return int(signal.getsignal(signal.SIGUSR2))  # type: ignore[arg-type]


def test_signals_of_the_program_right_after_the_fork_do_not_end_the_server() -> None:
    said = output(
        """
import multiprocessing, os, signal
from taskfork import Executor

PROGRAM, SIGNALS = os.getpid(), (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM)

def interrupt():
    if os.getppid() == PROGRAM:
        for number in SIGNALS:
            os.kill(os.getpid(), number)
        print("sent", flush=True)

for number in SIGNALS:
    signal.signal(number, lambda *_: None)
os.register_at_fork(after_in_child=interrupt)
with Executor(1, multiprocessing.get_context("fork")) as executor:
    print(executor.submit(os.getppid).result() != PROGRAM)
"""
    )
    assert said == "sent\nTrue\n"


def test_standard_input_is_the_programs() -> None:
    said = output(
        """
print(sys.stdin.read(5))
with taskfork.Executor(1, FORK) as executor:
    def read(): return sys.stdin.read(), os.readlink(f"/proc/{os.getppid()}/fd/0")
    print(executor.submit(read).result())
print(sys.stdin.read())
"""
    )
    assert said == "input\n('', '/dev/null')\n of the program\n\n"


START = """
server = taskfork.Server.start([parent], start_method="fork")
caller = taskfork.blocking.Client(server.address)
print(server.pid, caller.call("parent"), flush=True)
"""


@pytest.mark.parametrize("end", ["killed", "returns", "exits", "leaves a child"])
def test_a_server_ends_with_its_parent(end: str) -> None:
    rest = {
        "killed": "time.sleep(600)",
        "returns": "",
        "exits": "os._exit(0)",
        "leaves a child": "child = os.fork()\nif child: print(child, flush=True)\ntime.sleep(600)",
    }[end]
    with program(START + rest) as running:
        assert running.stdout is not None
        pid, of_worker = map(int, running.stdout.readline().split())
        assert pid == of_worker
        child = int(running.stdout.readline()) if "child" in end else None
        if end in ("killed", "leaves a child"):
            running.kill()
        until("the server's end", lambda: is_gone(pid))
        if child is not None:
            assert not is_gone(child)
            os.kill(child, signal.SIGKILL)


def test_a_server_does_not_keep_another_one() -> None:
    # The pipe that ends the first one is open in the program alone.
    with taskfork.Server.start([parent], start_method="fork") as first:
        with taskfork.Server.start([parent], start_method="fork") as second:
            first.close()
            assert is_gone(first.pid) and second.is_alive


def test_servers_that_start_at_the_same_time_do_not_keep_each_other_s_sockets() -> None:
    started: list[taskfork.Server] = []

    def start() -> None:
        barrier.wait()
        started.append(taskfork.Server.start([parent], start_method="fork"))

    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=start) for _ in range(4)]
    with warnings.catch_warnings():
        # The other threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    try:
        for server in started:
            path = server.address.partition(":")[2]
            lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
            sockets = {f"socket:[{line[6]}]" for line in lines if line[-1] == path}
            holders = [each.pid for each in started if sockets & set(files(each.pid).values())]
            assert holders == [server.pid]
    finally:
        for server in started:
            server.close()


def test_an_executor_breaks_if_its_server_ends() -> None:
    with Executor(1, FORK) as executor:
        server = executor.submit(parent).result()
        os.kill(server, signal.SIGKILL)
        until("its end", lambda: is_gone(server))
        with pytest.raises(BrokenProcessPool):
            for _ in range(1000):
                executor.submit(parent).result()


def nested() -> tuple[int, int]:
    with Executor(1, FORK) as executor:
        return os.getpid(), executor.submit(of_parent).result()


def of_parent() -> int:
    return int(Path(f"/proc/{os.getppid()}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_a_worker_can_fork_a_server_too(executor: Executor) -> None:
    worker, starter = executor.submit(nested).result()
    assert worker == starter


@pytest.mark.filterwarnings("ignore:this program has other threads")
def test_queues_of_multiprocessing_can_be_initial_arguments() -> None:
    queue = FORK.Queue()
    # It has a thread now, which the worker has not.
    queue.put("from the program")
    assert queue.get(timeout=30) == "from the program"
    with Executor(1, FORK, keep, (queue,)) as executor:
        executor.submit(put, "from a worker").result()
        assert queue.get(timeout=30) == "from a worker"


kept: Any = None


def keep(queue: Any) -> None:
    global kept
    kept = queue


def put(value: str) -> None:
    kept.put(value)


def pid_without_output() -> int:
    sys.stdout.close()
    return os.getpid()


def test_a_worker_without_standard_output_goes_on() -> None:
    with taskfork.Server.start([pid_without_output], workers=1, start_method="fork") as server, client(server) as caller:
        assert caller.call("pid_without_output") == caller.call("pid_without_output")


WITHOUT_INPUT = """
import multiprocessing, os, taskfork
if __name__ == "__main__":
    for context in (None, multiprocessing.get_context("fork")):
        with taskfork.Executor(1, context) as executor:
            print(executor.submit(len, "abc").result())
"""


def test_a_program_whose_standard_input_is_closed_has_servers(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(WITHOUT_INPUT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python" / "src")}
    words = ["sh", "-c", 'exec "$0" "$@" <&-', sys.executable, str(program)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "3\n3\n", done.stderr
