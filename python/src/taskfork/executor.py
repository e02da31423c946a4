"""A drop-in for ``concurrent.futures.ProcessPoolExecutor``."""

from __future__ import annotations

import asyncio
import atexit
import itertools
import logging
import os
import pickle
import tempfile
import threading
import weakref
from concurrent.futures import CancelledError, Executor as _Executor, InvalidStateError
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, Callable, Iterable, Iterator, Optional, TypeVar, Union

# Those of a fork too, which must not wait for an import.
from . import _forked as _forked, _native, _pickled, _pickling, _started as _started
from ._call import Reports as _Reports
from ._caller import UNSET, Timeout, Unset, limit
from ._future import ARE_KNOWN, Future, OnLog, Reports, function_for
from ._guard import check_guarded
from ._options import ClientOptions, of_client
from ._server import Server, Starting, is_fork
from .client import Client
from .errors import SetupError, WorkerDied

__all__ = ["BrokenProcessPool", "Executor", "Future", "Reports"]

T = TypeVar("T")

#: The longest pickled call or result, in bytes. It is the most that a frame can have.
_MAX_FRAME = (1 << 32) - 1


class Executor(_Executor):
    """Runs functions in other processes, as ``concurrent.futures.ProcessPoolExecutor`` does, whose methods and arguments it
    has.

    Workers are forked from a server that has imported the main module, so that it must be guarded by ``if __name__ ==
    "__main__"``. Functions, arguments and results are pickled, by ``cloudpickle`` if that is installed and ``pickle``
    cannot.

    What differs:

    - A worker that dies fails its own call with ``WorkerDied``, which says how, and another one takes its place. A call that
      had not begun is made again. With ``strict``, all calls fail with ``BrokenProcessPool``, and the executor is broken.
    - ``timeout`` limits each call, from when it is given to a worker. It fails with ``TimedOut``, which is a
      ``TimeoutError``, and its worker is replaced. :meth:`submit_within` sets it for one call.
    - :meth:`Future.stop` ends a call that runs.
    - :meth:`Future.progress` says how far a call has got, if its function calls ``taskfork.context().progress``.
    - A call is running once it has a worker: no calls are queued ahead.
    - An initializer that raises breaks the executor, with its error.

    - ``max_workers``: the most workers at a time. Defaults to the number of processors.
    - ``mp_context``: a context of ``multiprocessing`` whose start method is ``fork`` makes the server a fork of this program, at the
      first call. That takes some milliseconds, and functions and ``initargs`` need no import. :meth:`taskfork.Server.start` says what
      a fork copies. Defaults to None, which as other start methods means a new interpreter.
    - ``initializer``, ``initargs``: called in each new worker.
    - ``max_tasks_per_child``: after how many calls a worker is replaced. Defaults to None, for never.
    - ``timeout``: the time limit of a call in seconds. Defaults to None, for none.
    - ``log``: gets what functions log in a worker, by ``logging`` or :func:`taskfork.worker.logger`, at the end of each call. A
      function is called with the future and a message of Log::Defer, as ``log`` of :meth:`taskfork.Client.checkout` is, in a thread of
      the executor. A logger of ``logging`` gets the lines. Defaults to None: nothing is kept.
    """

    def __init__(
        self,
        max_workers: Optional[int] = None,
        mp_context: Any = None,
        initializer: Optional[Callable[..., Any]] = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: Optional[int] = None,
        timeout: Optional[float] = None,
        strict: bool = False,
        log: Union[OnLog, logging.Logger, None] = None,
    ) -> None:
        if max_workers is None:
            max_workers = os.cpu_count() or 1
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        # Programs look at this one of the standard library.
        self._max_workers = max_workers
        self._pool = _Pool(
            max_workers,
            initializer,
            initargs,
            max_tasks_per_child,
            limit("timeout", timeout),
            strict,
            function_for(log),
            is_fork(_start_method(mp_context)),
        )
        # The thread of the pool does not keep this object.
        weakref.finalize(self, self._pool.begin_shutdown, False).atexit = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        return self._pool.submit(fn, args, kwargs, UNSET)

    def submit_within(self, timeout: Optional[float], fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """As ``submit``, with a time limit for this call in seconds; None is no limit."""
        return self._pool.submit(fn, args, kwargs, limit("timeout", timeout))

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: Optional[float] = None,
        chunksize: int = 1,
        **options: Any,
    ) -> Iterator[T]:
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout, **options)
        chunks = _chunks(chunksize, *iterables)
        results = super().map(partial(_run_chunk, fn), chunks, timeout=timeout, **options)
        return itertools.chain.from_iterable(results)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.begin_shutdown(cancel_futures)
        if wait:
            self._pool.join()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> Optional[bool]:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            # It reaches no worker, so calls that run would go on.
            self._pool.stop_all()
        return super().__exit__(kind, error, traceback)

    def __repr__(self) -> str:
        return f"<taskfork.Executor of {self._max_workers} workers>"


