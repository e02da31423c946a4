"""What calls stream to their methods: the items of an iterable, which are taken as fast as the worker takes them.

A source is what the native module asks for items while it polls the call: ``take`` returns an item in a tuple, raises
``StopIteration`` at the end, or returns None and calls ``wake`` of its argument later. A text says why there are no more.
``close`` ends it."""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable
from typing import Any, Optional, Union

from . import _native

#: What a call can stream to its method.
Items = Union["Iterable[Any]", "AsyncIterable[Any]"]

#: So many items are taken from an asynchronous iterable before other tasks get a turn.
_ITEMS_OF_A_TURN = 256


def blocking_source(items: Optional[Iterable[Any]]) -> Optional[Source]:
    """The source for a client without an event loop. ``TypeError`` if these are no items."""
    if items is None:
        return None
    if isinstance(items, AsyncIterable):
        raise TypeError("input is an asynchronous iterable, which only the client for asyncio, `taskfork.Client`, can take")
    return Source(_iterator(items), None)


def source(
    items: Optional[Items], loop: asyncio.AbstractEventLoop, native_loop: _native.EventLoop
) -> Union[Source, AsyncSource, None]:
    """The source for a client of this event loop. ``TypeError`` if these are no items."""
    if items is None:
        return None
    if isinstance(items, AsyncIterable):
        return AsyncSource(items.__aiter__(), loop, native_loop)
    return Source(_iterator(items), contextvars.copy_context())


def _iterator(items: Iterable[Any]) -> Any:
    if isinstance(items, (str, bytes, bytearray, memoryview)):
        # Its characters or numbers would be the items.
        raise TypeError(f"input is a {type(items).__name__}, and no iterable of items: pass a list with it")
    try:
        return iter(items)
    except TypeError as error:
        raise TypeError(f"input is a {type(items).__name__}, and no iterable of items") from error


class Source:
    """The items of an iterable."""

    def __init__(self, items: Any, context: Optional[contextvars.Context]) -> None:
        self._items = items
        #: That of the caller, if the event loop runs this in another one.
        self._context = context

    def take(self, wake: _native.Wake) -> tuple[Any]:
        return (next(self._items) if self._context is None else self._context.run(next, self._items),)

    def close(self) -> None:
        # Other iterators, such as files, may be used further.
        if isinstance(self._items, Generator):
            self._items.close()


class AsyncSource:
    """The items of an asynchronous iterable, which a task takes one by one.

    It keeps no event loop: one that has ended with calls in it is garbage."""

    def __init__(
        self, items: AsyncIterator[Any], loop: asyncio.AbstractEventLoop, native_loop: _native.EventLoop
    ) -> None:
        #: None once they have ended.
        self._items: Optional[AsyncIterator[Any]] = items
        self._loop, self._native_loop = weakref.ref(loop), weakref.ref(native_loop)
        self._context = contextvars.copy_context()
        self._task: Optional[asyncio.Task[None]] = None
        #: What the task waits for until an item is wanted.
        self._waiter: Optional[asyncio.Future[None]] = None
        self._is_wanted = False
        self._wake: Optional[_native.Wake] = None
        self._item: Optional[tuple[Any]] = None
        #: How the items have ended: ``StopIteration``, what was raised, or another reason.
        self._end: Union[BaseException, str, None] = None
        self._is_closed = False

    def take(self, wake: _native.Wake) -> Union[tuple[Any], str, None]:
        if self._item is not None:
            item, self._item = self._item, None
            return item
        if isinstance(self._end, BaseException):
            raise self._end
        if self._end is not None:
            return self._end
        self._wake, self._is_wanted = wake, True
        loop = self._loop()
        if self._task is None and loop is not None:
            self._task = self._context.run(loop.create_task, self._run())
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        return None

    def close(self) -> None:
        self._is_closed = True
        loop, task = self._loop(), self._task
        if task is None or loop is None or loop.is_closed():
            return
        if asyncio._get_running_loop() is loop:
            # The task may be what has let the call go on. It ends by itself then, and is not interrupted as it cleans up.
            if asyncio.current_task(loop) is not task:
                task.cancel()
        else:
            # A collector in another thread.
            loop.call_soon_threadsafe(task.cancel)

    async def _run(self) -> None:
        items, taken = self._items, 0
        assert items is not None
        try:
            while not self._is_closed:
                if not self._is_wanted:
                    self._waiter = asyncio.get_running_loop().create_future()
                    await self._waiter
                item = await items.__anext__()
                # The call asks for the next one when it has taken this one, also if it has asked meanwhile.
                self._item, self._is_wanted = (item,), False
                self._tell()
                taken += 1
                if taken % _ITEMS_OF_A_TURN == 0:
                    await asyncio.sleep(0)
        except StopAsyncIteration:
            self._finish(StopIteration())
        except (asyncio.CancelledError, GeneratorExit):
            # Somebody has cancelled this task, or the event loop ends: an exception that is kept would keep the loop's frames.
            self._finish("the task that takes the items was cancelled")
            raise
        except (KeyboardInterrupt, SystemExit) as error:
            # They end the event loop, as those of any task do.
            self._finish(error)
            raise
        except BaseException as error:
            self._finish(error)
        finally:
            self._items = self._task = self._waiter = None
            if isinstance(items, AsyncGenerator):
                await items.aclose()

    def _finish(self, end: Union[BaseException, str]) -> None:
        if not self._is_closed:
            self._end = end
            self._tell()

    def _tell(self) -> None:
        """Lets the call go on, within this turn of the event loop."""
        wake, native_loop = self._wake, self._native_loop()
        if wake is not None and native_loop is not None:
            wake.wake()
            native_loop.poll_noted()
