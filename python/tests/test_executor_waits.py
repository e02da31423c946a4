"""Threads that wait for calls of an executor: what handlers of signals, callbacks and other threads do meanwhile."""

from __future__ import annotations

import linecache
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, Future, TimeoutError
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Callable, Iterator

import pytest
from conftest import ROOT, until

from taskfork.executor import BrokenProcessPool, Executor


@pytest.fixture
def executor() -> Iterator[Executor]:
    with Executor(1) as executor:
        executor.submit(len, "").result(60)
        yield executor


def held(path: str) -> int:
    """Ends once the file is there."""
    while not os.path.exists(path):
        time.sleep(0.01)
    return 7


def in_thread(function: Callable[..., Any], *args: Any) -> Future[Any]:
    """Calls a function in a thread that does not keep the tests from their end."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


HANDLER = """
import os, signal, sys, time
from concurrent.futures import wait
import taskfork

def held():
    while not os.path.exists("released"):
        time.sleep(0.01)
    return 7

def handle(*_):
    open("released", "w").close()
    if sys.argv[1] == "shutdown":
        executor.shutdown()
    elif sys.argv[1] == "result":
        assert future.result() == 7
    else:
        wait([future])

if __name__ == "__main__":
    signal.signal(signal.SIGALRM, handle)
    with taskfork.Executor(1) as executor:
        executor.submit(len, "").result()
        future = executor.submit(held)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        print(future.result())
