"""Calls that have been made: their results, items and progress."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Awaitable, Callable, Generator, Generic, Optional, TypeVar

from . import _native
from ._conversions import Receive, Unfit, apply
from ._loops import check, running_loop
from ._progress import Progress
from .errors import Aborted, ResultError

T = TypeVar("T")


class Call(asyncio.Future[T]):
    """A call that has been made: a future of its result. Awaiting it returns the result or raises a ``taskfork.Error``.

    It runs whether it is awaited or not. Cancelling it takes it back if it has not begun. A call that runs continues
    while its checkout exists; otherwise its worker is killed."""

    _key: Optional[int] = None
    _native_loop: _native.EventLoop

    def __await__(self) -> Generator[Any, None, T]:
        # In another loop, asyncio says what is wrong.
        if self._key is not None and not self.done() and running_loop() is self.get_loop():
            self._native_loop.complete_now(self._key)
        return super().__await__()

    __iter__ = __await__

    def cancel(self, msg: Optional[Any] = None) -> bool:
        """Cancels the call; see the class. False if it is over already."""
        cancelled = super().cancel(msg)
        if cancelled and self._key is not None:
            self._native_loop.cancel(self._key)
        return cancelled

    def progress(self) -> Reports:
        """How far the call has got, as its worker reports. There are no reports of a call that is over."""
        native = None if self._key is None or self.done() else self._native_loop.progress(self._key)
        return Reports(native, self.get_loop(), self._native_loop)


class ConvertedCall(Call[T]):
    """A call whose result is converted."""

    def __init__(self, receive: Receive, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._receive = receive

    def set_result(self, result: Any) -> None:
        try:
            made = converted("the result", result, self._receive)
        except BaseException as error:
            # A call that was left open would never end.
            self.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            super().set_result(made)


def converted(what: str, value: Any, receive: Optional[Receive]) -> Any:
    """A result or an item as its caller wants it. Raises ``ResultError``."""
    if receive is None:
        return value
    try:
        return apply(receive, what, value)
    except Unfit as unfit:
        raise ResultError(str(unfit)) from unfit.__cause__


class Changes:
    """Lets tasks wait until something of a call has arrived."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        native_loop: _native.EventLoop,
        begin: Callable[[_native.EventLoop, asyncio.Future[None]], int],
    ) -> None:
        self._loop, self._native_loop, self._begin = loop, native_loop, begin
        self._pid = os.getpid()
        self._change: Optional[Call[None]] = None

    def check(self) -> None:
        """``RuntimeError`` in another event loop: this one completes the changes."""
        check(self._loop, self._pid)

    @property
    def are_awaited(self) -> bool:
        """Whether the event loop waits for the next change."""
        return self._change is not None and not self._change.done()

    def next(self) -> Awaitable[None]:
        """Waits for the next change. Tasks that are cancelled meanwhile disturb no others."""
        if self._change is None or self._change.done():
            change: Call[None] = Call(loop=self._loop)
            change._native_loop = self._native_loop
            change._key = self._begin(self._native_loop, change)
            self._change = change
        return asyncio.shield(self._change)

    def end(self) -> None:
        """There will be no other change: whoever waits goes on."""
        change = self._change
        if change is not None and not change.done():
            change.set_result(None)
            if change._key is not None:
                self._native_loop.cancel(change._key)

    def __del__(self) -> None:
        # Nobody waits any more, and the event loop would keep the change. This may be the thread of a collector.
        change = getattr(self, "_change", None)
        if change is not None and change._key is not None:
            self._native_loop.cancel(change._key)


class Reports:
    """Reports of how far a call has got: an asynchronous iterator of ``Progress`` that ends with the call.

    It waits for the next report, and returns the latest one: others may have come before. There are at most 20 a second.
    One just before the end of the call may not arrive."""

    def __init__(
        self, native: Optional[_native.Reports], loop: asyncio.AbstractEventLoop, native_loop: _native.EventLoop
    ) -> None:
        self._native = native
        self._latest: Optional[Progress] = None
        self._changes = None if native is None else Changes(loop, native_loop, native.changed)

    @property
    def latest(self) -> Optional[Progress]:
        """The latest report; None if there was none."""
        report = None if self._native is None else self._native.latest()
        return self._latest if report is None else Progress(*report)

    def __aiter__(self) -> Reports:
        return self

    async def __anext__(self) -> Progress:
        report = await self.changed()
        if report is None:
            raise StopAsyncIteration
        return report

    async def changed(self) -> Optional[Progress]:
        """Waits for a report that this object has not returned; None if the call ends first."""
        if self._native is None or self._changes is None:
            return None
        self._changes.check()
        while True:
            found = self._native.take(self._changes.are_awaited)
            if found is None:
                await self._changes.next()
                continue
            (report,) = found
            if report is None:
                return None
            self._latest = Progress(*report)
            return self._latest


class Ending:
    """How a call that streams has ended: with a result, or with an error."""

    def __init__(self, result: Any, error: Optional[BaseException]) -> None:
        self._result, self._error = result, error

    @property
    def is_error(self) -> bool:
        return self._error is not None

    def get(self) -> Any:
        """Returns the result, or raises the error."""
        if self._error is not None:
            raise self._error
        return self._result


