"""What a client for asyncio and its checkouts share: making calls in one event loop."""

from __future__ import annotations

import asyncio
import math
import os
from asyncio import get_running_loop
from typing import Any, Callable, Optional, Protocol, Type, TypeVar, Union, overload

from . import _native
from ._call import Call, ConvertedCall, Stream
from ._input import Items, source
from ._keywords import join
from ._loops import check
from .converters import receiver
from .errors import Aborted

T = TypeVar("T")


class Unset:
    pass


UNSET = Unset()
Timeout = Union[float, None, Unset]


def limit(option: str, seconds: Optional[float]) -> Optional[float]:
    """Checks a time limit in seconds."""
    if seconds is not None and not seconds >= 0:
        raise ValueError(f"{option} is {seconds}: a time is 0 or more")
    return seconds


def own_timeout(timeout: Timeout) -> Optional[float]:
    """A timeout of one call for the native module: None for that of the client, and infinity for no limit."""
    if isinstance(timeout, Unset):
        return None
    return math.inf if timeout is None else timeout


class _Native(Protocol):
    """The native part of a client or checkout."""

    def call(
        self,
        event_loop: _native.EventLoop,
        future: asyncio.Future[Any],
        method: Optional[str],
        args: tuple[Any, ...],
        timeout: Optional[float],
        input: Optional[_native.Source],
    ) -> Optional[int]: ...
    def stream(
        self, method: str, args: tuple[Any, ...], timeout: Optional[float], input: Optional[_native.Source]
    ) -> Optional[_native.Stream]: ...


class Caller:
    """Makes calls in one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, native_loop: _native.EventLoop) -> None:
        self._loop = loop
        self._native_loop = native_loop
        self._pid = os.getpid()

    def _part(self) -> _Native:
        raise NotImplementedError

    def _keep(self, stream: Stream) -> None:
        """Notes a stream that must end with the client."""

    @overload
    def call(
        self,
        method: str,
        /,
        *args: Any,
        returns: Type[T],
        timeout: Timeout = UNSET,
        input: Optional[Items] = None,
        **keywords: Any,
    ) -> Call[T]: ...
    @overload
    def call(
        self,
        method: str,
        /,
        *args: Any,
        returns: Any = None,
        timeout: Timeout = UNSET,
        input: Optional[Items] = None,
        **keywords: Any,
    ) -> Call[Any]: ...
    def call(
        self,
        method: str,
        /,
        *args: Any,
        returns: Any = None,
        timeout: Timeout = UNSET,
        input: Optional[Items] = None,
        **keywords: Any,
    ) -> Call[Any]:
        """Makes a call: on a client in a checkout of its own, on a checkout behind the calls that were made before.

        ``timeout`` is the time limit of this call, in seconds; None is no limit.

        ``returns`` is the type of the result, such as ``Order`` or ``list[Decimal]``: the result is converted to it, as arguments are
        to the annotations of a worker's parameters. The call fails with ``ResultError`` if it does not fit. None returns what has
        arrived. ``TypeError`` if the type cannot be used.

        ``input`` is an iterable, or an asynchronous one, whose items are streamed to a method that takes an input. It is none of
        the other arguments: these are those of the method's other parameters. Items are taken when the worker takes them, in the
        event loop, so a plain iterable must not block. If the iterable raises an exception, the call fails with ``InputError``. A
        generator is closed if the call ends before it does, or is cancelled. None streams nothing.

        Other keyword arguments are those of the method, which must be one of a worker in Python; a parameter of the method that
        has the name of one of these is passed by its position."""
        return self._call(method, args, keywords, timeout, input, returns)

    @overload
    def invoke(
        self,
        *args: Any,
        returns: Type[T],
        timeout: Timeout = UNSET,
        input: Optional[Items] = None,
        **keywords: Any,
    ) -> Call[T]: ...
    @overload
    def invoke(
        self,
        *args: Any,
        returns: Any = None,
        timeout: Timeout = UNSET,
        input: Optional[Items] = None,
        **keywords: Any,
    ) -> Call[Any]: ...
    def invoke(
        self,
        *args: Any,
        returns: Any = None,
        timeout: Timeout = UNSET,
        input: Optional[Items] = None,
        **keywords: Any,
    ) -> Call[Any]:
        """As ``call``, without a method's name."""
        return self._call(None, args, keywords, timeout, input, returns)

    def _call(
        self,
        method: Optional[str],
        args: tuple[Any, ...],
        keywords: dict[str, Any],
        timeout: Timeout,
        input: Optional[Items],
        returns: Any,
    ) -> Call[Any]:
        args = join(args, keywords)
        own = None if timeout is UNSET else own_timeout(timeout)
        self._check_loop()
        items = None if input is None else source(input, self._loop, self._native_loop)
        receive = None if returns is None else receiver(returns)
        call: Call[Any] = Call(loop=self._loop) if receive is None else ConvertedCall(receive, self._loop)
        return self._begun(call, self._part().call(self._native_loop, call, method, args, own, items))

    def _make(self, begin: Callable[[Call[Any]], Optional[int]]) -> Call[Any]:
        """Makes a call of another kind. ``begin`` returns its key."""
        self._check_loop()
        call: Call[Any] = Call(loop=self._loop)
        return self._begun(call, begin(call))

    def _begun(self, call: Call[Any], key: Optional[int]) -> Call[Any]:
        """A call with this key. It has none if its checkout is released."""
        call._native_loop = self._native_loop
        if key is None:
            call.set_exception(Aborted("the checkout was released", may_have_run=False))
            call.exception()
        call._key = key
        return call

    def stream(
        self,
        method: str,
        /,
        *args: Any,
        yields: Any = None,
        returns: Any = None,
        timeout: Timeout = UNSET,
        input: Optional[Items] = None,
        **keywords: Any,
    ) -> Stream:
        """Calls a method that streams items. The arguments are those of ``call``; ``yields`` is the type of the items, as ``returns``
        is that of the result. An item that does not fit raises ``ResultError``, and others can follow. An ``input`` is sent while the
        stream is asked for items or for its result."""
        item, result = (None if each is None else receiver(each) for each in (yields, returns))
        items = self._source(input)
        native = self._part().stream(method, join(args, keywords), own_timeout(timeout), items)
        stream = Stream(native, self._loop, self._native_loop, item, result)
        self._keep(stream)
        return stream

    def _source(self, items: Optional[Items]) -> Optional[_native.Source]:
        """What a call streams to its method."""
        self._check_loop()
        return source(items, self._loop, self._native_loop)

    def _check_loop(self) -> None:
        """``RuntimeError`` in another event loop, or another process."""
        try:
            if get_running_loop() is self._loop:
                return
        except RuntimeError:
            pass
        check(self._loop, self._pid)
