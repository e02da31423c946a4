"""The client for programs without asyncio. Threads that wait for a result let others run."""

from __future__ import annotations

import os
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Iterable, Optional, Type, TypeVar, overload

from . import _native
from ._call import Items, converted
from ._caller import UNSET, Timeout, Unset, own_timeout
from ._conversions import Receive
from ._input import blocking_source
from ._keywords import join
from ._options import ClientOptions, of_client
from ._progress import Progress
from .client import OnLog, Stats
from .converters import receiver
from .errors import Aborted

if TYPE_CHECKING:
    from typing_extensions import Unpack

    # A client has an attribute `_native`.
    from ._native import Source, Stream as NativeStream

T = TypeVar("T")


class _Caller:
    """What a client and its checkouts share."""

    @overload
    def call(
        self,
        method: str,
        /,
        *args: Any,
        returns: Type[T],
        timeout: Timeout = UNSET,
        input: Optional[Iterable[Any]] = None,
        **keywords: Any,
    ) -> T: ...
    @overload
    def call(
        self,
        method: str,
        /,
        *args: Any,
        returns: Any = None,
        timeout: Timeout = UNSET,
        input: Optional[Iterable[Any]] = None,
        **keywords: Any,
    ) -> Any: ...
    def call(
        self,
        method: str,
        /,
        *args: Any,
        returns: Any = None,
        timeout: Timeout = UNSET,
        input: Optional[Iterable[Any]] = None,
        **keywords: Any,
    ) -> Any:
        """Calls a method, on a client in a checkout of its own, and returns its result. Raises a ``taskfork.Error``. The arguments are
        those of :meth:`taskfork.Client.call`; ``input`` is a plain iterable, whose items are taken by this thread."""
        receive = None if returns is None else receiver(returns)
        return converted("the result", self._wait(method, join(args, keywords), timeout, input), receive)

    @overload
    def invoke(
        self,
        *args: Any,
        returns: Type[T],
        timeout: Timeout = UNSET,
        input: Optional[Iterable[Any]] = None,
        **keywords: Any,
    ) -> T: ...
    @overload
    def invoke(
        self,
        *args: Any,
        returns: Any = None,
        timeout: Timeout = UNSET,
        input: Optional[Iterable[Any]] = None,
        **keywords: Any,
    ) -> Any: ...
    def invoke(
        self,
        *args: Any,
        returns: Any = None,
        timeout: Timeout = UNSET,
        input: Optional[Iterable[Any]] = None,
        **keywords: Any,
    ) -> Any:
        """As ``call``, without a method's name."""
        receive = None if returns is None else receiver(returns)
        return converted("the result", self._wait(None, join(args, keywords), timeout, input), receive)

    def _wait(
        self, method: Optional[str], args: tuple[Any, ...], timeout: Timeout, input: Optional[Iterable[Any]]
    ) -> Any:
        raise NotImplementedError

    def stream(
        self,
        method: str,
        /,
        *args: Any,
        yields: Any = None,
        returns: Any = None,
        timeout: Timeout = UNSET,
        input: Optional[Iterable[Any]] = None,
        **keywords: Any,
    ) -> Stream:
        """Calls a method that streams items. The arguments are those of ``call``; ``yields`` is the type of the items, as ``returns``
        is that of the result. An item that does not fit raises ``ResultError``, and others can follow. An ``input`` is sent while items
        or the result are waited for."""
        item, result = (None if each is None else receiver(each) for each in (yields, returns))
        native = self._stream(method, join(args, keywords), own_timeout(timeout), blocking_source(input))
        stream = Stream(native, item, result)
        self._keep(stream)
        return stream

    def _stream(
        self, method: str, args: tuple[Any, ...], timeout: Optional[float], input: Optional[Source]
    ) -> Optional[NativeStream]:
        raise NotImplementedError

    def _keep(self, stream: Stream) -> None:
        """Notes a stream that must end with the client."""


