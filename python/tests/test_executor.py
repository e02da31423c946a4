"""The executor: what it shares with that of the standard library, and what it adds."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import logging
import multiprocessing
import operator
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Iterator

import pytest
from conftest import ROOT, is_gone, until

import taskfork
from taskfork.executor import BrokenProcessPool, Executor

HERE = Path(__file__).parent


@pytest.fixture
def executor() -> Iterator[Executor]:
    with Executor(2) as executor:
        yield executor


started = 0


def begin(value: int) -> None:
    global started
    started = value


def get_started() -> int:
    return started


def fail_to_begin() -> None:
    raise OSError("no licence")


def add(one: int, other: int = 0) -> int:
    return one + other


def warn(text: str) -> None:
    logging.getLogger("worker").warning(text)


def pid(_: Any = None) -> int:
    return os.getpid()


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    pass


def raise_frozen() -> None:
    raise Frozen


class Odd(Exception):
    """It cannot be made of its arguments."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__("odd")


def raise_one(kind: str) -> None:
    if kind == "odd":
        raise Odd(1, 2)
    raise {"value": ValueError("no"), "exit": SystemExit(3)}[kind]


def crash(_: Any = None) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def touch_and_sleep(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def unpicklable() -> Any:
    return threading.Lock()


def test_calls_and_their_results(executor: Executor) -> None:
    futures = [executor.submit(add, number, other=1) for number in range(50)]
    assert [future.result(60) for future in futures] == list(range(1, 51))
    assert executor.submit(len, b"x" * (1 << 20)).result(60) == 1 << 20
    assert len(executor.submit(bytes, 1 << 20).result(60)) == 1 << 20
    assert executor.submit(pid).result(60) != os.getpid()


def test_map_keeps_the_order_and_sends_chunks(executor: Executor) -> None:
    assert list(executor.map(add, range(100), range(100))) == [2 * number for number in range(100)]
    assert list(executor.map(add, range(100), chunksize=7)) == list(range(100))
    # A chunk is one call.
    pids = list(executor.map(pid, range(20), chunksize=10))
    assert len(set(pids[:10])) == len(set(pids[10:])) == 1
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(add, [1], chunksize=0)
    with pytest.raises(concurrent.futures.TimeoutError):
        list(executor.map(time.sleep, [2], timeout=0.2))
    executor.shutdown(cancel_futures=True, wait=False)


def test_exceptions_are_results(executor: Executor) -> None:
    worker = executor.submit(pid).result(60)
    with pytest.raises(ValueError, match="no") as caught:
        executor.submit(raise_one, "value").result(60)
    assert "in raise_one" in str(caught.value.__cause__)
    with pytest.raises(SystemExit):
        executor.submit(raise_one, "exit").result(60)
    with pytest.raises(RuntimeError, match="Odd: odd .the exception cannot be pickled"):
        executor.submit(raise_one, "odd").result(60)
    with pytest.raises((TypeError, pickle.PicklingError), match="pickle"):
        executor.submit(unpicklable).result(60)
    with pytest.raises((TypeError, pickle.PicklingError), match="pickle"):
        executor.submit(add, threading.Lock()).result(60)
    # Its worker is kept.
    pids = {executor.submit(pid).result(60) for _ in range(10)}
    assert worker in pids


class EndsWhereItIsMade:
    """It raises in each process but the one that has pickled it."""

    def __reduce__(self) -> Any:
        return _end, (os.getpid(),)


def _end(pickled_in: int) -> None:
    if os.getpid() != pickled_in:
        raise SystemExit("not here")


def make_one() -> EndsWhereItIsMade:
    return EndsWhereItIsMade()


def test_what_cannot_be_unpickled_fails_its_own_call(executor: Executor) -> None:
    for future in (executor.submit(make_one), executor.submit(str, EndsWhereItIsMade())):
        with pytest.raises(SystemExit, match="not here"):
            future.result(60)
    assert executor.submit(add, 1).result(60) == 1


def test_a_crash_fails_its_own_call(executor: Executor) -> None:
    crashed = [executor.submit(crash) for _ in range(3)]
    others = [executor.submit(add, number) for number in range(20)]
    for future in crashed:
        with pytest.raises(taskfork.WorkerDied) as caught:
            future.result(60)
        assert caught.value.signal == signal.SIGSEGV
    assert [future.result(60) for future in others] == list(range(20))


def test_a_strict_executor_breaks() -> None:
    with Executor(2, strict=True) as executor:
        future = executor.submit(crash)
        with pytest.raises(BrokenProcessPool, match="terminated abruptly"):
            future.result(60)
        with pytest.raises(BrokenProcessPool):
            executor.submit(add, 1)


def test_initializers(tmp_path: Path) -> None:
    with Executor(2, initializer=begin, initargs=(7,)) as executor:
        assert {executor.submit(get_started).result(60) for _ in range(10)} == {7}
    with Executor(2, initializer=fail_to_begin) as executor:
        futures = [executor.submit(add, 1) for _ in range(3)]
        for future in futures:
            with pytest.raises(BrokenProcessPool, match="OSError: no licence"):
                future.result(60)
        with pytest.raises(BrokenProcessPool):
            executor.submit(add, 1)


def test_a_worker_is_replaced_after_its_calls() -> None:
    with Executor(1, max_tasks_per_child=2) as executor:
        pids = [executor.submit(pid).result(60) for _ in range(6)]
    assert pids[0] == pids[1] and pids[2] == pids[3] and pids[4] == pids[5]
    assert len(set(pids)) == 3


def test_a_time_limit_counts_from_when_a_call_runs() -> None:
    with Executor(1, timeout=30) as executor:
        # The worker imports this module.
        assert executor.submit(add, 0).result(60) == 0
        first = executor.submit(time.sleep, 0.6)
        # It waits longer than it may run. The worker need not import the tests for it, which takes long on a busy machine.
        second = executor.submit_within(0.5, abs, -1)
        assert (first.result(60), second.result(60)) == (None, 1)
        with pytest.raises(TimeoutError, match="timed out after 0.3 seconds") as caught:
            executor.submit_within(0.3, time.sleep, 60).result(60)
        assert isinstance(caught.value, taskfork.TimedOut)
        assert executor.submit(add, 2).result(60) == 2


def test_a_call_is_stopped_while_it_runs(tmp_path: Path) -> None:
    with Executor(1) as executor:
        path = tmp_path / "begun"
        running, waiting = executor.submit(touch_and_sleep, str(path)), executor.submit(add, 1)
        until("it runs", lambda: path.exists() and bool(path.read_text()))
        assert running.running() and not waiting.running()
        assert not running.cancel()
        assert running.stop()
        with pytest.raises(concurrent.futures.CancelledError):
            running.result(60)
        until("its end", lambda: is_gone(int(path.read_text())))
        assert waiting.result(60) == 1
        assert not waiting.stop()


def test_one_that_waits_is_cancelled(tmp_path: Path) -> None:
    executor = Executor(1)
    path = tmp_path / "begun"
    running, waiting, other = (
        executor.submit(touch_and_sleep, str(path)), executor.submit(add, 1), executor.submit(add, 1)
    )  # fmt: skip
    until("it runs", path.exists)
    assert waiting.cancel() and waiting.cancelled()
    executor.shutdown(wait=False, cancel_futures=True)
    until("it is cancelled", other.cancelled)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(add, 1)
    assert running.stop()
    executor.shutdown()


def test_shutdown_waits_for_what_was_submitted() -> None:
    executor = Executor(2)
    futures = [executor.submit(time.sleep, 0.1) for _ in range(6)]
    executor.shutdown()
    assert all(future.done() for future in futures)
    executor.shutdown()
    # One without a call has no process.
    Executor(2).shutdown()


def test_it_works_with_asyncio(executor: Executor) -> None:
    async def test() -> list[int]:
        loop = asyncio.get_running_loop()
        return list(await asyncio.gather(*(loop.run_in_executor(executor, add, number) for number in range(10))))

    assert asyncio.run(test()) == list(range(10))


def put(shared: Any, value: int) -> None:
    shared.append(value)


def test_objects_of_a_manager_can_be_shared(executor: Executor) -> None:
    with multiprocessing.Manager() as manager:
        shared = manager.list()
        for number in range(3):
            executor.submit(put, shared, number).result(60)
        assert list(shared) == [0, 1, 2]


def test_callbacks_and_waiting(executor: Executor) -> None:
    called: list[Any] = []
    future = executor.submit(add, 1)
    future.add_done_callback(called.append)
    done, _ = concurrent.futures.wait([future, executor.submit(add, 2)], timeout=60)
    assert len(done) == 2
    until("its callback", lambda: called == [future])
    assert sorted(each.result() for each in concurrent.futures.as_completed(done)) == [1, 2]


def test_the_death_of_its_server_breaks_it(executor: Executor) -> None:
    worker = executor.submit(pid).result(60)
    server = int(Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[1])
    hanging = executor.submit(time.sleep, 600)
    os.kill(server, signal.SIGKILL)
    with pytest.raises((BrokenProcessPool, taskfork.WorkerDied)):
        hanging.result(60)
    until("it is broken", lambda: executor._pool._broken is not None)
    with pytest.raises(BrokenProcessPool, match="server of the workers has ended"):
        executor.submit(add, 1)


def test_wrong_arguments() -> None:
    for options, kind in [
        ({"max_workers": 0}, ValueError),
        ({"initializer": 5}, TypeError),
        ({"max_tasks_per_child": 0}, ValueError),
        ({"max_tasks_per_child": 1.5}, TypeError),
        ({"timeout": -1}, ValueError),
    ]:
        with pytest.raises(kind):
            Executor(**options)  # type: ignore[arg-type]


PROGRAM = """
import sys, time
from taskfork.executor import Executor

def square(number):
    return number * number

def report(future):
    print(future.result(), flush=True)

if __name__ == "__main__":
    executor = Executor(2)
    for number in range(4):
        executor.submit(square, number).add_done_callback(report)
    if sys.argv[1:] == ["kept"]:
        kept = executor
    else:
        del executor
"""


@pytest.mark.parametrize("how", ["kept", "dropped"])
def test_functions_of_a_program_and_its_end(tmp_path: Path, how: str) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), how],
        env={**os.environ, "PYTHONPATH": str(ROOT / "python" / "src"), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # The interpreter ends once all calls have.
    assert (sorted(done.stdout.split()), done.stderr, done.returncode) == (["0", "1", "4", "9"], "", 0)
    assert [each.name for each in tmp_path.iterdir()] == ["program.py"]


def run(tmp_path: Path, *command: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Runs Python with a program on its standard input."""
    return subprocess.run(
        [sys.executable, *command],
        input=text,
        env={**os.environ, "PYTHONPATH": str(ROOT / "python" / "src"), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )


LATE = """
import time, taskfork
def save(name):
    # Longer than the grace of the server.
    time.sleep(1.2)
    open(name, "w").close()
if __name__ == "__main__":
    executor = taskfork.Executor(2)
    executor.submit(len, "warm").result()
    for number in range(3):
        executor.submit(save, f"saved-{number}")
"""


def test_calls_that_run_at_the_end_of_the_program_are_done(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(LATE)
    done = run(tmp_path, "program.py")
    assert (done.stderr, done.returncode) == ("", 0)
    assert sorted(each.name for each in tmp_path.iterdir() if each.name != "program.py") == [
        "saved-0",
        "saved-1",
        "saved-2",
    ]


def test_a_program_without_a_guard(tmp_path: Path) -> None:
    text = "import taskfork\ndef f(): return 1\nprint(taskfork.Executor(1).submit(f).result())\n"
    (tmp_path / "program.py").write_text(text)
    done = run(tmp_path, "program.py")
    assert 'put what only the program does below `if __name__ == "__main__":`' in done.stderr
    assert done.stderr.count("could not start") == 1 and done.returncode == 1


def test_a_program_with_numpy(tmp_path: Path) -> None:
    text = """
import numpy, taskfork
if __name__ == "__main__":
    with taskfork.Executor(1) as executor:
        print(executor.submit(numpy.sum, numpy.ones(10)).result())
"""
    (tmp_path / "program.py").write_text(text)
    done = run(tmp_path, "program.py")
    assert (done.stdout, done.stderr, done.returncode) == ("10.0\n", "", 0)


HELD = """
import time, taskfork
def held(number):
    open(f"held-{number}", "w").close()
    time.sleep(600)
if __name__ == "__main__":
    with taskfork.Executor(2) as executor:
        list(executor.map(held, range(4)))
"""


def interrupt(tmp_path: Path, text: str, *begun: str) -> None:
    """Runs a program, and sends it what Ctrl-C does once these files are there. It must end by that."""
    (tmp_path / "program.py").write_text(text)
    with subprocess.Popen(
        [sys.executable, "program.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "python" / "src"), "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as running:
        until("it has begun", lambda: all((tmp_path / name).exists() for name in begun))
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert "KeyboardInterrupt" in said and running.returncode != 0


def test_ctrl_c_ends_the_calls_of_a_block(tmp_path: Path) -> None:
    interrupt(tmp_path, HELD, "held-0", "held-1")
    assert not (tmp_path / "held-2").exists()


def test_programs_that_are_no_file(tmp_path: Path) -> None:
    text = "import taskfork\nwith taskfork.Executor(1) as executor:\n    print(executor.submit(len, 'abc').result())\n"
    for command, given in [(("-",), text), (("-c", text), "")]:
        done = run(tmp_path, *command, text=given)
        assert (done.stdout, done.stderr, done.returncode) == ("3\n", "", 0)
    (tmp_path / "cloudpickle.py").write_text("raise ImportError('not in this test')\n")
    own = "import taskfork\ndef own(): return 1\nwith taskfork.Executor(1) as executor:\n    executor.submit(own).result()\n"
    done = run(tmp_path, "-c", own)
    assert "Put the function into a module, or, if the program is no file, install cloudpickle" in done.stderr
    (tmp_path / "cloudpickle.py").write_text("def dumps(value, *_, **__): return b'by value'\n")
    done = run(tmp_path, "-c", own)
    # The stand-in has pickled it.
    assert "UnpicklingError" in done.stderr


def test_long_results_arrive(executor: Executor) -> None:
    assert len(executor.submit(bytes, 65 << 20).result()) == 65 << 20


def test_after_the_block_there_is_no_other_call() -> None:
    with Executor(1) as executor:
        executor.submit(len, "").result()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown") as caught:
        executor.submit(len, "")
    assert not isinstance(caught.value, BrokenProcessPool)


def test_a_call_that_cannot_be_made_fails(executor: Executor) -> None:
    with pytest.raises(OverflowError):
        executor.submit_within(10**400, len, "").result(60)
    assert executor.submit(len, "ab").result(60) == 2


def test_a_callback_that_ends_the_thread_ends_only_itself(
    executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    executor.submit(len, "").add_done_callback(lambda _: sys.exit(1))
    assert executor.submit(len, "ab").result(60) == 2
    until("it is logged", lambda: "exception calling callback" in caplog.text)


def test_a_thread_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Executor(1) as executor:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                executor.submit(len, "")
            assert list(tmp_path.iterdir()) == []
        assert executor.submit(len, "ab").result(60) == 2


def test_warnings_of_workers_that_nobody_collects(executor: Executor, capfd: pytest.CaptureFixture[str]) -> None:
    executor.submit(warn, "the disk is full").result(60)
    assert "the disk is full" in capfd.readouterr().err


def test_an_exception_whose_attributes_cannot_be_set_is_raised_as_it_is(executor: Executor) -> None:
    with pytest.raises(Frozen) as raised:
        executor.submit(raise_frozen).result()
    assert "raise_frozen" in str(raised.value.__cause__)


def test_arguments_and_results_are_as_long_as_memory_permits(executor: Executor) -> None:
    data = bytes(65 << 20)
    assert executor.submit(operator.concat, data, b"end").result() == data + b"end"


def test_what_a_notebook_has_defined_is_sent_by_value() -> None:
    # The main module of a program that comes through a pipe has no file either.
    program = """
import taskfork

class Point:
    def __init__(self, x):
        self.x = x

def moved(point, by=1):
    return Point(point.x + by)

with taskfork.Executor(1) as executor:
    found = executor.submit(moved, Point(1)).result()
    print(type(found) is Point, found.x)
    scale = 3
    print(list(executor.map(lambda number: number * scale, range(3))))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python" / "src")}
    printed = subprocess.check_output([sys.executable, "-"], input=program, env=environment, text=True)
    assert printed == "True 2\n[0, 3, 6]\n"


LEAVES = """
import sys, time, taskfork
def save(name):
    time.sleep(0.3)
    open(name, "w").close()
if __name__ == "__main__":
    with taskfork.Executor(1) as executor:
        for number in range(3):
            executor.submit(save, f"saved-{number}")
        sys.exit(7)
"""


def test_a_block_that_is_left_by_exit_does_its_calls(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(LEAVES)
    done = run(tmp_path, "program.py")
    assert (done.stderr, done.returncode) == ("", 7)
    assert all((tmp_path / f"saved-{number}").exists() for number in range(3))


def test_callbacks_that_raise_keep_no_future_from_its_end(tmp_path: Path) -> None:
    with Executor(1, strict=True) as executor:
        futures = [executor.submit(crash), *(executor.submit(add, 1) for _ in range(4))]
        for future in futures:
            future.add_done_callback(lambda _: sys.exit(1))
        for future in futures:
            assert isinstance(future.exception(60), BrokenProcessPool)
    executor = Executor(1)
    running = executor.submit(touch_and_sleep, str(tmp_path / "runs"))
    until("it runs", (tmp_path / "runs").exists)
    waiting = [executor.submit(add, 1) for _ in range(3)]
    for future in waiting:
        future.add_done_callback(lambda _: sys.exit(1))
    executor.shutdown(wait=False, cancel_futures=True)
    until("they are cancelled", lambda: all(future.cancelled() for future in waiting))
    running.stop()


SLOW = """
import sys, time
if __name__ != "__main__":
    open("imports", "w").close()
    time.sleep(600)
import taskfork
if __name__ == "__main__":
    with taskfork.Executor(1) as executor:
        executor.submit(len, "").result()
"""


def test_ctrl_c_ends_a_server_that_imports(tmp_path: Path) -> None:
    interrupt(tmp_path, SLOW, "imports")


def test_interruptions_lose_no_call_and_no_worker(tmp_path: Path) -> None:
    program = [sys.executable, str(HERE / "interrupted_program.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python" / "src")}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stderr, done.returncode) == ("", 0)
    assert int(done.stdout) > 100


def test_a_thread_that_waits_is_told_of_every_end(executor: Executor, tmp_path: Path) -> None:
    runs = executor.submit(touch_and_sleep, str(tmp_path / "runs"))
    until("it runs", (tmp_path / "runs").exists)
    with pytest.raises(concurrent.futures.TimeoutError):
        runs.result(0.01)
    with pytest.raises(concurrent.futures.TimeoutError):
        runs.exception(0.01)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        # The first one reads the answer itself, and the others wait for it.
        waits = [threads.submit(runs.result) for _ in range(3)]
        asks = threads.submit(runs.exception)
        assert runs.stop()
        assert all(isinstance(wait.exception(60), concurrent.futures.CancelledError) for wait in waits)
        assert isinstance(asks.result(60), concurrent.futures.CancelledError)
        other = executor.submit(touch_and_sleep, str(tmp_path / "other"))
        until("it runs", (tmp_path / "other").exists)
        wait = threads.submit(other.result)
        os.kill(int((tmp_path / "other").read_text()), signal.SIGKILL)
        assert isinstance(wait.exception(60), taskfork.WorkerDied)
    assert executor.submit(len, "ab").result(60) == 2


def test_a_waiter_and_a_callback_are_both_told(executor: Executor) -> None:
    told = queue.SimpleQueue[str]()
    for number in range(200):
        future = executor.submit(add, number)
        future.add_done_callback(lambda _: told.put(threading.current_thread().name))
        assert future.result(60) == number
    names = {told.get(timeout=60) for _ in range(200)}
    assert names <= {"taskfork-executor", threading.current_thread().name}


def test_workers_go_on_while_a_thread_submits_and_keeps_the_interpreter() -> None:
    with Executor(1) as executor:
        executor.submit(add, 1).result(60)
        futures, before = [], sys.getswitchinterval()
        sys.setswitchinterval(1000)
        try:
            while len(futures) < 20_000 and not (len(futures) > 2 and futures[2]._state in ("RUNNING", "FINISHED")):
                futures.append(executor.submit(add, len(futures)))
                for _ in range(5000):
                    pass
        finally:
            sys.setswitchinterval(before)
        assert len(futures) < 20_000
        assert [future.result(60) for future in futures] == list(range(len(futures)))
