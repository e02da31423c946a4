"""A fork of this program, which becomes the server of its workers.

The child has what the program had at that moment: its modules, its open files, and copies of the locks that other threads held. It
never returns to the program's code, and ends without its exit handlers.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from typing import Any, Callable, NoReturn, Optional, TextIO

from . import _native

#: The threads that the package has made in Python, by their numbers in the kernel. One may be on its way out.
own_threads: set[int] = set()

#: The names of those of the native module, which run no code of the user: of clients, and of workers.
_NATIVE_THREADS = ("taskfork-client", "taskfork-notes")

#: What the child has replaced. Its end could close files of the program.
_kept: list[Any] = []


class Process:
    """A child of this process, with what a server needs of ``subprocess.Popen``."""

    def __init__(self) -> None:
        #: 0 before the fork.
        self.pid = 0
        self._status: Optional[int] = None
        self._lock = threading.Lock()

    def fork(self, serve: Callable[[], None]) -> None:
        """Forks. The child runs ``serve``, and ends. ``OSError`` if the system refuses."""
        _warn_of_threads()
        for stream in (sys.stdout, sys.stderr):
            # Otherwise both processes would write what is left in it.
            try:
                stream.flush()
            except (AttributeError, OSError, ValueError):
                pass
        sys.audit("os.fork")
        # What the child replaces is made here: after the fork each first change of a page costs a copy.
        with open(os.devnull, encoding="utf-8") as empty:
            handled = [number for number in _native.caught_signals() if callable(signal.getsignal(number))]
            try:
                _native.fork(self)
            except OSError as error:
                raise OSError(error.errno, f"the program cannot be forked for the server of its workers: {error.strerror}") from None
            if self.pid == 0:
                _become_server(serve, handled, empty)

    def poll(self) -> Optional[int]:
        with self._lock:
            if self._status is None:
                try:
                    ended, status = os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:
                    # Somebody else has waited for it, as a program may that waits for all children.
                    self._status = 0
                else:
                    if ended:
                        self._status = os.waitstatus_to_exitcode(status)
            return self._status

    def wait(self, timeout: Optional[float] = None) -> int:
        try:
            process = os.pidfd_open(self.pid)
        except ProcessLookupError:
            process = None
        if process is not None:
            try:
                poll = select.poll()
                poll.register(process, select.POLLIN)
                poll.poll(None if timeout is None else timeout * 1000)
            finally:
                os.close(process)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired("the server", timeout or 0)
        return status

    def kill(self) -> None:
        if self.pid != 0 and self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _warn_of_threads() -> None:
    """As ``os.fork`` does from Python 3.12 on, but before the fork, and not because of the package's own threads."""
    others = {int(number) for number in os.listdir("/proc/self/task")} - own_threads - {threading.get_native_id()}
    others = {number for number in others if _name(number) not in _NATIVE_THREADS}
    if not others:
        return
    said = (
        f"this program has other threads ({len(others)}) when it is forked for the server of its workers: a worker that needs a "
        "lock that one of them holds at this moment waits for ever. Start the server before the threads, or do without fork"
    )
    warnings.warn(said, DeprecationWarning, stacklevel=_depth_of_user())


def _name(thread: int) -> str:
    try:
        with open(f"/proc/self/task/{thread}/comm") as file:
            return file.read().strip()
    except OSError:
        # It has ended.
        return _NATIVE_THREADS[0]


def _depth_of_user() -> int:
    """How many calls the user's code is away from the caller."""
    folder = os.path.dirname(__file__) + os.sep
    depth, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(folder):
        depth, frame = depth + 1, frame.f_back
    return depth


def _become_server(serve: Callable[[], None], handled: list[int], empty: TextIO) -> NoReturn:
    status = 1
    try:
        # A collection would run finalizers of the program's garbage, and copy the memory that it visits.
        gc.freeze()
        _leave_program(handled, empty)
        serve()
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _leave_program(handled: list[int], empty: TextIO) -> None:
    """Ends what ties the child to the program's signals, terminal and children. Signals are blocked. ``handled``: those that have a
    handler in Python."""
    # Ctrl-C is for the program, which ends the server by its own end.
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in handled:
        # What the program's group got since the fork is discarded: it was meant for the handler.
        signal.signal(number, signal.SIG_IGN)
        signal.signal(number, signal.SIG_DFL)
    os.dup2(empty.fileno(), 0)
    _kept.append(sys.stdin)
    sys.stdin = empty
    # As in a process that `multiprocessing` forks.
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        sys.modules["multiprocessing.process"]._children = set()  # type: ignore[attr-defined]
        util._finalizer_registry.clear()
        util._run_after_forkers()