"""


def run(tmp_path: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "program.py").write_text(text)
    return subprocess.run(
        [sys.executable, "program.py", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "python" / "src"), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )


@pytest.mark.parametrize("what", ["shutdown", "result", "wait"])
def test_a_handler_of_a_signal_may_wait_for_the_call_itself(tmp_path: Path, what: str) -> None:
    done = run(tmp_path, HANDLER, what)
    assert (done.stdout, done.stderr) == ("7\n", "")


def test_a_callback_may_need_what_the_waiting_thread_has(executor: Executor, tmp_path: Path) -> None:
    lock = threading.Lock()
    future = executor.submit(held, str(tmp_path / "released"))

    taken: list[bool] = []

    def call_back(_: Any) -> None:
        # Without a limit it would wait for ever if the waiter waited for it.
        taken.append(lock.acquire(timeout=20))
        if taken[0]:
            lock.release()

    def wait() -> int:
        with lock:
            return future.result()

    future.add_done_callback(call_back)
    waits = in_thread(wait)
    until("it waits", lambda: waiting(future) == 2)
    (tmp_path / "released").touch()
    assert waits.result(60) == 7
    until("it is called back", lambda: taken)
    assert taken == [True]


def waiting(future: Any) -> int:
    """How many threads wait for a future, and functions for its end."""
    return len(future._done_callbacks)


def test_a_callback_that_ends_its_thread_ends_no_wait(executor: Executor, tmp_path: Path) -> None:
    future = executor.submit(held, str(tmp_path / "released"))
    future.add_done_callback(lambda _: sys.exit(1))
    waits = in_thread(future.result)
    until("it waits", lambda: waiting(future) == 2)
    (tmp_path / "released").touch()
    assert waits.result(30) == 7


def test_a_thread_is_told_if_the_callbacks_are_not_called(executor: Executor, tmp_path: Path) -> None:
    runs = executor.submit(held, str(tmp_path / "released"))
    future = executor.submit(len, "")
    waits = in_thread(future.result)
    until("it waits", lambda: waiting(future) == 1)
    # As if Ctrl-C had come in the middle of `cancel`.
    with future._condition:
        future._state = "CANCELLED"
    assert isinstance(waits.exception(30), CancelledError)
    (tmp_path / "released").touch()
    assert runs.result(60) == 7


def test_a_lock_that_another_thread_has_stays_locked(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda each: unraisable.append(each.exc_value))
    future = executor.submit(held, str(tmp_path / "released"))
    until("it runs", future.running)
    is_held, is_over = threading.Event(), threading.Event()

    def hold() -> None:
        with future._condition:
            is_held.set()
            is_over.wait(60)

    holds = in_thread(hold)
    assert is_held.wait(60)
    with pytest.raises(TimeoutError):
        future.result(0.1)
    is_over.set()
    holds.result(60)
    (tmp_path / "released").touch()
    assert future.result(60) == 7
    assert unraisable == []


#: What the results of the tests do when they are read in this process.
on_read: Callable[[], Any] = int


class Result:
    """It runs code when it is read."""

    def __init__(self) -> None:
        self.number = 7

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        on_read()


def make_result(path: str) -> Result:
    held(path)
    return Result()


def test_the_next_call_begins_before_a_result_is_read(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = executor.submit(make_result, str(tmp_path / "released"))
    second = executor.submit(held, str(tmp_path / "released"))
    monkeypatch.setattr(f"{__name__}.on_read", lambda: second.result(30))
    (tmp_path / "released").touch()
    assert first.result(60).number == 7


class Unreadable(Exception):
    pass


@pytest.mark.parametrize("where", ["main", "other"])
def test_a_result_that_cannot_be_read_has_one_exception(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    reads: list[str] = []

    def fail() -> None:
        reads.append(threading.current_thread().name)
        raise Unreadable

    monkeypatch.setattr(f"{__name__}.on_read", fail)
    future = executor.submit(make_result, str(tmp_path / "released"))
    until("it runs", future.running)
    (tmp_path / "released").touch()
    with pytest.raises(Unreadable) as raised:
        future.result(60) if where == "main" else in_thread(future.result, 60).result(60)
    assert future.exception(60) is raised.value
    # The main thread cannot know that it was no handler of a signal that has raised it.
    assert len(reads) <= (2 if where == "main" else 1)


def end_by(signal_number: int, path: str) -> None:
    held(path)
    os.kill(os.getpid(), signal_number)


def test_a_call_that_ends_while_the_executor_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Executor(3, strict=True) as executor:
        ends, hangs = (executor.submit(held, str(tmp_path / name)) for name in ("ends", "hangs"))
        crashes = executor.submit(end_by, signal.SIGKILL, str(tmp_path / "crashes"))
        until("all run", lambda: ends.running() and crashes.running() and hangs.running())

        def completing(method: Callable[..., Any], is_question: bool) -> Callable[..., Any]:
            """Another thread that has waited for the call completes it just then."""

            def call(*args: Any) -> Any:
                found = method(*args) if is_question else None
                with ends._condition:
                    ends._result, ends._state = 7, "FINISHED"
                return found if is_question else method(*args)

            return call

        for name in ("done", "running", "set_exception", "set_running_or_notify_cancel"):
            method = getattr(ends, name)
            monkeypatch.setattr(ends, name, completing(method, is_question=name in ("done", "running")))
        (tmp_path / "crashes").touch()
        assert isinstance(crashes.exception(30), BrokenProcessPool)
        assert isinstance(hangs.exception(30), BrokenProcessPool)
        assert ends.result(30) == 7
        in_thread(executor.shutdown).result(30)
    assert not [record for record in caplog.records if record.name == "concurrent.futures"]


class Interrupted(BaseException):
    """As that of Ctrl-C."""


def interrupt(number: int, is_meant: Callable[[CodeType], bool], function: Callable[[], Any]) -> bool:
    """Calls a function, and raises an exception before this line of the code that is meant, counted from one. Returns whether there
    are so many."""
    left = number

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not is_meant(frame.f_code):
            return None
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        # Here it would come between the end of a block and the release of its lock, as no handler of a signal does.
        if event == "line" and not text.lstrip().startswith("with "):
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise Interrupted
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except Interrupted:
        pass
    finally:
        sys.settrace(before)
    return left <= 0


def of_shutdown(code: CodeType) -> bool:
    return any(part in code.co_filename for part in ("taskfork/executor", "concurrent/futures/"))


def test_ctrl_c_in_a_shutdown_loses_no_call(tmp_path: Path) -> None:
    number, goes_on = 0, True
    while goes_on:
        number += 1
        executor = Executor(1)
        runs = executor.submit(held, str(tmp_path / str(number)))
        until("it runs", runs.running)
        waits = [in_thread(executor.submit(len, "").result) for _ in range(3)]
        goes_on = interrupt(number, of_shutdown, lambda: executor.shutdown(wait=False, cancel_futures=True))
        executor.shutdown(wait=False, cancel_futures=True)
        assert [type(wait.exception(30)) for wait in waits] == [CancelledError] * 3
        (tmp_path / str(number)).touch()
        assert runs.result(60) == 7
        executor.shutdown()
    assert number > 5


def of_first_submit(code: CodeType) -> bool:
    return (os.path.basename(code.co_filename), code.co_name) == ("executor.py", "_begin")


def test_ctrl_c_in_the_first_submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    number, goes_on = 0, True
    while goes_on:
        number += 1
        with Executor(1) as executor:
            goes_on = interrupt(number, of_first_submit, lambda: executor.submit(len, ""))
            assert executor.submit(len, "ab").result(60) == 2
            assert [each.name for each in threading.enumerate()].count("taskfork-executor") == 1
        assert list(tmp_path.iterdir()) == []
    assert number > 5


@pytest.mark.parametrize("has_begun", [False, True])
def test_ctrl_c_while_the_thread_of_an_executor_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_begun: bool
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if has_begun:
            until("it starts the server", lambda: any(tmp_path.iterdir()))
        raise Interrupted

    with Executor(1) as executor:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(Interrupted):
                executor.submit(len, "")
        assert executor.submit(len, "ab").result(60) == 2
        assert [each.name for each in threading.enumerate()].count("taskfork-executor") == 1
    assert list(tmp_path.iterdir()) == []


class Memory:
    """It is pickled with its memory beside it."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, _: Any) -> Any:
        return Memory, (pickle.PickleBuffer(self.data),)


