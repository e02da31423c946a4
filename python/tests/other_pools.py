"""The own tests of pebble and loky, run against `taskfork.Executor` by hand, with adapters for the methods that it has not:

    python3 other_pools.py pebble FOLDER
    python3 other_pools.py loky FOLDER

FOLDER is the unpacked source distribution of PyPI. The package, pytest, cloudpickle, and pebble or loky must be there. loky's
tests that count processes skip that without `psutil`."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator, Optional
from concurrent.futures.process import BrokenProcessPool

import taskfork

#: The classes of loky's tests for one kind of process, of this executor.
LOKY = '''
from other_pools import Context, LokyExecutor
from ._executor_mixin import ExecutorMixin
from ._test_process_executor import AsCompletedTests, ExecutorShutdownTest, ExecutorTest, WaitTests

class Mixin(ExecutorMixin):
    executor_type = LokyExecutor
    context = Context

class TestsShutdown(Mixin, ExecutorShutdownTest):
    def _prime_executor(self):
        pass

class TestsWait(Mixin, WaitTests): pass
class TestsAsCompleted(Mixin, AsCompletedTests): pass
class TestsExecutor(Mixin, ExecutorTest): pass
'''


class Handle(concurrent.futures.Future[Any]):
    """A future as those of pebble: `cancel` ends a call that runs."""

    inner: taskfork.executor.Future[Any]

    def cancel(self) -> bool:
        return self.inner.stop()


def expired(error: taskfork.WorkerDied) -> BaseException:
    import pebble

    code = error.exit if error.exit is not None else -(error.signal or 0)
    return pebble.ProcessExpired(str(error), code=code, pid=error.pid)


class Pool:
    """`pebble.ProcessPool`."""

    def __init__(
        self,
        max_workers: Optional[int] = None,
        max_tasks: int = 0,
        initializer: Optional[Callable[..., Any]] = None,
        initargs: Any = (),
        context: Any = None,
    ) -> None:
        self._executor = taskfork.Executor(
            max_workers, None, initializer, tuple(initargs), max_tasks_per_child=max_tasks or None
        )
        self._open, self._futures = True, []  # type: ignore[var-annotated]

    @property
    def active(self) -> bool:
        inner = self._executor._pool
        return inner._broken is None and (self._open or any(not future.done() for future in self._futures))

    def schedule(self, function: Any, args: Any = (), kwargs: Any = None, timeout: Optional[float] = None) -> Handle:
        if not self._open:
            raise RuntimeError("the pool is closed")
        try:
            inner = self._executor.submit_within(timeout, function, *args, **(kwargs or {}))
        except BrokenProcessPool as error:
            raise RuntimeError(str(error)) from None
        handle = Handle()
        handle.inner = inner
        self._futures.append(inner)
        inner.add_done_callback(partial(self._done, handle))
        return handle

    @staticmethod
    def _done(handle: Handle, inner: concurrent.futures.Future[Any]) -> None:
        handle.set_running_or_notify_cancel()
        try:
            handle.set_result(inner.result())
        except taskfork.WorkerDied as error:
            handle.set_exception(expired(error))
        except BaseException as error:
            handle.set_exception(error)

    def submit(self, function: Any, timeout: Optional[float], /, *args: Any, **kwargs: Any) -> Handle:
        return self.schedule(function, args, kwargs, timeout)

    def map(self, function: Any, *iterables: Any, chunksize: int = 1, timeout: Optional[float] = None) -> Any:
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1")
        chunks = list(taskfork.executor._chunks(chunksize, *iterables))
        return Mapped([self.schedule(taskfork.executor._run_chunk, (function, chunk), None, timeout) for chunk in chunks])

    def close(self) -> None:
        self._open = False

    def stop(self) -> None:
        self._open = False
        for future in self._futures:
            future.stop()

    def join(self, timeout: Optional[float] = None) -> None:
        if self._open:
            raise RuntimeError("the pool is active")
        concurrent.futures.wait(self._futures, timeout)
        if any(not future.done() for future in self._futures):
            raise concurrent.futures.TimeoutError("calls are running")
        self._executor.shutdown()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
        self.join()


class Mapped(concurrent.futures.Future[Any]):
    """What `map` of pebble returns."""

    def __init__(self, futures: list[Handle]) -> None:
        super().__init__()
        self._futures = futures
        self.set_result(Results(futures))

    def cancel(self) -> bool:
        return all([future.cancel() for future in self._futures])


class Results:
    """An iterator that goes on behind an error."""

    def __init__(self, futures: list[Handle]) -> None:
        self._futures, self._chunk = iter(futures), iter([])  # type: ignore[var-annotated]

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        for value in self._chunk:
            return value
        self._chunk = iter(next(self._futures).result())
        return next(self)


class Flags:
    """What loky says of an executor."""

    def __init__(self, executor: taskfork.Executor) -> None:
        self._pool = executor._pool

    @property
    def broken(self) -> Optional[str]:
        is_shut_down = self._pool._broken == "the executor is shut down"
        return None if is_shut_down else self._pool._broken

    @property
    def shutdown(self) -> bool:
        return self._pool._is_shut_down


class LokyExecutor(taskfork.Executor):
    """`loky.ProcessPoolExecutor`, which breaks by a crash."""

    def __init__(self, max_workers: Optional[int] = None, context: Any = None, timeout: Any = None, **options: Any) -> None:
        for name in ("job_reducers", "result_reducers", "env"):
            options.pop(name, None)
        super().__init__(max_workers, strict=True, **options)
        self._flags = Flags(self)
        # Only the number is looked at, and that they can be awaited.
        self._processes = {number: threading.Thread(target=int) for number in range(self._max_workers)}
        for process in self._processes.values():
            process.start()

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        from loky.process_executor import ShutdownExecutorError

        try:
            return super().submit(fn, *args, **kwargs)
        except BrokenProcessPool:
            raise
        except RuntimeError as error:
            raise ShutdownExecutorError(str(error)) from None

    def shutdown(self, wait: bool = True, kill_workers: bool = False) -> None:  # type: ignore[override]
        if kill_workers:
            for future in self._pool._tasks.running:
                future.stop()
        super().shutdown(wait, cancel_futures=kill_workers)


class Context:
    """Of a kind of processes: its events can be passed to any process."""

    manager: Any = None

    @classmethod
    def Event(cls) -> Any:
        cls.manager = cls.manager or multiprocessing.Manager()
        return cls.manager.Event()

    @staticmethod
    def get_start_method() -> str:
        return "loky"


def main() -> int:
    import pytest

    pool, folder = sys.argv[1], Path(sys.argv[2])
    sys.path.insert(0, str(Path(__file__).parent))
    if pool == "pebble":
        import pebble

        pebble.ProcessPool = Pool
        return int(pytest.main(["-q", "-rfE", "--tb=line", "-p", "no:cacheprovider", str(folder / "test" / "test_process_pool_fork.py")]))
    import loky.process_executor

    # That of loky is one of this class.
    taskfork.executor.BrokenProcessPool = loky.process_executor.TerminatedWorkerError  # type: ignore[misc]
    tests = folder / "tests" / "test_process_executor_taskfork.py"
    tests.write_text(LOKY)
    return int(pytest.main(["-q", "-rfE", "--tb=line", "-p", "no:cacheprovider", str(tests)]))


if __name__ == "__main__":
    started = time.monotonic()
    status = main()
    print(f"{time.monotonic() - started:.0f} s")
    sys.exit(status)