class Client(_Caller):
    """A pool of connections to the workers of one server. The options are those of :class:`taskfork.Client`.

    Close it, or use it in a ``with``. All methods may be called from any thread. In a child that has been forked since,
    it is a client with connections of its own."""

    def __init__(self, address: str, **options: Unpack[ClientOptions]) -> None:
        self._address, self._options = address, of_client(options)
        self._closed = False
        self._open()

    def _open(self) -> None:
        self._client = _native.Client(self._address, self._options)
        self._pid = os.getpid()
        self._checkouts: weakref.WeakSet[Checkout] = weakref.WeakSet()
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()

    @property
    def _native(self) -> _native.Client:
        if self._pid != os.getpid() and not self._closed:
            # Connections of the parent are of no use here.
            self._open()
        return self._client

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends all checkouts, whose calls fail with ``Aborted``, and closes all connections."""
        self._closed = True
        if self._pid != os.getpid():
            return
        for checkout in list(self._checkouts):
            checkout.abort("the client is closed")
        for stream in list(self._streams):
            stream._items.close("the client is closed")
        self._client.close_and_wait()

    def checkout(self, *, timeout: Timeout = UNSET, log: Optional[OnLog] = None) -> Checkout:
        """Begins a checkout: requests a worker, and returns without waiting for it. The arguments are those of
        :meth:`taskfork.Client.checkout`."""
        native = self._native.checkout(
            own_timeout=not isinstance(timeout, Unset),
            timeout=None if isinstance(timeout, Unset) else timeout,
            log=log,
        )
        checkout = Checkout(native)
        self._checkouts.add(checkout)
        return checkout

    def _wait(
        self, method: Optional[str], args: tuple[Any, ...], timeout: Timeout, input: Optional[Iterable[Any]]
    ) -> Any:
        return self._native.wait(method, args, own_timeout(timeout), blocking_source(input))

    def _stream(
        self, method: str, args: tuple[Any, ...], timeout: Optional[float], input: Optional[Source]
    ) -> Optional[NativeStream]:
        return self._native.stream(method, args, timeout, input)

    def _keep(self, stream: Stream) -> None:
        self._streams.add(stream)

    def stats(self) -> Stats:
        """The current numbers of workers and of waiting checkouts."""
        return Stats(*self._native.stats())


class Queued:
    """A call that :meth:`Checkout.queue` has made. If it is forgotten before its turn, it is taken back."""

    def __init__(self, native: Optional[_native.Queued], receive: Optional[Receive]) -> None:
        self._native, self._receive = native, receive

    def wait(self) -> Any:
        """Waits for the result and returns it. Raises a ``taskfork.Error``."""
        if self._native is None:
            raise Aborted("the checkout was released", may_have_run=False)
        return converted("the result", self._native.wait(), self._receive)

    def progress(self) -> Reports:
        """How far the call has got, as its worker reports. ``RuntimeError`` while another thread waits for the call: ask
        before that."""
        return Reports(None if self._native is None else self._native.progress())


class Reports:
    """Reports of how far a call has got: an iterator of ``Progress`` that ends with the call. It waits for the next report,
    and returns the latest one."""

    def __init__(self, native: Optional[_native.Reports]) -> None:
        self._native = native
        self._latest: Optional[Progress] = None

    @property
    def latest(self) -> Optional[Progress]:
        """The latest report; None if there was none."""
        report = None if self._native is None else self._native.latest()
        return self._latest if report is None else Progress(*report)

    def __iter__(self) -> Reports:
        return self

    def __next__(self) -> Progress:
        report = None if self._native is None else self._native.wait()
        if report is None:
            raise StopIteration
        self._latest = Progress(*report)
        return self._latest


class Stream:
    """A call that streams: an iterator of its items. ``result`` returns the call's result.

    ``close``, the end of a ``with``, and dropping the last reference cancel it. See :class:`taskfork.Stream`. One thread at
    a time can wait for it."""

    def __init__(
        self, native: Optional[_native.Stream], yields: Optional[Receive] = None, returns: Optional[Receive] = None
    ) -> None:
        self._items: Items[Any] = Items(native, yields, returns)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        items = self._items
        while items.ending is None and not items.is_over:
            is_item, item = self._arrived()
            if is_item:
                return item
        items.end()
        raise StopIteration

    def _arrived(self) -> tuple[bool, Any]:
        """Waits until something has arrived; whether it is an item, and the item."""
        assert self._items.native is not None
        found = self._items.native.wait()
        return (False, None) if found is None else self._items.accept(found)

    def result(self) -> Any:
        """Waits for the end of the call, and returns its result. Items that were not taken are discarded. Raises a
        ``taskfork.Error``."""
        self._items.finish()
        while self._items.ending is None:
            self._arrived()
        return self._items.ending.get()

    def progress(self) -> Reports:
        """How far the call has got, as its worker reports."""
        native = self._items.native
        return Reports(None if native is None else native.progress())

    def close(self) -> None:
        """Cancels the call, if it has not ended. It does not wait for the worker."""
        self._items.close("the stream was closed before its result was asked for")

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class Checkout(_Caller):
    """Exclusive use of one worker until ``release``, or the end of a ``with``. A checkout that is garbage gets released,
    with a ``ResourceWarning``."""

    def __init__(self, native: _native.Checkout) -> None:
        self._native = native
        self._released = False

    def __enter__(self) -> Checkout:
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()

    def __del__(self) -> None:
        if not getattr(self, "_released", True):
            warnings.warn("a checkout was not released: use it in `with`", ResourceWarning, source=self)
            self._native.release()

    def _wait(
        self, method: Optional[str], args: tuple[Any, ...], timeout: Timeout, input: Optional[Iterable[Any]]
    ) -> Any:
        return self._queue(method, args, timeout, input, None).wait()

    def queue(
        self,
        method: str,
        /,
        *args: Any,
        returns: Any = None,
        timeout: Timeout = UNSET,
        input: Optional[Iterable[Any]] = None,
        **keywords: Any,
    ) -> Queued:
        """Makes a call without waiting for it. Calls run in the order in which they are made. An ``input`` is sent while the
        result is waited for."""
        return self._queue(method, join(args, keywords), timeout, input, returns)

    def _queue(
        self,
        method: Optional[str],
        args: tuple[Any, ...],
        timeout: Timeout,
        input: Optional[Iterable[Any]],
        returns: Any,
    ) -> Queued:
        receive = None if returns is None else receiver(returns)
        return Queued(self._native.queue(method, args, own_timeout(timeout), blocking_source(input)), receive)

    def _stream(
        self, method: str, args: tuple[Any, ...], timeout: Optional[float], input: Optional[Source]
    ) -> Optional[NativeStream]:
        return self._native.stream(method, args, timeout, input)

    def ready(self) -> None:
        """Waits until the checkout has a worker."""
        Queued(self._native.queue_ready(), None).wait()

    def abort(self, message: str) -> None:
        """Ends the checkout. The running call and all others fail with ``message``."""
        self._native.abort(message)

    #: The name that AnyEvent::Task gives to :meth:`abort`.
    throw_fatal_error = abort

    def release(self) -> None:
        """Returns the worker to the pool when its calls have ended. Later calls fail with ``Aborted``."""
        self._released = True
        self._native.release()
