"""The input of a call: what a method gets for the items that its caller streams."""

from __future__ import annotations

import threading
from typing import Any, Callable, Generic, NoReturn, Optional, Protocol, TypeVar

from ._conversions import Converter, Unfit, apply
from ._emitter import ItemError

__all__ = ["Input", "InputClosed", "InputFailed", "ItemError"]

T_co = TypeVar("T_co", covariant=True)


class InputClosed(Exception):
    """Raised by the input of a call that its caller has cancelled. Nothing that the call does from here on reaches anybody."""


class InputFailed(Exception):
    """Raised by the input of a call if the iterable of its caller has failed. The text is that of its error. The call fails
    with that error at the caller, whatever the method does."""


class Port(Protocol):
    """Where the items of one call come from."""

    def open(self) -> None:
        """Asks the caller for the first items."""

    def take(self, waits: bool) -> Optional[tuple[Any]]:
        """The next item in a tuple. None if there is none yet and it does not wait, or if the time of the call is over. Raises
        ``StopIteration`` at the end."""

    def prepare_wait(self) -> Optional[int]:
        """The descriptor that can be read once ``take`` may have something. None if it may have something now."""


class Input(Generic[T_co]):
    """The items that a caller streams to a method: an iterator, and an asynchronous iterator for coroutines. A method gets one for
    its parameter with the annotation ``Input[T]``, ``Iterator[T]`` or ``AsyncIterator[T]``.

    It waits for the next item. The caller is at most 256 KiB, 1,024 items or 64 descriptors ahead of it, and one item more. While a
    coroutine waits, others of its worker go on. The time limit of the call includes the waits: ``DeadlineExceeded`` is raised when
    it is over.

    Items are converted to ``T``, as arguments are to the annotations of their parameters.

    Raises ``InputClosed`` if the caller no longer waits for the call, ``InputFailed`` if the caller's iterable has failed, and
    ``ItemError`` for an item that cannot be read; others can follow. Only the thread that runs the method can use it, and only
    before the method has ended."""

    def __init__(self, port: Port, late: Callable[[], NoReturn], converter: Optional[Converter]) -> None:
        """``late`` raises ``DeadlineExceeded``."""
        self._port: Optional[Port] = port
        self._converter = converter
        self._late = late
        self._thread = threading.get_ident()
        self._is_over = False
        self._is_awaited = False

    def __iter__(self) -> Input[T_co]:
        return self

    def __next__(self) -> T_co:
        found = self._take(True)
        if found is None:
            self._late()
        item: T_co = found[0]
        return item

    def __aiter__(self) -> Input[T_co]:
        return self

    async def __anext__(self) -> T_co:
        if self._is_awaited:
            raise RuntimeError("another task waits for this input")
        while True:
            try:
                found = self._take(False)
            except StopIteration:
                raise StopAsyncIteration from None
            if found is not None:
                item: T_co = found[0]
                return item
            file = None if self._port is None else self._port.prepare_wait()
            if file is not None:
                self._is_awaited = True
                try:
                    await _readable(file)
                finally:
                    self._is_awaited = False

    def _take(self, waits: bool) -> Optional[tuple[Any]]:
        if threading.get_ident() != self._thread:
            raise RuntimeError("the input of a call can only be used by the thread that runs its method")
        if self._is_over:
            raise StopIteration
        if self._port is None:
            raise InputClosed("the call of this input has ended")
        try:
            found = self._port.take(waits)
        except (StopIteration, InputClosed, InputFailed):
            self._is_over = True
            raise
        if found is None or self._converter is None:
            return found
        try:
            return (apply(self._converter.run, "an item of the input", found[0]),)
        except Unfit as unfit:
            raise ItemError(str(unfit)) from unfit.__cause__

    def _close(self) -> None:
        """The call has ended."""
        self._port = None


async def _readable(file: int) -> None:
    """Waits until a descriptor can be read."""
    # Imported here: workers without coroutines start faster.
    import asyncio

    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(file, wake)
    try:
        await ready
    finally:
        loop.remove_reader(file)