def _start_method(context: Any) -> Optional[str]:
    if context is None:
        return None
    method = getattr(context, "get_start_method", None)
    if not callable(method):
        raise TypeError(
            f"mp_context is {context!r:.100}: it takes a context of `multiprocessing`, such as "
            '`multiprocessing.get_context("fork")`'
        )
    found: Optional[str] = method()
    return found


class _Client(Client):
    """A client that has connected before its event loop runs."""

    def __init__(self, native: _native.Client) -> None:
        self._use(native, asyncio.get_running_loop())


def _chunks(size: int, *iterables: Iterable[Any]) -> Iterator[list[tuple[Any, ...]]]:
    together = zip(*iterables)
    while chunk := list(itertools.islice(together, size)):
        yield chunk


def _run_chunk(fn: Callable[..., T], chunk: list[tuple[Any, ...]]) -> list[T]:
    return [fn(*args) for args in chunk]


class _RemoteTraceback(Exception):
    """The cause of an exception of a worker: its traceback there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._text = text

    def __str__(self) -> str:
        return f'\n"""\n{self._text}"""'


class _Pool:
    """What an executor does, in a thread with an event loop. That begins with the first call."""

    def __init__(
        self,
        max_workers: int,
        initializer: Optional[Callable[..., Any]],
        initargs: tuple[Any, ...],
        max_calls: Optional[int],
        timeout: Optional[float],
        strict: bool,
        log: Optional[OnLog],
        forks: bool,
    ) -> None:
        self._max_workers, self._max_calls, self._strict, self._log = max_workers, max_calls, strict, log
        self._initializer, self._initargs, self._timeout = initializer, initargs, timeout
        self._lock = threading.RLock()
        self._thread: Optional[threading.Thread] = None
        #: Whether the server is a fork of this process, and the server if so.
        self._forks = forks
        self._forked: Optional[Starting] = None
        #: What it has in common with this process.
        self._main: Optional[_pickling.Main] = None
        #: The connections to it, until the event loop has them.
        self._connected: Optional[_native.Client] = None
        #: What a server that is none has to know of this program.
        self._prepared = b""
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._ended: Optional[asyncio.Future[None]] = None
        self._client: Optional[Client] = None
        #: The calls: those that wait for a worker, and those that have one.
        self._tasks = _native.Tasks(max_workers, self._finish, ARE_KNOWN)
        self.wait = self._tasks.wait
        #: Tasks of the event loop that pass on reports of progress.
        self._watchers: set[asyncio.Task[None]] = set()
        self._is_shut_down = False
        #: All calls are ended, also those that run.
        self._is_stopped = False
        self._broken: Optional[str] = None
        self._pid = os.getpid()

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], timeout: Timeout
    ) -> Future[Any]:
        future: Future[Any] = Future(self)
        if os.getpid() != self._pid:
            raise RuntimeError("this executor was made before the process was forked: make one in each process")
        if self._is_shut_down or self._broken is not None:
            # Before code of the user runs.
            self._check_open()
        check_guarded()
        try:
            seconds = self._timeout if isinstance(timeout, Unset) else timeout
            seconds = None if seconds is None else float(seconds)
            buffers: list[memoryview] = []
            main = self._main or (_pickling.Main() if self._forks else None)
            work = _pickling.dumps((fn, args, kwargs), buffers, main)
        except Exception as error:
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        log = None if self._log is None else partial(self._log, future)
        with self._lock:
            # Pickling has run code of the user.
            self._check_open()
            if self._thread is None:
                self._begin()
            if not self._tasks.add(future, (work, *buffers), seconds, log):
                # A handler of a signal has shut it down meanwhile.
                self._check_open()
        return future

    def _begin(self) -> None:
        """Starts the thread. If that fails, the next call tries again. Ctrl-C may come at each point."""
        # Here, because the main module forgets where it is from when it has ended. A fork has what the program has now, and
        # one thread less.
        if self._forks:
            self._main, options = _pickling.Main(), self._client_options(1)
            self._forked = self._starting(_pickled.objects(self._initializer, self._initargs, self._main))
            # A connection is there when the server begins to accept them. The event loop starts meanwhile.
            self._connected = _native.Client(self._forked.address, options)
        else:
            self._prepared = _pickled.preparation(self._initializer, self._initargs)
        _pools.add(self)
        # Whoever takes it first says whether the thread runs.
        decided = threading.Lock()
        thread = threading.Thread(target=self._run, args=(decided,), name="taskfork-executor", daemon=True)
        try:
            thread.start()
            self._thread = thread
        except BaseException:
            # The thread may have begun already.
            is_given_up = decided.acquire(blocking=False)
            self._thread = None if is_given_up else thread
            if is_given_up and self._forked is not None:
                self._connected = None
                self._forked.abandon()
            raise

    def _starting(self, given: dict[str, Any]) -> Starting:
        options = {
            "name": "executor",
            "max_workers": self._max_workers,
            "spare_workers": 0,
            "max_calls": self._max_calls,
            "share_details": True,
            "hung_worker_timeout": None,
            "max_frame": _MAX_FRAME,
            "shutdown_grace": 1.0,
            "restarts": False,
            "log_level": "warn",
            "pickle": False,
            "writable": True,
        }
        # At the end of the interpreter `_at_exit` lets the calls end first.
        return Starting(given, options, forks=self._forks, ends_at_exit=False)

    def _check_open(self) -> None:
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self._broken is not None:
                raise BrokenProcessPool(self._broken)

    def stop(self, future: Future[Any]) -> bool:
        with self._lock:
            if self._loop is None or future.done():
                return False
            self._loop.call_soon_threadsafe(self._stop, future)
            return True

    def stop_all(self) -> None:
        """Ends all calls, also those that run, and the server if it has not started yet."""
        self._is_stopped = True
        self.begin_shutdown(True)
        with self._lock:
            if self._loop is not None:
                # There, so that it comes before or after a call is made.
                self._loop.call_soon_threadsafe(self._stop_running)

    def watch(self, future: Future[Any]) -> None:
        with self._lock:
            # Otherwise it is noticed when the call begins.
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._watch, future)

    def begin_shutdown(self, cancel_futures: bool) -> None:
        if os.getpid() != self._pid:
            # The calls are those of the parent.
            return
        self._is_shut_down = True
        # The executor's thread cancels them: here Ctrl-C could come after some.
        self._tasks.close(cancel_futures)

    def join(self) -> None:
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self, decided: threading.Lock) -> None:
        if not decided.acquire(blocking=False):
            return
        _forked.own_threads.add(threading.get_native_id())
        try:
            server = self._start_server()
        except BaseException as error:
            self._break(str(error) if isinstance(error, RuntimeError) else f"the server could not start: {error}")
            return
        with server:
            try:
                asyncio.run(self._serve(server))
            except BaseException as error:
                self._break(f"the executor has failed: {type(error).__name__}: {error}")
        self._break("the executor is shut down")

    def _start_server(self) -> Server:
        if self._forked is not None:
            # It serves within milliseconds, in which the event loop starts.
            return self._forked.server()
        file, path = tempfile.mkstemp(prefix="taskfork-")
        try:
            with open(file, "wb") as prepared:
                prepared.write(self._prepared)
            return self._starting({"pickled": path}).wait(600.0, self._is_given_up)
        finally:
            if os.path.exists(path):
                os.unlink(path)

    def _is_given_up(self) -> bool:
        """Whether the server is not wanted any more, while it starts."""
        self._cancel_waiting()
        return self._is_stopped

    async def _serve(self, server: Server) -> None:
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        process = os.pidfd_open(server.pid)
        try:
            loop.add_reader(process, self._on_server_end, server)
            native, self._connected = self._connected, None
            if native is None:
                native = _native.Client(server.address, self._client_options(0))
            async with _Client(native) as client:
                self._client = client
                with self._lock:
                    self._loop = loop
                loop.add_reader(self._tasks.fileno(), self._turn)
                self._tasks.attach(client._native, client._native_loop)
                try:
                    await self._ended
                finally:
                    self._tasks.detach()
                    loop.remove_reader(self._tasks.fileno())
        finally:
            # Before the loop is closed, so that no thread calls it then.
            with self._lock:
                self._loop = None
            loop.remove_reader(process)
            os.close(process)

    def _client_options(self, min_workers: int) -> dict[str, Any]:
        options: ClientOptions = {
            "name": "executor",
            "min_workers": min_workers,
            "max_workers": self._max_workers,
            "timeout": None,
            "reuse_after_error": True,
            "max_frame": _MAX_FRAME,
        }
        # Arrays in results can be written to, as the caller's own.
        return of_client(options, writable=True)

    def _on_server_end(self, server: Server) -> None:
        said = server._why()
        self._fail(f"the server could not start: {said}" if said else "the server of the workers has ended")

    def _end(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _turn(self) -> None:
        """Does what only this thread does: what runs code in Python."""
        for future, error in self._tasks.take():
            if error is not None:
                _settle(future, None, error)
            elif future.cancelled():
                _begin(future)
            else:
                self._watch(future)
        self._cancel_waiting()
        if self._is_shut_down and self._tasks.is_empty():
            self._end()

    def _cancel_waiting(self) -> None:
        """Cancels the calls that have not begun, if the executor is shut down so."""
        for future in self._tasks.take_cancelled():
            _cancel(future)

    def _watch(self, future: Future[Any]) -> None:
        """Passes the reports of a call to its future. It may be asked twice: when the call begins, and by the future."""
        reports = self._tasks.progress(future)
        if reports is None or future._has_watcher:
            return
        assert self._client is not None
        future._has_watcher = True
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._pass_on(future, _Reports(reports, loop, self._client._native_loop)))
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    async def _pass_on(self, future: Future[Any], reports: _Reports) -> None:
        async for report in reports:
            future._report(report)

    def _stop(self, future: Future[Any]) -> None:
        if self._tasks.cancel(future):
            _settle(future, None, CancelledError())

    def _stop_running(self) -> None:
        for future in self._tasks.running:
            self._stop(future)

    def _finish(self, future: Future[Any], answer: Any, error: Optional[BaseException]) -> None:
        """Completes the future of a call, with what its worker has answered, or with an error."""
        if future.done():
            # The executor is broken.
            return
        result = None
        if error is None:
            result, error = _read(answer)
        elif isinstance(error, SetupError):
            return self._fail(f"the initializer has failed: {error}")
        elif isinstance(error, WorkerDied) and self._strict:
            return self._fail(f"a process of the pool was terminated abruptly: {error}")
        _settle(future, result, error)

    def _fail(self, reason: str) -> None:
        try:
            self._break(reason)
        finally:
            self._end()

    def _break(self, reason: str) -> None:
        """Fails all calls, and those to come."""
        self._cancel_waiting()
        with self._lock:
            self._broken = self._broken or reason
            running, waiting = self._tasks.running, self._tasks.take_waiting()
        for future in waiting:
            if _begin(future):
                _settle(future, None, BrokenProcessPool(reason))
        for future in running:
            _settle(future, None, BrokenProcessPool(reason))


def _begin(future: Future[Any]) -> bool:
    """Marks the future of a call as running that waits for a worker, so that only this thread has it. False if it is cancelled, of which
    those that wait for several futures are told, or complete."""
    return (future.cancelled() or not future.done()) and future.set_running_or_notify_cancel()


def _settle(future: Future[Any], result: Any, error: Optional[BaseException]) -> None:
    """Ends a call for its caller, whose callbacks must not end the thread. It may have ended already: threads that wait for calls
    complete their futures themselves."""
    try:
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
    except InvalidStateError:
        pass
    except BaseException:
        logging.getLogger("concurrent.futures").exception("exception calling callback for %r", future)


def _cancel(future: Future[Any]) -> None:
    """Cancels a call that has not begun."""
    try:
        future.cancel()
    except BaseException:
        logging.getLogger("concurrent.futures").exception("exception calling callback for %r", future)
    _begin(future)


def _read(answer: Any) -> tuple[Any, Optional[BaseException]]:
    """The result or the exception in an answer."""
    try:
        kind, pickled, *buffers = answer
        value = pickle.loads(pickled, buffers=buffers)
        if kind == _pickled.RESULT:
            return value, None
        error, text = value
        # The class may forbid that its attributes are set, as a frozen dataclass does.
        BaseException.__setattr__(error, "__cause__", _RemoteTraceback(text))
        return None, error
    except BaseException as error:
        # Code of the user's classes, whose exception must not end the thread.
        return None, error


_pools: weakref.WeakSet[_Pool] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    """Lets all calls end before the interpreter does."""
    pools = [pool for pool in _pools if pool._pid == os.getpid()]
    for pool in pools:
        pool.begin_shutdown(False)
    for pool in pools:
        try:
            pool.join()
        except KeyboardInterrupt:
            pool.stop_all()
            pool.join()
            raise
