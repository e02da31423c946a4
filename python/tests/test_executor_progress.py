"""How far the calls of an executor have got, and what they log."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Iterator

import pytest
from conftest import is_gone, until

import taskfork
from taskfork import Progress
from taskfork.executor import Executor
from taskfork.worker import logger


@pytest.fixture
def executor() -> Iterator[Executor]:
    with Executor(1) as executor:
        yield executor


def wait_for(path: Path) -> None:
    # If a test fails, its executor still waits for this.
    until(f"{path} is there", path.exists)


def steps(folder: str, count: int) -> int:
    """Makes each step when a file is there."""
    for step in range(1, count + 1):
        wait_for(Path(folder) / str(step))
        taskfork.context().progress(step, count, "steps")
    wait_for(Path(folder) / "end")
    return count


def crash_after_a_report(path: str) -> None:
    taskfork.context().progress(1)
    wait_for(Path(path))
    os.kill(os.getpid(), signal.SIGKILL)


def test_reports_of_a_call_that_waits_runs_and_ends(executor: Executor, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    before = executor.submit(steps, str(tmp_path / "first"), 0)
    future = executor.submit(steps, str(tmp_path), 3)
    reports, others = future.progress(), future.progress()
    # It has no worker yet.
    with pytest.raises(TimeoutError, match="no report of progress within 0.05 seconds"):
        reports.wait(0.05)
    assert reports.latest is None and not future.running()
    (tmp_path / "first" / "end").touch()
    found = []
    for step in range(1, 4):
        (tmp_path / str(step)).touch()
        found.append(reports.wait(60))
    assert found == [Progress(step, 3, "steps") for step in range(1, 4)]
    assert reports.latest == Progress(3, 3, "steps")
    (tmp_path / "end").touch()
    assert list(reports) == []
    # Another object has its own place.
    assert list(others) == [Progress(3, 3, "steps")]
    assert (before.result(60), future.result(60)) == (0, 3)


def test_a_thread_can_wait_for_reports_of_a_call_that_runs(executor: Executor, tmp_path: Path) -> None:
    future = executor.submit(steps, str(tmp_path), 1)
    until("it runs", future.running)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(future.progress()))
    thread.start()
    (tmp_path / "1").touch()
    until("the report", lambda: found == [Progress(1, 1, "steps")])
    (tmp_path / "end").touch()
    thread.join(60)
    assert not thread.is_alive() and len(found) == 1


def test_functions_are_called_with_reports(executor: Executor, tmp_path: Path, caplog: Any) -> None:
    def fail(report: Progress) -> None:
        raise ValueError("a mistake of the user")

    future = executor.submit(steps, str(tmp_path), 2)
    found: list[Progress] = []
    future.add_progress_callback(fail)
    future.add_progress_callback(found.append)
    for step in (1, 2):
        (tmp_path / str(step)).touch()
        until("a report", lambda: [report.done for report in found][-1:] == [step])
    (tmp_path / "end").touch()
    assert future.result(60) == 2
    assert caplog.text.count("ValueError: a mistake of the user") == 2
    assert executor.submit(abs, -1).result(60) == 1


def test_functions_can_wake_an_event_loop(executor: Executor, tmp_path: Path) -> None:
    async def test() -> None:
        loop, reports = asyncio.get_running_loop(), asyncio.Queue[Progress]()
        future = executor.submit(steps, str(tmp_path), 1)
        future.add_progress_callback(lambda report: loop.call_soon_threadsafe(reports.put_nowait, report))
        (tmp_path / "1").touch()
        assert (await reports.get()).fraction == 1.0
        (tmp_path / "end").touch()
        assert await asyncio.wrap_future(future) == 1

    asyncio.run(asyncio.wait_for(test(), 60))


def test_reports_end_however_the_call_does(executor: Executor, tmp_path: Path) -> None:
    crashing = executor.submit(crash_after_a_report, str(tmp_path / "crash"))
    reports = crashing.progress()
    assert reports.wait(60) == Progress(1)
    waiting, cancelled = executor.submit(steps, str(tmp_path), 1), executor.submit(abs, 1)
    progress, no_progress = waiting.progress(), cancelled.progress()
    assert cancelled.cancel()
    assert no_progress.wait(60) is None
    (tmp_path / "crash").touch()
    assert reports.wait(60) is None
    with pytest.raises(taskfork.WorkerDied):
        crashing.result(60)
    (tmp_path / "1").touch()
    assert progress.wait(60) == Progress(1, 1, "steps")
    assert waiting.stop()
    assert progress.wait(60) is None
    ended = executor.submit(abs, 1)
    ended.result(60)
    assert list(ended.progress()) == [] and ended.progress().latest is None


def talk(text: str) -> str:
    logging.getLogger("app").warning("about %s", text)
    logging.getLogger("app").debug("a detail")
    logger().info("said", 5)
    logger().data("text", text)
    return text


def hang(path: str) -> None:
    logging.getLogger("app").warning("hanging")
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def fail() -> None:
    logging.getLogger("app").error("failing")
    raise ValueError("no")


def test_a_function_gets_what_calls_log(recwarn: Any) -> None:
    found: list[tuple[Any, Any]] = []
    with Executor(2, log=lambda future, message: found.append((future, message))) as executor:
        futures = [executor.submit(talk, text) for text in "abc"]
        assert [future.result(60) for future in futures] == ["a", "b", "c"]
        # They come before the result does.
        assert len(found) == 3
        for future, text in zip(futures, "abc"):
            (message,) = [message for of, message in found if of is future]
            assert [line[1:] for line in message["logs"]] == [
                [20, f"app: about {text}"], [40, "app: a detail"], [30, "said", 5]
            ]  # fmt: skip
            assert message["data"] == {"text": text}
        failing = executor.submit(fail)
        with pytest.raises(ValueError, match="no"):
            failing.result(60)
        assert found[-1][0] is failing and found[-1][1]["logs"][0][1:] == [10, "app: failing"]
        assert list(executor.map(talk, ["d", "e"], chunksize=2)) == ["d", "e"]
        assert len(found[-1][1]["logs"]) == 6
    # Checkouts are released, and not left to the collector.
    assert not [warning for warning in recwarn if warning.category is ResourceWarning]


def test_a_logger_gets_what_calls_log(caplog: Any) -> None:
    caplog.set_level(logging.INFO, "mine")
    with Executor(1, log=logging.getLogger("mine")) as executor:
        begun = time.time()
        executor.submit(talk, "a").result(60)
        with pytest.raises(ValueError):
            executor.submit(fail).result(60)
    lines = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "mine"]
    assert lines == [("WARNING", "app: about a"), ("INFO", "said 5"), ("ERROR", "app: failing")]
    assert all(begun - 1 < record.created < time.time() + 1 for record in caplog.records)


def test_calls_with_a_log_are_calls_like_any_other(tmp_path: Path, monkeypatch: Any) -> None:
    printed: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: printed.append(raised.exc_value))

    def mistaken(future: Any, message: Any) -> None:
        raise ValueError("a mistake of the user")

    with Executor(1, log=mistaken) as executor:
        assert executor.submit(talk, "a").result(60) == "a"
        path = tmp_path / "begun"
        hanging = executor.submit(hang, str(path))
        until("it runs", lambda: path.exists() and bool(path.read_text()))
        assert hanging.stop()
        with pytest.raises(concurrent.futures.CancelledError):
            hanging.result(60)
        until("its end", lambda: is_gone(int(path.read_text())))
        with pytest.raises(taskfork.TimedOut):
            executor.submit_within(0.3, time.sleep, 60).result(60)
        with pytest.raises(taskfork.WorkerDied):
            executor.submit(os._exit, 3).result(60)
        assert executor.submit(abs, -1).result(60) == 1
    assert str(printed[0]) == "a mistake of the user"
    with pytest.raises(TypeError, match="log must be a function or a logger"):
        Executor(1, log=5)  # type: ignore[arg-type]
