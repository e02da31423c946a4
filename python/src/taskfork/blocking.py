"""The same pool for programs without asyncio. The event loop runs in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Callable, Optional, TypeVar

from . import client as _client
from .client import _UNSET, OnLog, Stats, Timeout

T = TypeVar("T")


class Client:
    """A pool of connections to the workers of one server; the options are those of
    :class:`taskfork.Client`. Close it, or use it in a ``with``."""

    def __init__(self, address: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="taskfork-client", daemon=True
        )
        self._thread.start()
        try:
            self._inner = self._do(lambda: _client.Client(address, **options))
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends all checkouts, closes all connections and ends the thread."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._inner.close(), self._loop).result()
            self._stop()

    def checkout(self, *, timeout: Timeout = _UNSET, log: Optional[OnLog] = None) -> Checkout:
        """Takes a worker, or a place in the queue for one; does not wait."""
        return Checkout(self, self._do(lambda: self._inner.checkout(timeout=timeout, log=log)))

    def call(self, method: str, *args: Any) -> Any:
        """A checkout of one call; waits for its result."""
        with self.checkout() as checkout:
            return checkout.call(method, *args)

    def invoke(self, *args: Any) -> Any:
        """A checkout of one call that names no method."""
        with self.checkout() as checkout:
            return checkout.invoke(*args)

    def stats(self) -> Stats:
        """How many workers and waiting checkouts there are now."""
        return self._do(self._inner.stats)

    def _do(self, what: Callable[[], T]) -> T:
        async def run() -> T:
            return what()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Queued:
    """A call that has been made; see :meth:`Checkout.queue`."""

    def __init__(self, owner: Client, inner: _client.Call[Any]) -> None:
        self._owner, self._inner = owner, inner

    def wait(self) -> Any:
        """Waits for its result."""

        async def result() -> Any:
            return await self._inner

        waiting = asyncio.run_coroutine_threadsafe(result(), self._owner._loop)
        try:
            return waiting.result()
        except BaseException:
            # As a KeyboardInterrupt, after which nobody wants it any more.
            if not waiting.done():
                self._owner._loop.call_soon_threadsafe(self._inner.cancel)
            raise


class Checkout:
    """Holds one worker exclusively until it is released, or to the end of a ``with``."""

    def __init__(self, owner: Client, inner: _client.Checkout) -> None:
        self._owner, self._inner = owner, inner

    def __enter__(self) -> Checkout:
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()

    def call(self, method: str, *args: Any) -> Any:
        """Calls a method and waits for its result."""
        return self.queue(method, *args).wait()

    def invoke(self, *args: Any) -> Any:
        """Makes a call that names no method, and waits for its result."""
        return Queued(self._owner, self._owner._do(lambda: self._inner.invoke(*args))).wait()

    def queue(self, method: str, *args: Any) -> Queued:
        """Makes a call without waiting for it; it runs in its turn."""
        return Queued(self._owner, self._owner._do(lambda: self._inner.call(method, *args)))

    def ready(self) -> None:
        """Waits until a worker is there."""
        Queued(self._owner, self._owner._do(self._inner.ready)).wait()

    def abort(self, message: str) -> None:
        """Ends the checkout and the call that runs."""
        self._owner._do(lambda: self._inner.abort(message))

    #: The name that AnyEvent::Task gives to :meth:`abort`.
    throw_fatal_error = abort

    def release(self) -> None:
        """Gives the worker back."""
        self._owner._do(self._inner.release)
