"""The client for asyncio."""

from __future__ import annotations

import asyncio
import warnings
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Optional

from . import _native
from ._call import Call, Stream
from ._caller import UNSET, Caller, Timeout, Unset
from ._loops import running_loop
from ._options import ClientOptions, of_client

if TYPE_CHECKING:
    from typing_extensions import Unpack

OnLog = Callable[[dict[str, Any]], None]

#: The native parts of event loops. The loops and their clients keep them.
_event_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[_native.EventLoop]] = (
    weakref.WeakKeyDictionary()
)


def _native_part(loop: asyncio.AbstractEventLoop) -> _native.EventLoop:
    """The native part of an event loop, which the loop watches from here on."""
    entry = _event_loops.get(loop)
    known = None if entry is None else entry()
    if known is None:
        known = _native.EventLoop()
        _event_loops[loop] = weakref.ref(known)
        loop.add_reader(known.fileno(), known.run)
    return known


@dataclass(frozen=True)
class Stats:
    """The current numbers of idle, busy and connecting workers, and of waiting checkouts."""

    idle: int
    busy: int
    connecting: int
    queued: int


class Client(Caller):
    """A pool of connections to the workers of one server.

    Create it where the event loop runs. Close it, or use it in an ``async with``. It serves this loop only, and only the
    process that made it. Times are in seconds, and None means no limit. ``ValueError`` if an option is invalid, ``TypeError`` if it
    has a wrong type or does not exist, ``RuntimeError`` if no event loop runs.

    - ``address``: ``unix:PATH``, ``unix-percent:PATH``, ``tcp:HOST:PORT``, ``tls:HOST:PORT`` of a gateway, or
      ``nats://HOST:PORT/SERVICE`` and ``nats+tls://HOST:PORT/SERVICE`` of nodes at NATS.
    - ``name``: the client's name in the server's log. Defaults to ``taskfork``.
    - ``interfaces``: the names of interfaces that the server must serve, at most 64. If it does not, calls fail at once
      with ``WrongInterface``. A server of untyped methods or of programs serves any. Defaults to none.
    - ``min_workers``: how many workers are kept connected. Defaults to 2, or ``max_workers`` if that is less.
    - ``max_workers``: the most workers at a time. Defaults to 20.
    - ``timeout``: the time limit of each call, from making it. Defaults to 30.
    - ``grace``: how long a call may continue after its timeout before its worker is killed. Defaults to 0.1.
    - ``max_checkouts``: after how many checkouts a worker is replaced. Defaults to None, for never.
    - ``max_queue``: how many checkouts may wait; another one fails with ``Overloaded``. Defaults to None, for any number.
    - ``reuse_after_error``: keeps workers after any error of a call. Defaults to False: they are replaced, unless the
      server says that they need not be, as those with a typed interface in Rust do.
    - ``connect_timeout``: the time limit of connecting and exchanging hellos. Defaults to 5.
    - ``max_frame``: the longest message in bytes. Defaults to 64 MiB.
    - ``pickle``: whether values without another encoding are pickled, and pickled results are taken. The server can run any code
      in this process then. The workers need the option too. Defaults to False.

    These are for the address of a gateway, and for direct connections to nodes. Files are in PEM:

    - ``tls_ca``: the file with the authorities of its certificate. Defaults to None, for those that the system trusts.
    - ``tls_identity``: the files with the certificate of this client and with its private key. Defaults to None.
    - ``tls_name``: the name that the certificate must have. Defaults to None, for the host in the address.

    And these for nodes at NATS. A client has the workers of such nodes only:

    - ``nats_creds``: the file with the credentials of this user. Defaults to None.
    - ``nats_ca``, ``nats_identity``: as ``tls_ca`` and ``tls_identity``, for the NATS servers.
    - ``nats_route``: ``"direct"`` to the node by TLS, ``"relayed"`` through NATS, or ``"auto"``: directly if the node offers
      that and can be reached there. Defaults to None, for ``"auto"``.
    - ``labels``: what the nodes must have, such as ``["gpu=a100"]``, at most 5. Defaults to none.
    - ``key``: the node to prefer is chosen by this text, and all clients with the same one choose the same node. Defaults to
      None. With labels or a key no workers are kept connected for later: ``min_workers`` has no effect.
    """

    def __init__(self, address: str, **options: Unpack[ClientOptions]) -> None:
        loop = running_loop()
        if loop is None:
            raise RuntimeError(
                "no running event loop: make this client where one runs, or use `taskfork.blocking.Client`, which needs none"
            )
        self._use(_native.Client(address, of_client(options)), loop)

    def _use(self, native: _native.Client, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop, _native_part(loop))
        self._native = native
        self._checkouts: weakref.WeakSet[Checkout] = weakref.WeakSet()
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all checkouts and calls, which fail with ``Aborted``, and closes all connections."""
        self._check_loop()
        for checkout in list(self._checkouts):
            checkout.abort("the client is closed")
        for stream in list(self._streams):
            stream._close("the client is closed")
        self._native_loop.fail_calls_of(self._native.number)
        await self._make(lambda call: self._native.close(self._native_loop, call))

    def checkout(self, *, timeout: Timeout = UNSET, log: Optional[OnLog] = None) -> Checkout:
        """Begins a checkout: requests a worker, and returns without waiting for it.

        ``timeout`` is the time limit of each of its calls and defaults to that of the client. ``log`` is called with
        Log::Defer messages, dicts: one at the end of each call that has logged something. They have a timer for each
        call, and what its worker logged."""
        own = not isinstance(timeout, Unset)
        native = self._native.checkout(
            own_timeout=own,
            timeout=None if isinstance(timeout, Unset) else timeout,
            log=log,
            event_loop=self._native_loop,
        )
        checkout = Checkout(self, native)
        self._checkouts.add(checkout)
        return checkout

    def _part(self) -> _native.Client:
        return self._native

    def _keep(self, stream: Stream) -> None:
        self._streams.add(stream)

    def stats(self) -> Stats:
        """The current numbers of workers and of waiting checkouts."""
        return Stats(*self._native.stats())


class Checkout(Caller):
    """Exclusive use of one worker, or a place in the queue for one, until ``release`` or the end of an ``async with``.
    Calls run in the order in which they are made.

    When a call fails, the calls queued behind it fail with ``Dropped`` without running; then the checkout is usable
    again. A fatal error ends the checkout: every later call has that error. If the checkout is released while a call
    runs, the call finishes; if it was cancelled, its worker is killed. A checkout that is garbage gets released, with
    a ``ResourceWarning``.
    """

    def __init__(self, client: Client, native: _native.Checkout) -> None:
        super().__init__(client._loop, client._native_loop)
        self._native = native
        self._released = False

    async def __aenter__(self) -> Checkout:
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.release()

    def __del__(self) -> None:
        if not getattr(self, "_released", True):
            warnings.warn("a checkout was not released: use it in `async with`", ResourceWarning, source=self)
            self._native.release()

    def _part(self) -> _native.Checkout:
        return self._native

    def ready(self) -> Call[None]:
        """Waits until the checkout has a worker and the calls before have ended."""
        return self._make(lambda call: self._native.ready(self._native_loop, call))

    def abort(self, message: str) -> None:
        """Ends the checkout. The running call and all others fail with ``Aborted(message)``. The worker is killed if it
        runs a call."""
        self._native.abort(message)

    #: The name that AnyEvent::Task gives to :meth:`abort`.
    throw_fatal_error = abort

    def release(self) -> None:
        """Returns the worker to the pool when all calls have ended. Later calls fail with ``Aborted``."""
        self._released = True
        self._native.release()
