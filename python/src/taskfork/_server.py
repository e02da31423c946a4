"""Servers that a program starts for itself."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Optional, Type, Union

from . import _folders, _server_options
from ._guard import check_guarded

if TYPE_CHECKING:
    from ._forked import Process as _Fork
    from ._methods import Interface

    Process = Union[subprocess.Popen[bytes], _Fork]

#: What a started process runs. It has the import path of this one before it imports anything of the user's.
_PROGRAM = "import sys; inf = float('inf'); o = {!a}; sys.path[:] = o['path']; import taskfork._started as s; s.main(o)"

#: Libraries that compute in threads of their own start them when they are imported, and workers can only be forked from a
#: process without threads. Each of these has to say so by itself, and what the user has set stays.
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

#: The longest wait of one system call, in seconds.
_LONGEST_POLL = 3600.0

#: That of a wait that can be given up.
_SHORT_POLL = 0.2

#: The longest path of a unix socket, in bytes.
_MAX_PATH = 107


#: How long a server has to end before it is killed, in seconds, beside the time that its workers have.
_LAST_WAIT = 5.0


def is_fork(start_method: Optional[str]) -> bool:
    """Whether a start method of ``multiprocessing`` is a fork of this process. ``ValueError`` if it is none of these."""
    if start_method == "fork":
        return True
    if start_method in (None, "spawn", "forkserver"):
        return False
    raise ValueError(
        f'there is no start method {start_method!r:.100}: choose "fork" for a fork of this program, or "spawn", "forkserver" or None '
        "for a new interpreter"
    )


class Server:
    """A server in a process of its own, which ends with this one::

        with taskfork.Server.start("prices:Prices", workers=4) as server:
            with taskfork.blocking.Client(server.address) as client:
                client.call("quote", "ACME")

    It ends at the end of the ``with``, by ``close``, when this object is garbage, and when this process ends, in whatever
    way."""

    def __init__(self, address: str, parts: _Parts, ends_at_exit: bool) -> None:
        #: Where clients reach it.
        self.address = address
        assert parts.process is not None
        self._process = parts.process
        self._parts = parts
        self._finalizer = weakref.finalize(self, parts.end)
        self._finalizer.atexit = ends_at_exit

    @classmethod
    def start(
        cls,
        interface: Union[str, Interface],
        *,
        workers: Optional[int] = None,
        listen: Optional[str] = None,
        setup: Union[str, Callable[[], Any], None] = None,
        checkout_done: Union[str, Callable[[], Any], None] = None,
        name: str = "taskfork",
        spare_workers: int = 0,
        max_calls: Optional[int] = None,
        hung_worker_timeout: Optional[float] = None,
        max_frame: Optional[int] = None,
        shutdown_grace: float = 1.0,
        start_timeout: float = 60.0,
        log: bool = False,
        pickle: bool = False,
        quiet: bool = False,
        start_method: Optional[str] = None,
    ) -> Server:
        """Starts a server, and waits until it serves.

        ``interface`` is ``module:name``, or the name of a module whose public functions are the methods. It is imported by a
        new interpreter, which has the import path and the working directory of this one. ``setup`` and ``checkout_done`` are
        ``module:name`` too. All three are as those of :func:`taskfork.server.run`.

        - ``workers``: the most workers at a time. Defaults to that of the server in Rust.
        - ``listen``: ``unix:PATH`` or ``tcp:HOST:PORT``; with port 0, the system chooses one. Defaults to a socket in a new
          folder, which only this user can open.
        - ``hung_worker_timeout``: as for ``run``, but defaults to None, for never.
        - ``max_frame``: the longest arguments and results in bytes, without long ``bytes``. Defaults to 64 MiB. That of
          the client must be as large.
        - ``shutdown_grace``: how many seconds running checkouts have when the server ends. Defaults to 1.
        - ``start_timeout``: how many seconds importing may take. Defaults to 60.
        - ``log``: whether the server logs what it does to standard error. Defaults to False: only warnings and errors, and what
          workers write there.
        - ``quiet``: whether it logs nothing but errors, as by ``quiet`` of ``run``. Defaults to False.
        - ``pickle``: as for ``run``. Defaults to False.
        - ``start_method``: with ``"fork"`` the server is a fork of this program, and not a new interpreter. It starts in some
          milliseconds, and ``interface``, ``setup`` and ``checkout_done`` may also be the objects themselves, as for ``run``: nothing
          is imported. It has copies of the locks that other threads hold at that moment, and of the files that are open. So a
          worker that needs such a lock waits for ever: a ``DeprecationWarning`` says if there are other threads. Defaults to
          None, which as ``"spawn"`` and ``"forkserver"`` means a new interpreter.

        The new process has one thread for NumPy and similar libraries, unless variables such as ``OPENBLAS_NUM_THREADS``
        say otherwise: workers can only be forked from a process without threads.

        ``RuntimeError`` if the server ends before it is ready, with what it said, or if a module starts a server while it is
        imported for one; ``OSError`` if the system refuses the new process; ``TimeoutError`` if it is not ready in time;
        ``ValueError`` or ``TypeError`` if an option cannot be so, or if both ``log`` and ``quiet`` are true."""
        if log and quiet:
            raise ValueError("`log` and `quiet` exclude each other")
        options = _server_options.checked(
            name=name,
            max_workers=workers,
            spare_workers=spare_workers,
            max_calls=max_calls,
            share_details=True,
            hung_worker_timeout=hung_worker_timeout,
            max_frame=max_frame,
            shutdown_grace=shutdown_grace,
            restarts=False,
            log_level="info" if log else "error" if quiet else "warn",
            pickle=pickle,
            workers_name="workers",
        )
        given = {"interface": interface, "setup": setup, "checkout_done": checkout_done}
        forks = is_fork(start_method)
        for what, named in given.items():
            if not forks and not isinstance(named, str) and (named is not None or what == "interface"):
                raise TypeError(
                    f"{what} is {named!r:.100}: it takes a text such as `module:name`, which the server imports; only a server "
                    'with start_method="fork" has the objects of this program'
                )
        seconds = _server_options.seconds("start_timeout", start_timeout)
        return Starting(given, options, listen, forks).wait(seconds)

    def __repr__(self) -> str:
        return f"<taskfork.Server at {self.address}, process {self.pid}>"

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the server has not ended."""
        return self._process.poll() is None

    def _why(self) -> str:
        """Why it has ended, if it could not serve and nobody has waited for that."""
        report = self._parts.report
        if report is None:
            return ""
        os.set_blocking(report, False)
        try:
            return os.read(report, 1 << 16).decode(errors="replace")
        except OSError:
            return ""

    def close(self) -> None:
        """Ends the server, and waits until it has ended. Running checkouts have ``shutdown_grace``."""
        self._finalizer()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()