def write(memory: Memory, path: str) -> None:
    Path(path).write_bytes(bytes(memory.data[:4]))


def of_submit(code: CodeType) -> bool:
    return (os.path.basename(code.co_filename), code.co_name) == ("executor.py", "submit")


def test_ctrl_c_in_submit_leaves_the_caller_its_memory(tmp_path: Path) -> None:
    with Executor(1) as executor:
        runs = executor.submit(held, str(tmp_path / "released"))
        until("it runs", runs.running)
        number, goes_on = 0, True
        while goes_on:
            number += 1
            data, path = bytearray(1 << 17), str(tmp_path / f"seen-{number}")
            goes_on = interrupt(number, of_submit, lambda: executor.submit(write, Memory(data), path))
            data[:4] = b"late"
        (tmp_path / "released").touch()
    assert number > 10
    assert {path.read_bytes() for path in tmp_path.glob("seen-*")} == {bytes(4)}


LATER = """
import sys

def change():
    "Gives futures an attribute of another name, as a later Python may."
    import concurrent.futures
    import concurrent.futures._base as base
    import inspect
    text = inspect.getsource(base).replace(sys.argv[1], sys.argv[1] + "_of_later")
    exec(compile(text, base.__file__, "exec"), base.__dict__)
    for name in concurrent.futures.__all__:
        if name in base.__dict__:
            setattr(concurrent.futures, name, base.__dict__[name])

if __name__ == "__main__":
    change()

import time
import taskfork
from taskfork._future import ARE_KNOWN

if __name__ == "__main__":
    with taskfork.Executor(1) as executor:
        futures = [executor.submit(pow, number, 2) for number in range(5)]
        print(ARE_KNOWN, [future.result(60) for future in futures], type(executor.submit(int, "x").exception(60)))
        hangs, waits = executor.submit(time.sleep, 600), executor.submit(len, "")
        try:
            hangs.result(0.01)
        except TimeoutError:
            print(waits.cancel(), hangs.stop())
        print(executor.submit(len, "ab").result(60))
"""


@pytest.mark.parametrize("name", ["_condition", "_state", "_waiters", "_done_callbacks"])
def test_futures_of_a_later_python(tmp_path: Path, name: str) -> None:
    done = run(tmp_path, LATER, name)
    assert done.stdout == "False [0, 1, 4, 9, 16] <class 'ValueError'>\nTrue True\n2\n", done.stderr


def test_no_time_is_a_time(executor: Executor, tmp_path: Path) -> None:
    future = executor.submit(held, str(tmp_path / "released"))
    for timeout in (0, -1, float("nan")):
        with pytest.raises(TimeoutError):
            future.result(timeout)
    (tmp_path / "released").touch()
    assert future.result(60) == 7
