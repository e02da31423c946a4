"""The client for asyncio."""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any, Callable, Coroutine, Deque, Optional, Sequence, Union

from . import _wire
from ._call import WINDOW, Call, Running, Stream
from ._connection import Address, Connection, Refused
from .errors import (
    Aborted,
    ArgumentsError,
    CallError,
    CannotConnect,
    Dropped,
    Error,
    FatalError,
    Overloaded,
    ProtocolError,
    TimedOut,
    WorkerDied,
    WrongInterface,
)

_MOST_INTERFACES = 64
_FIRST_RETRY, _LAST_RETRY = 0.005, 1.0
#: How long a call waits for the notice of its worker's death after its timeout and grace, in seconds.
_DEATH_NOTICE_WAIT = 1.0
#: After this many deaths during ``setup`` a checkout fails.
_MOST_SETUP_DEATHS = 3

#: A longer time, 100 years in seconds, means no limit.
_LONGEST = 100 * 365 * 86400.0

#: Why a worker cannot stream.
_NO_ITEMS = (
    "the method is called for a stream of items, and this server cannot send one: "
    "it speaks a protocol without streams, or is older"
)


def _limit(option: str, seconds: Optional[float]) -> Optional[float]:
    """Checks a time limit in seconds; None means no limit."""
    if seconds is None or seconds >= _LONGEST:
        return None
    if not seconds >= 0:
        raise ValueError(f"{option} is {seconds}: a time is 0 or more")
    return seconds


class _Unset:
    pass


_UNSET = _Unset()
Timeout = Union[float, None, _Unset]
OnLog = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Stats:
    """The current numbers of idle, busy and connecting workers, and of waiting checkouts."""

    idle: int
    busy: int
    connecting: int
    queued: int


