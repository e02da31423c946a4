"""Futures of an executor, with the progress of their calls, and the logs of these calls."""

from __future__ import annotations

import logging
import time
from concurrent.futures import CancelledError, Future as _Future, TimeoutError
from typing import Any, Callable, Optional, Protocol, TypeVar, Union

from ._progress import Progress

T = TypeVar("T")

#: Gets what a call has logged: the call's future, and a message of Log::Defer.
OnLog = Callable[["Future[Any]", dict[str, Any]], None]

#: The states of a future that is not complete.
_UNDONE = ("PENDING", "RUNNING")

_LOGGER = logging.getLogger("taskfork.executor")


class Pool(Protocol):
    """What runs the calls of an executor."""

    def stop(self, future: Future[Any]) -> bool: ...
    def wait(self, future: Future[Any], timeout: Optional[float], reads: bool) -> None:
        """Waits until a future is complete. With ``reads`` it may complete the future itself."""

    def watch(self, future: Future[Any]) -> None:
        """Passes the reports of a call's progress to its future, from now on or from when it begins."""


def _are_known() -> bool:
    """Whether futures of this Python have the private attributes that native code uses, as it uses them."""
    future: Any = _Future()
    attributes = vars(future)
    if not {"_condition", "_state", "_result", "_exception", "_waiters", "_done_callbacks"} <= attributes.keys():
        return False
    if not hasattr(future._condition, "_waiters") or (future._state, future._exception) != ("PENDING", None):
        return False
    future.add_done_callback(id)
    if (future._done_callbacks, future._waiters) != ([id], []):
        return False
    future.set_running_or_notify_cancel()
    if future._state != "RUNNING":
        return False
    future.set_result(7)
    return (future._state, future._result, future._exception) == ("FINISHED", 7, None)


#: Otherwise the executor's thread does all by the methods of futures.
ARE_KNOWN = _are_known()


class Future(_Future[T]):
    """A call of an executor: a ``concurrent.futures.Future`` that can be stopped while it runs, and that knows how far its call has
    got. All methods may be called from any thread."""

    _is_watched = False
    #: The executor passes reports on. Only its thread changes this.
    _has_watcher = False
    _latest: Optional[Progress] = None
    #: How many reports have come.
    _reports = 0
    _on_progress: tuple[Callable[[Progress], Any], ...] = ()

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self._pool = pool

    # These two use no `Condition`: an exception that a handler of a signal raises in its Python code could leave it locked.

    def result(self, timeout: Optional[float] = None) -> T:
        """Waits for the result and returns it, or raises the exception of the call; ``TimeoutError`` after so many seconds. The time
        limits the wait for the worker's answer: unpickling a result may take longer."""
        if not ARE_KNOWN:
            return super().result(timeout)
        error = self._waited(timeout, True)
        if error is None:
            result: Any = self._result
            return result  # type: ignore[no-any-return]
        try:
            raise error
        finally:
            # The frames of the error refer to them.
            del self, error

    def exception(self, timeout: Optional[float] = None) -> Optional[BaseException]:
        if not ARE_KNOWN:
            return super().exception(timeout)
        return self._waited(timeout, False)

    def _waited(self, timeout: Optional[float], reads: bool) -> Optional[BaseException]:
        """Waits for the end of the call, and returns its exception."""
        if self._state in _UNDONE:
            self._pool.wait(self, timeout, reads)
        state = self._state
        if state == "FINISHED":
            return self._exception
        if state in _UNDONE:
            raise TimeoutError
        raise CancelledError

    def stop(self) -> bool:
        """Cancels the call, also if it runs: its worker is killed then, and another one replaces it. Whoever waits gets
        ``CancelledError``. False if the call has ended already."""
        return self.cancel() or self._pool.stop(self)

    def progress(self) -> Reports:
        """How far the call has got, as its function says by ``taskfork.context().progress``. It can be asked for before the call runs.
        What was reported long before it was asked for the first time may be lost."""
        self._watch()
        return Reports(self)

    def add_progress_callback(self, function: Callable[[Progress], Any]) -> None:
        """Calls a function with each report of the call's progress from here on, in a thread of the executor, which must not wait. If
        it raises an exception, that is logged."""
        with self._condition:
            self._on_progress += (function,)
        self._watch()

    def _watch(self) -> None:
        with self._condition:
            was_watched, self._is_watched = self._is_watched, True
        if not was_watched:
            self._pool.watch(self)

    def _report(self, report: Progress) -> None:
        with self._condition:
            self._latest = report
            self._reports += 1
            functions = self._on_progress
            self._condition.notify_all()
        # Without the lock.
        for function in functions:
            try:
                function(report)
            except Exception:
                _LOGGER.exception("a callback for the progress of %r has raised an exception", self)


class Reports:
    """Reports of how far a call of an executor has got: an iterator of ``Progress`` that ends with the call. It waits for the next
    report, and returns the latest one: others may have come before. There are at most 20 a second. One just before the end of the
    call may not arrive. Each thread needs an object of its own."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future
        self._seen = 0

    @property
    def latest(self) -> Optional[Progress]:
        """The latest report; None if there was none."""
        return self._future._latest

    def __iter__(self) -> Reports:
        return self

    def __next__(self) -> Progress:
        found = self.wait()
        if found is None:
            raise StopIteration
        return found

    def wait(self, timeout: Optional[float] = None) -> Optional[Progress]:
        """Waits for a report that this object has not returned; None if the call ends first. ``TimeoutError`` after so many
        seconds."""
        future = self._future
        with future._condition:
            is_there = future._condition.wait_for(lambda: future._reports > self._seen or future.done(), timeout)
            if not is_there:
                raise TimeoutError(f"no report of progress within {timeout} seconds")
            if future._reports == self._seen:
                return None
            self._seen = future._reports
            return future._latest


def function_for(log: Union[OnLog, logging.Logger, None]) -> Optional[OnLog]:
    """The function that gets what calls log. ``TypeError`` if it is none, and no logger."""
    if isinstance(log, logging.Logger):
        return _to_logger(log)
    if log is not None and not callable(log):
        raise TypeError("log must be a function or a logger of `logging`")
    return log


#: The least important level of a message, and the level of ``logging`` for it.
_LEVELS = ((10, logging.ERROR), (20, logging.WARNING), (30, logging.INFO))


def _to_logger(logger: logging.Logger) -> OnLog:
    def hand_over(future: Future[Any], message: dict[str, Any]) -> None:
        for line in message.get("logs", ()):
            behind, number, *items = line
            level = next((level for most, level in _LEVELS if number <= most), logging.DEBUG)
            if logger.isEnabledFor(level):
                text = " ".join(map(str, items))
                record = logger.makeRecord(logger.name, level, "(worker)", 0, "%s", (text,), None)
                # When the worker logged it: the message comes at the end of the call.
                record.created = message.get("start", time.time()) + behind
                record.msecs = record.created % 1 * 1000
                logger.handle(record)

    return hand_over