def _listen(listen: Optional[str]) -> tuple[socket.socket, str, Optional[str]]:
    """A socket that listens, its address, and what is to be removed: a folder or the socket."""
    kind, _, rest = (listen or "unix:").partition(":")
    folder = None
    if kind == "unix":
        if not rest:
            folder = tempfile.mkdtemp(prefix="taskfork-")
            rest = os.path.join(folder, "socket")
        if len(os.fsencode(rest)) > _MAX_PATH:
            _folders.remove(folder)
            raise ValueError(
                f"the path of the server's socket is longer than {_MAX_PATH} bytes, {rest}: choose a shorter one by `listen`, "
                "or set TMPDIR to a shorter folder"
            )
        listener = socket.socket(socket.AF_UNIX)
        place: Any = rest
    elif kind == "tcp":
        host, _, port = rest.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"`{listen}` is no address: write unix:PATH or tcp:HOST:PORT")
        host = host.strip("[]")
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place = (host, int(port))
    else:
        raise ValueError(f"`{listen}` is no address: write unix:PATH or tcp:HOST:PORT")
    try:
        try:
            listener.bind(place)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or kind != "unix" or not _is_stale(rest):
                advice = "another server may listen there: choose another address by `listen`"
                raise OSError(error.errno, f"{os.strerror(error.errno or 0)}; {advice}", f"{kind}:{rest}") from None
            os.unlink(rest)
            listener.bind(place)
        listener.listen(1024)
    except BaseException:
        listener.close()
        _folders.remove(folder)
        raise
    if kind == "tcp":
        host, number = listener.getsockname()[:2]
        return listener, f"tcp:[{host}]:{number}" if ":" in host else f"tcp:{host}:{number}", None
    return listener, f"unix:{rest}", folder or os.path.abspath(rest)