class Client:
    """A pool of connections to the workers of one server.

    Create it where the event loop runs. Close it, or use it in an ``async with``. Times are in seconds, and None means
    no limit. ``ValueError`` if an option is invalid.

    - ``address``: ``unix:PATH``, ``unix-percent:PATH`` or ``tcp:HOST:PORT``.
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
    """

    def __init__(
        self,
        address: str,
        *,
        name: str = "taskfork",
        interfaces: Sequence[str] = (),
        min_workers: Optional[int] = None,
        max_workers: int = 20,
        timeout: Optional[float] = 30.0,
        grace: float = 0.1,
        max_checkouts: Optional[int] = None,
        max_queue: Optional[int] = None,
        reuse_after_error: bool = False,
        connect_timeout: float = 5.0,
        max_frame: int = _wire.DEFAULT_LIMIT,
    ) -> None:
        if max_workers < 1:
            raise ValueError("max_workers is 0: a client needs one worker at least")
        if min_workers is None:
            min_workers = min(2, max_workers)
        if min_workers > max_workers:
            raise ValueError(f"max_workers {max_workers} is below min_workers {min_workers}")
        if max_checkouts is not None and max_checkouts < 1:
            raise ValueError("max_checkouts is 0: a worker serves one checkout at least")
        self._address = Address(address)
        self._name = name
        if isinstance(interfaces, str) or len(interfaces) > _MOST_INTERFACES:
            raise ValueError(f"interfaces is a list of at most {_MOST_INTERFACES} names")
        self._interfaces = list(interfaces)
        #: Identifies this client at the server.
        self._number = random.getrandbits(32) or 1
        #: The queue length that was reported last.
        self._reported_queue_length = 0
        self._min, self._max = min_workers, max_workers
        self._timeout, self._grace = _limit("timeout", timeout), _limit("grace", grace)
        self._max_checkouts, self._max_queue = max_checkouts, max_queue
        self._keep_after_error = reuse_after_error
        self._connect_timeout = _limit("connect_timeout", connect_timeout)
        self._max_frame = max_frame
        if self._timeout == 0 or self._connect_timeout == 0:
            raise ValueError("with a timeout of 0 no call could be in time: None is no limit")
        self._loop = asyncio.get_running_loop()
        self._idle: list[Connection] = []
        self._held: set[Connection] = set()
        self._connecting = 0
        self._waiting: OrderedDict[asyncio.Future[Connection], None] = OrderedDict()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._checkouts: set[Checkout] = set()
        self._delay = 0.0
        self._retry_at = 0.0
        self._retry: Optional[asyncio.TimerHandle] = None
        # Since when no attempt to connect has succeeded, and why the last one failed.
        self._unreachable: Optional[tuple[float, str, Optional[Exception]]] = None
        self._closed = False
        self._connect_missing()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all checkouts, whose calls fail with ``Aborted``, and closes all connections."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        for checkout in list(self._checkouts):
            checkout._end(Aborted("the client is closed", may_have_run=checkout._running is not None))
        for connection in [*self._idle, *self._held]:
            connection.close()
        self._idle.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def checkout(self, *, timeout: Timeout = _UNSET, log: Optional[OnLog] = None) -> Checkout:
        """Begins a checkout: requests a worker, and returns without waiting for it.

        ``timeout`` is the time limit of each of its calls and defaults to that of the client. ``log`` is called with
        each Log::Defer message of the worker, a dict."""
        limit = self._timeout if isinstance(timeout, _Unset) else _limit("timeout", timeout)
        return Checkout(self, limit, log)

    def call(self, method: str, *args: Any) -> Call[Any]:
        """Makes one call in a checkout of its own."""
        checkout = self.checkout()
        call = checkout.call(method, *args)
        checkout.release()
        return call

    def invoke(self, *args: Any) -> Call[Any]:
        """As ``call``, without a method's name."""
        checkout = self.checkout()
        call = checkout.invoke(*args)
        checkout.release()
        return call

    def stream(self, method: str, *args: Any) -> Stream:
        """Calls a method that streams items, in a checkout of its own."""
        checkout = self.checkout()
        stream = checkout.stream(method, *args)
        checkout.release()
        return stream

    def stats(self) -> Stats:
        """The current numbers of workers and of waiting checkouts."""
        return Stats(len(self._idle), len(self._held), self._connecting, len(self._waiting))

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _request_worker(self, first: bool = False) -> asyncio.Future[Connection]:
        """Requests a worker. The future gets one at once if one is idle, or in turn."""
        worker: asyncio.Future[Connection] = self._loop.create_future()
        if self._closed:
            worker.set_exception(Aborted("the client is closed", may_have_run=False))
            return worker
        while self._idle:
            connection = self._idle.pop()
            if not connection.ended:
                self._held.add(connection)
                self._report_queue_length(connection)
                worker.set_result(connection)
                return worker
        if self._max_queue is not None and len(self._waiting) >= self._max_queue:
            worker.set_exception(Overloaded(self._max_queue))
            return worker
        self._waiting[worker] = None
        if first:
            self._waiting.move_to_end(worker, last=False)
        self._connect_missing()
        return worker

    def _cancel_request(self, worker: asyncio.Future[Connection]) -> None:
        """Cancels a request. A worker that it has already got goes to the next one."""
        if self._waiting.pop(worker, _UNSET) is _UNSET:
            if worker.done() and not worker.cancelled() and worker.exception() is None:
                self._assign_or_idle(worker.result())
        else:
            worker.cancel()

    def _release(self, connection: Connection, keep: bool) -> None:
        """Takes back the worker of a checkout that is over."""
        if not connection.ended:
            connection.send_done()
        connection.checkouts += 1
        spent = self._max_checkouts is not None and connection.checkouts >= self._max_checkouts
        if not keep or spent or connection.ended or self._closed:
            self._drop_connection(connection)
        else:
            self._delay = 0.0
            self._assign_or_idle(connection)

    def _assign_or_idle(self, connection: Connection) -> None:
        self._held.discard(connection)
        while self._waiting:
            waiter, _ = self._waiting.popitem(last=False)
            if not waiter.done():
                self._held.add(connection)
                self._report_queue_length(connection)
                waiter.set_result(connection)
                return
        self._report_queue_length(connection)
        self._idle.append(connection)

    def _report_queue_length(self, connection: Connection) -> None:
        """Reports how many checkouts wait: while there are any, and once when there are none left."""
        waiting, reported = len(self._waiting), self._reported_queue_length
        if waiting or reported:
            self._reported_queue_length = waiting
            connection.send_queue_length(waiting)

    def _drop_connection(self, connection: Connection) -> None:
        self._held.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection._transport is not None and not connection.ended:
            # Queued messages are still sent.
            connection.ended = True
            connection._transport.close()
        else:
            connection.close()
        self._connect_missing()

    def _on_connection_end(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
            if connection.checkouts == 0:
                self._record_failure("its workers end before they are used")
        self._connect_missing()

    def _connect_missing(self) -> None:
        """Starts connecting as many workers as are needed."""
        if self._closed:
            return
        now = self._loop.time()
        while True:
            there = len(self._idle) + len(self._held) + self._connecting
            wanted = max(len(self._held) + len(self._waiting), self._min)
            if there >= min(wanted, self._max):
                return
            if self._delay > 0.0:
                if self._connecting > 0:
                    return
                if now < self._retry_at:
                    if self._retry is None or self._retry.cancelled():
                        self._retry = self._loop.call_at(self._retry_at, self._on_retry)
                    return
            self._connecting += 1
            self._spawn(self._connect())

    def _on_retry(self) -> None:
        self._retry = None
        self._connect_missing()

    async def _connect(self) -> None:
        waits = False

        def on_wait(reason: str) -> None:
            # One connection in the server's queue is enough.
            nonlocal waits
            waits = True
            self._record_failure(f"the server has no worker yet: {reason}")

        opening = self._loop.create_task(
            Connection.open(
                self._address, self._name, self._number, self._max_frame, self._interfaces, on_wait
            )
        )
        try:
            await asyncio.wait({opening}, timeout=self._connect_timeout)
            if not opening.done() and not waits:
                raise asyncio.TimeoutError
            connection = await opening
        except asyncio.TimeoutError:
            opening.cancel()
            self._record_failure(f"the server did not greet within {self._connect_timeout:g} seconds")
        except (OSError, _wire.WireError) as error:
            self._record_failure(str(error), error)
            if isinstance(error, Refused) and error.kind == "wrong_interface":
                self._fail_waiting(WrongInterface(self._address.text, error.said))
        except BaseException:
            opening.cancel()
            raise
        else:
            self._unreachable, self._delay = None, 0.0
            self._connecting -= 1
            connection.on_end = self._on_connection_end
            self._assign_or_idle(connection)
            self._connect_missing()
            return
        self._connecting -= 1
        self._connect_missing()

    def _fail_waiting(self, error: FatalError) -> None:
        """Fails the checkouts that wait for a worker: trying again does not help them."""
        waiting = list(self._waiting)
        self._waiting.clear()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_exception(error)

    def _record_failure(self, reason: str, cause: Optional[Exception] = None) -> None:
        since = time.monotonic() if self._unreachable is None else self._unreachable[0]
        self._unreachable = (since, reason, cause)
        self._delay = min(max(self._delay * 2, _FIRST_RETRY), _LAST_RETRY)
        self._retry_at = self._loop.time() + self._delay


@dataclass
class _Entry:
    method: Optional[str]
    args: Optional[tuple[Any, ...]]
    running: Running
    deadline: Optional[float]

    @property
    def future(self) -> asyncio.Future[Any]:
        return self.running.future

    @property
    def label(self) -> str:
        if self.args is None:
            return "the wait for a worker"
        return "the call without a method" if self.method is None else f"the call of `{self.method}`"


class Checkout:
    """Exclusive use of one worker, or a place in the queue for one, until ``release`` or the end of an ``async with``.
    Calls run in the order in which they are made.

    When a call fails, the calls queued behind it fail with ``Dropped`` without running; then the checkout is usable
    again. A fatal error ends the checkout: every later call has that error. If the checkout is released while a call
    runs, the call finishes; if it was cancelled, its worker is killed.
    """

    def __init__(self, client: Client, timeout: Optional[float], log: Optional[OnLog]) -> None:
        self._client = client
        self._timeout = timeout
        self._log = log
        self._entries: Deque[_Entry] = deque()
        self._wake = asyncio.Event()
        self._open = True
        self._fatal: Optional[FatalError] = None
        self._running: Optional[_Entry] = None
        self._connection: Optional[Connection] = None
        self._had_error = self._used = False
        # The checkout takes its place in the queue now, not with its first call.
        self._worker: Optional[asyncio.Future[Connection]] = client._request_worker()
        self._task = client._spawn(self._run())
        self._task.add_done_callback(lambda _: self._on_task_done())
        client._checkouts.add(self)

    async def __aenter__(self) -> Checkout:
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.release()

    def call(self, method: str, *args: Any) -> Call[Any]:
        """Calls a method. The call is queued now."""
        return Call(self._make(method, args))

    def stream(self, method: str, *args: Any) -> Stream:
        """Calls a method that streams items. The call is queued now."""
        return Stream(self._make(method, args, streams=True))

    def invoke(self, *args: Any) -> Call[Any]:
        """As ``call``, without a method's name."""
        return Call(self._make(None, args))

    def ready(self) -> Call[None]:
        """Waits until the checkout has a worker and the calls before have ended."""
        return Call(self._make(None, None))

    def abort(self, message: str) -> None:
        """Ends the checkout. The running call and all others fail with ``Aborted(message)``. The worker is killed if it
        runs a call."""
        self._end(Aborted(message, may_have_run=self._running is not None))

    #: The name that AnyEvent::Task gives to :meth:`abort`.
    throw_fatal_error = abort

    def release(self) -> None:
        """Returns the worker to the pool when all calls have ended."""
        self._open = False
        # A cancelled call that runs ends with its worker.
        if self._running is not None and self._running.future.cancelled():
            self._end(Aborted("the checkout was released", may_have_run=True))
        self._wake.set()

    def _make(
        self, method: Optional[str], args: Optional[tuple[Any, ...]], streams: bool = False
    ) -> Running:
        future: asyncio.Future[Any] = self._client._loop.create_future()
        # Retrieves the exception. asyncio logs exceptions that are not retrieved.
        future.add_done_callback(lambda it: None if it.cancelled() else it.exception())
        deadline = None
        if self._timeout is not None:
            deadline = self._client._loop.time() + self._timeout
        running = Running(future, streams)
        entry = _Entry(method, args, running, deadline)
        if self._fatal is not None:
            future.set_exception(self._fatal)
            return running
        self._entries.append(entry)
        self._wake.set()
        if deadline is not None:
            handle = self._client._loop.call_at(deadline, self._expire, entry)
            future.add_done_callback(lambda _: handle.cancel())
        future.add_done_callback(lambda it: self._on_cancelled(entry) if it.cancelled() else None)
        return running

    def _on_cancelled(self, entry: _Entry) -> None:
        if entry is self._running:
            if not self._open:
                self._end(Aborted("the call was cancelled", may_have_run=True))
            elif entry.running.streams and self._connection is not None:
                self._connection.send_cancel()
        else:
            self._wake.set()

    def _expire(self, entry: _Entry) -> None:
        """Handles the timeout of a call. A running call gets the grace, and then waits for the notice of the death."""
        if entry.future.done():
            return
        if entry is self._running:
            if self._client._grace is not None:
                wait = self._client._grace + _DEATH_NOTICE_WAIT
                self._client._loop.call_later(wait, self._on_grace_over, entry)
        elif self._connection is None:
            self._end(self._queue_timeout())
        elif self._running is None or self._running.deadline is None:
            self._end(self._timed_out(False))

    def _on_grace_over(self, entry: _Entry) -> None:
        if not entry.future.done():
            self._end(self._timed_out(True))

    def _queue_timeout(self) -> FatalError:
        after = self._timeout or 0.0
        unreachable = self._client._unreachable
        if unreachable is not None:
            since, reason, cause = unreachable
            error = CannotConnect(
                self._client._address.text, reason, time.monotonic() - since, after
            )
            error.__cause__ = cause
            return error
        return TimedOut(after, "while waiting for a worker", may_have_run=False)

    def _timed_out(self, ran: bool, notice: Optional[dict[str, Any]] = None) -> TimedOut:
        notice = notice or {}
        return TimedOut(
            self._timeout or 0.0,
            "while running",
            may_have_run=ran,
            stack=notice.get("stack"),
            stderr=notice.get("stderr"),
        )

    def _end(self, fatal: FatalError) -> None:
        """Ends the checkout with a fatal error."""
        if self._fatal is not None:
            return
        self._fatal = fatal
        running, self._running = self._running, None
        entries = ([] if running is None else [running]) + list(self._entries)
        self._entries.clear()
        for entry in entries:
            if not entry.future.done():
                entry.future.set_exception(fatal)
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()
            self._client._drop_connection(connection)
        self._leave_queue()
        self._task.cancel()

    def _leave_queue(self) -> None:
        if self._worker is not None:
            worker, self._worker = self._worker, None
            self._client._cancel_request(worker)

    def _on_task_done(self) -> None:
        """Cleans up after the task has ended for any reason."""
        self._client._checkouts.discard(self)
        self._leave_queue()
        if self._connection is not None:
            connection, self._connection = self._connection, None
            keep = not self._had_error or self._client._keep_after_error
            self._client._release(connection, keep)
        if self._fatal is None and self._client._closed:
            self._fatal = Aborted("the client is closed", may_have_run=False)
        for entry in self._entries:
            if not entry.future.done():
                entry.future.set_exception(self._fatal or Aborted("the checkout was released"))
        self._entries.clear()

    async def _run(self) -> None:
        setup_deaths = 0
        while True:
            try:
                if self._worker is None:
                    return
                self._connection = await self._worker
                self._worker = None
            except Error as error:
                self._worker = None
                self._end(error if isinstance(error, FatalError) else Aborted(str(error)))
                return
            ending = await self._serve(self._connection)
            if ending is None or self._fatal is not None:
                return
            # The worker has ended. Another one replaces it if no call has begun.
            connection, self._connection = self._connection, None
            assert connection is not None
            self._client._drop_connection(connection)
            notice = connection.notice
            if notice is not None and notice.get("during") == "setup":
                setup_deaths += 1
            calls = connection.calls
            begun = int(notice.get("calls", 0)) >= calls if notice else not connection.unread
            # The unread bytes may be credit.
            begun = begun or (self._running is not None and self._running.running.used > 0)
            hopeless = setup_deaths >= _MOST_SETUP_DEATHS
            if connection.broken is None and not begun and not self._used and not hopeless:
                if self._running is not None:
                    self._entries.appendleft(self._running)
                    self._running = None
                self._worker = self._client._request_worker(first=True)
                continue
            if connection.broken is not None:
                self._end(ProtocolError(connection.broken))
            elif notice is not None and notice.get("timed_out"):
                self._end(self._timed_out(True, notice))
            else:
                ran = ending and begun
                self._end(WorkerDied(connection.pid, notice, may_have_run=ran))
            return

    async def _serve(self, connection: Connection) -> Optional[bool]:
        """Runs calls until the checkout is released, and returns None. If the worker ends, returns whether that was
        during a call."""
        while True:
            while not self._entries:
                if not self._open:
                    return None
                self._wake.clear()
                ended = await self._wait_for_call(connection)
                if ended:
                    return False
            entry = self._entries.popleft()
            if entry.future.done():
                continue
            if entry.args is None:
                entry.future.set_result(None)
                continue
            if entry.running.streams and not connection.streams:
                self._fail(entry, ArgumentsError(_NO_ITEMS), spoils=False)
                continue
            frame = self._encode(entry, connection)
            if frame is None:
                continue
            self._running = entry
            answer = connection.send_call(frame, entry.running, self._log)
            try:
                result = await answer
            except asyncio.CancelledError:
                if answer.cancelled() and connection.ended:
                    return True
                raise
            except ProtocolError as error:
                self._end(error)
                return None
            except CallError as error:
                self._used = True
                self._fail(entry, error, spoils=not error._keeps_worker)
            else:
                self._used = True
                self._running = None
                if not entry.future.done():
                    entry.future.set_result(result)

    async def _wait_for_call(self, connection: Connection) -> bool:
        """Waits for a call or for the connection's end; returns whether the connection has ended."""
        on_end = connection.on_end

        def wake(ended: Connection) -> None:
            if on_end is not None:
                on_end(ended)
            self._wake.set()

        connection.on_end = wake
        try:
            if not connection.ended:
                await self._wake.wait()
        finally:
            connection.on_end = on_end
        return connection.ended

    def _encode(self, entry: _Entry, connection: Connection) -> Optional[tuple[bytes, list[int]]]:
        loop = self._client._loop
        meta: dict[str, Any] = {}
        if entry.deadline is not None:
            meta["timeout"] = max(0, int((entry.deadline - loop.time()) * 1e6))
            grace = self._client._grace
            meta["grace"] = (1 << 63) - 1 if grace is None else int(grace * 1e6)
        if entry.running.streams:
            meta["items"] = WINDOW
        if self._log is not None:
            # Lines of every level.
            meta["log"] = 0xFFFFFFFF
        try:
            return connection.encode([_wire.CALL, meta, entry.method, list(entry.args or ())])
        except _wire.EncodeError as error:
            self._fail(entry, ArgumentsError(str(error)), spoils=False)
            return None

    def _fail(self, entry: _Entry, error: CallError, spoils: bool) -> None:
        """Fails a call, and drops those behind it. ``spoils`` says that the worker must be replaced."""
        self._running = None
        self._had_error = self._had_error or spoils
        entries, self._entries = self._entries, deque()
        if not entry.future.done():
            entry.future.set_exception(error)
        for behind in entries:
            if not behind.future.done():
                behind.future.set_exception(Dropped(entry.label))
