"""Calls that have been made: their results, items and progress."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Callable, Deque, Generator, Generic, Optional, TypeVar

from . import _progress
from ._progress import Progress
from .errors import Aborted

#: How much credit a worker has beyond the items that were taken.
WINDOW = 262_144

#: The most credit that a message can give.
MOST_CREDIT = (1 << 64) - 1

T = TypeVar("T")


class Signal:
    """Wakes the tasks that wait for a change."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            await waiting
        finally:
            # Still there if the task was cancelled.
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    def notify(self) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)


class Running:
    """What arrives for a call before its answer. ``future`` gets the answer."""

    def __init__(self, future: asyncio.Future[Any], streams: bool) -> None:
        self.future = future
        self.streams = streams
        #: Something has arrived, or the call has ended.
        self.changed = Signal()
        future.add_done_callback(lambda _: self.changed.notify())
        self.progress: Optional[Progress] = None
        #: How many reports have arrived.
        self.reports = 0
        #: Items that were not taken, and their costs.
        self.items: Deque[tuple[Any, int]] = deque()
        #: How much credit the worker has got in all, how much its items have used, and those that were taken.
        self.credit, self.used, self.taken = WINDOW, 0, 0
        #: Nobody will take items; the result is wanted.
        self.is_draining = False
        #: Gives the worker credit, while the call runs.
        self.give_credit: Callable[[int], None] = lambda _: None

    def add_report(self, report: Any) -> None:
        """Adds a report of a worker. One that cannot be read is ignored."""
        progress = _progress.read(report)
        if progress is not None:
            self.progress = progress
            self.reports += 1
            self.changed.notify()

    def add_item(self, item: Any, cost: int) -> None:
        """Adds an item that has arrived."""
        self.used += cost
        if self.future.cancelled():
            # It gets no more credit: the worker learns then that nobody reads on.
            return
        self.items.append((item, cost))
        if self.is_draining:
            self.take()
        self.changed.notify()

    def take(self) -> Any:
        """Takes the first item, and gives credit for others."""
        item, cost = self.items.popleft()
        self.taken += cost
        # A worker may say that an item costs as much as a number can.
        credit = min(self.taken + WINDOW, MOST_CREDIT)
        if credit - self.credit >= WINDOW // 2 and not self.future.done():
            self.credit = credit
            self.give_credit(credit)
        return item

    def drain(self) -> None:
        """Discards the items that were not taken and those to come."""
        self.is_draining = True
        while self.items:
            self.take()


class Call(Generic[T]):
    """A call that has been made. Awaiting it returns its result or raises an ``Error``.

    It runs whether it is awaited or not. Cancelling it removes it from the queue if it has not begun; a running call
    continues."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._future: asyncio.Future[T] = running.future

    def __await__(self) -> Generator[Any, None, T]:
        return self._future.__await__()

    def cancel(self) -> None:
        """Cancels the call; see the class."""
        self._future.cancel()

    def done(self) -> bool:
        """Whether the call has a result or an error."""
        return self._future.done()

    def progress(self) -> Reports:
        """How far the call has got, as its worker reports."""
        return Reports(self._running)


class Reports:
    """Reports of how far a call has got: an asynchronous iterator of ``Progress`` that ends with the call.

    It waits for the next report, and returns the latest one: others may have come before. There are at most 20 a second.
    One just before the end of the call may not arrive."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._seen = 0

    @property
    def latest(self) -> Optional[Progress]:
        """The latest report; None if there was none."""
        return self._running.progress

    def __aiter__(self) -> Reports:
        return self

    async def __anext__(self) -> Progress:
        report = await self.changed()
        if report is None:
            raise StopAsyncIteration
        return report

    async def changed(self) -> Optional[Progress]:
        """Waits for a report that this object has not returned; None if the call ends first."""
        running = self._running
        while running.reports == self._seen:
            if running.future.done():
                return None
            await running.changed.wait()
        self._seen = running.reports
        return running.progress


#: There are no more items.
END = object()


class Stream:
    """A call that streams: an asynchronous iterator of its items. ``result`` returns the call's result.

    The worker is at most 256 KiB and one item ahead of its reader, and then waits. The time limit is that of the whole
    call. If the call fails, the items that came before are returned first, and then the error is raised. Calls that are
    made behind it on the same checkout are sent once it has ended.

    ``aclose``, the end of an ``async with``, and dropping the last reference, which the end of an ``async for`` over
    ``checkout.stream(…)`` does, cancel it: the worker's next ``yield`` or ``send`` that waits fails, and the result is
    discarded. If its checkout is released as well, or the stream was made on a client, the worker is killed. Cancelling
    a task that waits for the next item loses no item, and does not cancel the stream."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._is_over = False
        self._is_closed = False

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        item = await self._next()
        if item is END:
            raise StopAsyncIteration
        return item

    async def _next(self) -> Any:
        """The next item, or ``END``. The error of the call is raised once."""
        running = self._running
        while not running.items:
            if running.future.done():
                was_over, self._is_over = self._is_over, True
                if not was_over and not running.future.cancelled():
                    running.future.result()
                return END
            await running.changed.wait()
        return running.take()

    async def result(self) -> Any:
        """Waits for the end of the call, and returns its result. Items that were not taken are discarded. Raises an
        ``Error``. Cancelling it cancels the call."""
        if self._is_closed:
            raise Aborted("the stream was closed before its result was asked for")
        self._is_over = True
        self._running.drain()
        return await self._running.future

    def progress(self) -> Reports:
        """How far the call has got, as its worker reports."""
        return Reports(self._running)

    async def aclose(self) -> None:
        """Cancels the call, if it has not ended. It does not wait for the worker."""
        self._cancel()

    def _cancel(self) -> None:
        self._is_over = True
        self._is_closed = self._is_closed or not self._running.future.done() or self._running.future.cancelled()
        self._running.items.clear()
        self._running.future.cancel()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._cancel()

    def __del__(self) -> None:
        future = self._running.future
        if not future.done():
            try:
                # It may be another thread that drops it.
                future.get_loop().call_soon_threadsafe(future.cancel)
            except RuntimeError:
                # The loop is closed.
                pass
