"""The client for programs without asyncio. Its event loop runs in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Callable, Coroutine, Optional, TypeVar

from . import _call
from . import client as _client
from ._progress import Progress
from .client import _UNSET, OnLog, Stats, Timeout
from .errors import Aborted

T = TypeVar("T")


class Client:
    """A pool of connections to the workers of one server. The options are those of :class:`taskfork.Client`.

    Close it, or use it in a ``with``. All methods may be called from any thread."""

    def __init__(self, address: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="taskfork-client", daemon=True
        )
        self._thread.start()
        try:
            self._inner = self._run_in_loop(lambda: _client.Client(address, **options))
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends all checkouts, closes all connections, and ends the thread."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._inner.close(), self._loop).result()
            self._stop()

    def checkout(self, *, timeout: Timeout = _UNSET, log: Optional[OnLog] = None) -> Checkout:
        """Begins a checkout: requests a worker, and returns without waiting for it."""
        return Checkout(self, self._run_in_loop(lambda: self._inner.checkout(timeout=timeout, log=log)))

    def call(self, method: str, *args: Any) -> Any:
        """Makes one call in a checkout of its own, and returns its result. Raises a ``taskfork.Error``."""
        with self.checkout() as checkout:
            return checkout.call(method, *args)

    def invoke(self, *args: Any) -> Any:
        """As ``call``, without a method's name."""
        with self.checkout() as checkout:
            return checkout.invoke(*args)

    def stream(self, method: str, *args: Any) -> Stream:
        """Calls a method that streams items, in a checkout of its own."""
        return Stream(self, self._run_in_loop(lambda: self._inner.stream(method, *args)))

    def stats(self) -> Stats:
        """The current numbers of workers and of waiting checkouts."""
        return self._run_in_loop(self._inner.stats)

    def _check_open(self) -> None:
        if self._loop.is_closed():
            raise Aborted("the client is closed")

    def _wait_for(self, what: Coroutine[Any, Any, T]) -> T:
        try:
            self._check_open()
        except Aborted:
            what.close()
            raise
        waiting = asyncio.run_coroutine_threadsafe(what, self._loop)
        try:
            return waiting.result()
        except BaseException:
            # After a KeyboardInterrupt, for example, nobody waits.
            waiting.cancel()
            raise

    def _run_in_loop(self, what: Callable[[], T]) -> T:
        self._check_open()

        async def run() -> T:
            return what()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Queued:
    """A call that :meth:`Checkout.queue` has made."""

    def __init__(self, owner: Client, inner: _call.Call[Any]) -> None:
        self._owner, self._inner = owner, inner

    def wait(self) -> Any:
        """Waits for the result and returns it. Raises a ``taskfork.Error``."""

        async def result() -> Any:
            return await self._inner

        waiting = asyncio.run_coroutine_threadsafe(result(), self._owner._loop)
        try:
            return waiting.result()
        except BaseException:
            # After a KeyboardInterrupt, for example, the result is not wanted.
            if not waiting.done():
                self._owner._loop.call_soon_threadsafe(self._inner.cancel)
            raise


    def progress(self) -> Reports:
        """How far the call has got, as its worker reports."""
        return Reports(self._owner, self._inner.progress())


class Reports:
    """Reports of how far a call has got: an iterator of ``Progress`` that ends with the call. It waits for the next report,
    and returns the latest one."""

    def __init__(self, owner: Client, inner: _call.Reports) -> None:
        self._owner, self._inner = owner, inner

    @property
    def latest(self) -> Optional[Progress]:
        """The latest report; None if there was none."""
        return self._inner.latest

    def __iter__(self) -> Reports:
        return self

    def __next__(self) -> Progress:
        report = self._owner._wait_for(self._inner.changed())
        if report is None:
            raise StopIteration
        return report


class Stream:
    """A call that streams: an iterator of its items. ``result`` returns the call's result.

    ``close``, the end of a ``with``, and dropping the last reference cancel it. See :class:`taskfork.Stream`."""

    def __init__(self, owner: Client, inner: _call.Stream) -> None:
        self._owner, self._inner = owner, inner

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        item = self._owner._wait_for(self._inner._next())
        if item is _call.END:
            raise StopIteration
        return item

    def result(self) -> Any:
        """Waits for the end of the call, and returns its result. Items that were not taken are discarded. Raises a
        ``taskfork.Error``."""
        return self._owner._wait_for(self._inner.result())

    def progress(self) -> Reports:
        """How far the call has got, as its worker reports."""
        return Reports(self._owner, self._inner.progress())

    def close(self) -> None:
        """Cancels the call, if it has not ended. It does not wait for the worker."""
        if not self._inner._running.future.done():
            self._owner._run_in_loop(self._inner._cancel)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class Checkout:
    """Exclusive use of one worker until ``release``, or the end of a ``with``."""

    def __init__(self, owner: Client, inner: _client.Checkout) -> None:
        self._owner, self._inner = owner, inner

    def __enter__(self) -> Checkout:
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()

    def call(self, method: str, *args: Any) -> Any:
        """Calls a method and returns its result. Raises a ``taskfork.Error``."""
        return self.queue(method, *args).wait()

    def invoke(self, *args: Any) -> Any:
        """As ``call``, without a method's name."""
        return Queued(self._owner, self._owner._run_in_loop(lambda: self._inner.invoke(*args))).wait()

    def queue(self, method: str, *args: Any) -> Queued:
        """Makes a call without waiting for it. Calls run in the order in which they are made."""
        return Queued(self._owner, self._owner._run_in_loop(lambda: self._inner.call(method, *args)))

    def stream(self, method: str, *args: Any) -> Stream:
        """Calls a method that streams items. Calls run in the order in which they are made."""
        return Stream(self._owner, self._owner._run_in_loop(lambda: self._inner.stream(method, *args)))

    def ready(self) -> None:
        """Waits until the checkout has a worker."""
        Queued(self._owner, self._owner._run_in_loop(self._inner.ready)).wait()

    def abort(self, message: str) -> None:
        """Ends the checkout. The running call and all others fail with ``message``."""
        self._owner._run_in_loop(lambda: self._inner.abort(message))

    #: The name that AnyEvent::Task gives to :meth:`abort`.
    throw_fatal_error = abort

    def release(self) -> None:
        """Returns the worker to the pool when its calls have ended."""
        if not self._owner._loop.is_closed():
            self._owner._run_in_loop(self._inner.release)