class Items(Generic[T]):
    """What a stream is told of its call, for both clients."""

    def __init__(
        self, native: Optional[_native.Stream], yields: Optional[Receive] = None, returns: Optional[Receive] = None
    ) -> None:
        self.native = native
        self._yields, self._returns = yields, returns
        #: There are no more items.
        self.is_over = False
        #: Why there are none, if these were not all of them.
        self._cut: Optional[Callable[[], BaseException]] = None
        self.ending: Optional[Ending] = None
        self._is_finishing = False
        if native is None:
            self.ending = Ending(None, Aborted("the checkout was released", may_have_run=False))

    def accept(self, found: tuple[str, Any]) -> tuple[bool, Any]:
        """Notes what has arrived. Returns whether it is an item, and the item. Raises ``ResultError`` for an item that cannot be
        converted."""
        kind, value = found
        if kind == "item":
            # One that came before the result was asked for is not wanted.
            return (False, None) if self._is_finishing else (True, converted("an item", value, self._yields))
        if kind == "end":
            self.is_over = True
        elif kind == "error":
            self.ending = Ending(None, value)
        else:
            self.ending = self._result(value)
        return False, None

    def _result(self, value: Any) -> Ending:
        try:
            return Ending(converted("the result", value, self._returns), None)
        except ResultError as error:
            return Ending(None, error)

    def end(self) -> None:
        """Ends the iteration: raises the error of the call, once, and always what has ended it before its end."""
        if self._cut is not None:
            raise self._cut()
        was_over, self.is_over = self.is_over, True
        if not was_over and self.ending is not None:
            self.ending.get()

    def finish(self) -> None:
        """From here on the result is wanted, and items are not. ``RuntimeError`` while another thread waits for an item."""
        if not self._is_finishing and self.native is not None:
            self.native.finish()
            if not self.is_over and self.ending is None:
                self._cut = _discarded
            self._is_finishing = self.is_over = True

    def close(self, reason: str) -> None:
        """Stops the call, if it has not ended."""
        if self.ending is None and self.native is not None:
            self.ending = Ending(None, Aborted(reason))
            if not self.is_over:
                self._cut = lambda: Aborted(reason)
            self.native.close()
        self.is_over = True


def _discarded() -> BaseException:
    return RuntimeError("the result of this stream was asked for before its last item: the other items are discarded")


class Stream:
    """A call that streams: an asynchronous iterator of its items. ``result`` returns the call's result.

    The worker is at most 256 KiB and one item ahead of its reader, and then waits. The time limit is that of the whole
    call. If the call fails, the items that came before are returned first, and then the error is raised. Calls that are
    made behind it on the same checkout are sent once it has ended.

    Iteration ends only behind the last item. If the stream or its client is closed before that, it raises ``Aborted``; if ``result``
    was asked for, ``RuntimeError``.

    ``aclose``, the end of an ``async with``, and dropping the last reference, which the end of an ``async for`` over
    ``checkout.stream(…)`` does, cancel it: the worker's next ``yield`` that waits fails, and the result is discarded. If
    its checkout is released as well, or the stream was made on a client, the worker is killed. Cancelling a task that
    waits for the next item loses no item, and does not cancel the stream."""

    def __init__(
        self,
        native: Optional[_native.Stream],
        loop: asyncio.AbstractEventLoop,
        native_loop: _native.EventLoop,
        yields: Optional[Receive] = None,
        returns: Optional[Receive] = None,
    ) -> None:
        self._loop, self._native_loop = loop, native_loop
        self._items: Items[Any] = Items(native, yields, returns)
        self._changes = None if native is None else Changes(loop, native_loop, native.changed)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        items = self._items
        self._check()
        while items.ending is None and not items.is_over:
            is_item, item = await self._arrived()
            if is_item:
                return item
        items.end()
        raise StopAsyncIteration

    async def _arrived(self) -> tuple[bool, Any]:
        """Waits until something has arrived; whether it is an item, and the item."""
        native, changes = self._items.native, self._changes
        assert native is not None and changes is not None
        found = native.take(changes.are_awaited)
        if found is None:
            await changes.next()
            return False, None
        return self._items.accept(found)

    async def result(self) -> Any:
        """Waits for the end of the call, and returns its result. Items that were not taken are discarded. Raises an
        ``Error``. Cancelling it cancels the call."""
        self._check()
        self._items.finish()
        try:
            while self._items.ending is None:
                await self._arrived()
        except asyncio.CancelledError:
            self._close("the wait for the result of the stream was cancelled")
            raise
        return self._items.ending.get()

    def progress(self) -> Reports:
        """How far the call has got, as its worker reports."""
        native = self._items.native
        return Reports(None if native is None else native.progress(), self._loop, self._native_loop)

    async def aclose(self) -> None:
        """Cancels the call, if it has not ended. It does not wait for the worker."""
        self._check()
        self._close("the stream was closed before its result was asked for")

    def _check(self) -> None:
        if self._changes is not None:
            self._changes.check()

    def _close(self, reason: str) -> None:
        self._items.close(reason)
        if self._changes is not None:
            self._changes.end()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # A wait for a report may keep the call.
        items = getattr(self, "_items", None)
        if items is not None and items.native is not None:
            items.native.close()