def _not_standard(file: int) -> int:
    """The descriptor, or another one if it is that of a standard stream, which this program has closed: the server gets others
    there."""
    if file > 2:
        return file
    try:
        return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(file)


def _is_stale(path: str) -> bool:
    """Whether a path is a socket at which nobody listens any more."""
    # Connecting to a file is refused too.
    if not os.path.exists(path) or not stat.S_ISSOCK(os.stat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


class _Parts:
    """What belongs to a server. All of it ends once, by :meth:`end` or :meth:`abandon`."""

    def __init__(self, grace: float) -> None:
        self._wait = grace + _LAST_WAIT
        self._starter = os.getpid()
        self.process: Optional[Process] = None
        #: The end of the pipe without which the server ends.
        self.lifeline: Optional[int] = None
        #: What the process says if it cannot serve.
        self.report: Optional[int] = None
        #: Where it says that it serves.
        self.readiness: Optional[socket.socket] = None
        #: The folder with its socket, or the socket.
        self.folder: Optional[str] = None

    def end(self) -> None:
        """Ends the server, and waits until it has ended. Running checkouts have the grace."""
        process = self._take()
        if process is not None:
            try:
                process.wait(self._wait)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._remove()

    def abandon(self) -> None:
        """Ends a process that does not serve yet."""
        process = self._take()
        if process is not None:
            process.kill()
            process.wait()
        self._remove()

    def close_report(self) -> None:
        file, self.report = self.report, None
        if file is not None:
            _close(file)

    def _take(self) -> Optional[Process]:
        if os.getpid() != self._starter:
            # A child of the process that has started the server. Its own descriptors may have the same numbers.
            self.process = self.lifeline = self.report = self.folder = None
            return None
        process, self.process = self.process, None
        file, self.lifeline = self.lifeline, None
        if file is not None:
            _close(file)
        # The attribute is set before the fork, which may fail.
        return process if process is not None and process.pid != 0 else None

    def _remove(self) -> None:
        self.close_report()
        if self.readiness is not None:
            self.readiness.close()
        folder, self.folder = self.folder, None
        _folders.remove(folder)


class Starting:
    """A process that is to become a server. If it is garbage, as after Ctrl-C at any point, the process ends."""

    def __init__(
        self,
        given: dict[str, Any],
        options: dict[str, Any],
        listen: Optional[str] = None,
        forks: bool = False,
        ends_at_exit: bool = True,
    ) -> None:
        """Starts the process. ``forks``: whether it is a fork of this one. ``ends_at_exit``: whether the server ends when the
        interpreter begins to end; otherwise somebody closes it later."""
        check_guarded()
        self._ends_at_exit = ends_at_exit
        self._parts = parts = _Parts(options["shutdown_grace"])
        self._finalizer = weakref.finalize(self, parts.abandon)
        self._finalizer.atexit = ends_at_exit
        try:
            self._start(parts, given, options, listen, forks)
        except BaseException:
            self.abandon()
            raise

    def _start(
        self, parts: _Parts, given: dict[str, Any], options: dict[str, Any], listen: Optional[str], forks: bool
    ) -> None:
        # A fork has all that this process has open, also what another thread has opened for a server of its own.
        with _opening, contextlib.ExitStack() as passed:
            listener, self.address, parts.folder = _listen(listen)
            listener = socket.socket(fileno=_not_standard(listener.detach()))
            passed.callback(listener.close)
            alive, lifeline = map(_not_standard, os.pipe())
            report, reports = map(_not_standard, os.pipe())
            _files.update((lifeline, report))
            parts.lifeline, parts.report = lifeline, report
            for theirs in (alive, reports):
                passed.callback(os.close, theirs)
            # That it serves it says as to a service manager. The kernel chooses an abstract name.
            parts.readiness = readiness = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            _sockets.add(readiness)
            readiness.bind("")
            order = {
                **given,
                "listener": listener.fileno(),
                "alive": alive,
                "reports": reports,
                "folder": parts.folder,
                "options": options,
            }
            notify = "@" + readiness.getsockname()[1:].decode()
            if forks:
                # The child imports nothing: another thread may be in the middle of an import.
                from . import _forked, _started

                # What is named may not be imported here yet. All else takes less time before the fork, which makes each first
                # change of memory slower.
                is_named = any(isinstance(order[what], str) for what in ("interface", "setup", "checkout_done"))
                template = None if is_named else _started.template_of(order)

                def serve() -> None:
                    os.environ["NOTIFY_SOCKET"] = notify
                    _started.main(order, template, is_forked=True)

                parts.process = process = _forked.Process()
                process.fork(serve)
            else:
                parts.process = _execute(order, notify)

    def wait(self, timeout: Optional[float], is_given_up: Optional[Callable[[], bool]] = None) -> Server:
        """Waits until it serves. ``is_given_up``: whether to wait no more."""
        parts = self._parts
        try:
            assert parts.process is not None and parts.report is not None and parts.readiness is not None
            said = _wait(parts.process.pid, parts.report, parts.readiness, timeout, is_given_up)
            if said is not None:
                raise RuntimeError(f"the server could not start: {said}")
            parts.close_report()
            return self.server()
        except BaseException:
            self.abandon()
            raise

    def server(self) -> Server:
        """The server before it serves. Clients can connect, and :meth:`Server._why` says why it has ended."""
        server = Server(self.address, self._parts, self._ends_at_exit)
        # Only now does the other one end what the server has.
        self._finalizer.detach()
        return server

    def abandon(self) -> None:
        """Ends the process."""
        self._finalizer()


def _execute(order: dict[str, Any], notify: str) -> subprocess.Popen[bytes]:
    """Starts a new interpreter."""
    order["path"] = [os.fspath(path) for path in sys.path if isinstance(path, (str, os.PathLike))]
    environment = {**dict.fromkeys(_THREADS, "1"), **os.environ, "NOTIFY_SOCKET": notify}
    return subprocess.Popen(
        # As for processes of `multiprocessing`.
        [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", _PROGRAM.format(order)],  # type: ignore[attr-defined]
        pass_fds=[order[file] for file in ("listener", "alive", "reports")],
        stdin=subprocess.DEVNULL,
        env=environment,
        # Ctrl-C is for this program, which ends the server by its own end.
        start_new_session=True,
    )


def _wait(
    pid: int,
    report: int,
    readiness: socket.socket,
    timeout: Optional[float],
    is_given_up: Optional[Callable[[], bool]],
) -> Optional[str]:
    """Waits until the new process serves. Returns why it does not."""
    said = bytearray()
    end = None if timeout is None else time.monotonic() + timeout
    process = os.pidfd_open(pid)
    try:
        poll = select.poll()
        for file in (process, report, readiness.fileno()):
            poll.register(file, select.POLLIN)
        os.set_blocking(report, False)
        while True:
            longest = _LONGEST_POLL
            if is_given_up is not None:
                longest = _SHORT_POLL
                if is_given_up():
                    return "it is not wanted any more"
            left = longest if end is None else min(max(0, end - time.monotonic()), longest)
            ready = dict(poll.poll(left * 1000))
            if not ready and end is not None and time.monotonic() >= end:
                raise TimeoutError(f"the server has not imported its interface within {timeout} seconds")
            if report in ready and (data := os.read(report, 1 << 16)):
                said.extend(data)
            elif report in ready or process in ready:
                return said.decode(errors="replace") or "its process has ended without a word; see its standard error"
            elif ready and b"READY=1" in readiness.recv(1 << 12).split(b"\n"):
                return None
    finally:
        os.close(process)


#: The ends of pipes to servers, and the sockets at which these say that they serve. A child of this process must not keep them:
#: a server would live as long as it.
_files: set[int] = set()
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _close(file: int) -> None:
    if file in _files:
        _files.discard(file)
        os.close(file)


#: Held while descriptors are open that only a new server needs.
_opening = threading.RLock()


def _close_in_child() -> None:
    global _opening
    # Another thread may have had it.
    _opening = threading.RLock()
    for file in _files:
        os.close(file)
    _files.clear()
    for each in list(_sockets):
        each.close()


os.register_at_fork(after_in_child=_close_in_child)
