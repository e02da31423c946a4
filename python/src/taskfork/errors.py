"""The errors of calls."""

from __future__ import annotations

from typing import Any, Optional

#: The most causes that an error keeps.
MAX_CAUSES = 64

#: The most notes that an error keeps.
MAX_NOTES = 64


class Error(Exception):
    """The base of all errors of calls.

    ``fatal`` is true if the checkout is over. ``may_have_run`` is false if the call has certainly not begun, so that it
    can be repeated. All errors can be pickled."""

    fatal = False
    may_have_run: bool = True

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        # Pickling restores the fields as attributes, after it has made the error of its message.
        self.__dict__.update(fields)
        if hasattr(self, "add_note"):
            for note in fields.get("notes") or ():
                self.add_note(note)
            stack = fields.get("stack")
            if stack:
                self.add_note(f"in the worker:\n{stack.rstrip()}")


class CallError(Error):
    """The call failed; its checkout remains usable."""


class InterfaceError(CallError):
    """The interface's own error. ``causes`` has the messages of its causes, nearest first: at most 64, and a text that
    states the number of the others. ``value`` is the error itself if the interface is typed. ``stack`` is the worker's
    stack when it was raised; that of an exception group is followed by its exceptions. ``notes`` has what ``add_note`` has added to the
    exception in the worker, at most 64 texts; in Python 3.11 and later they are notes of this error too. ``type`` is the name of the exception's class if the worker is one in Python, with its module
    unless that is ``builtins``."""

    causes: list[str] = []
    value: Any = None
    notes: list[str] = []
    type: Optional[str] = None
    stack: Optional[str] = None


class PanicError(CallError):
    """The worker's code panicked. ``location`` is (file, line, column), or None."""

    location: Optional[tuple[str, int, int]] = None
    stack: Optional[str] = None


class UnknownMethod(CallError):
    """The interface has no such method. ``known`` has the names of its methods."""

    known: list[str] = []


class ArgumentsError(CallError):
    """The arguments do not match the method, or cannot be encoded."""


class InputError(CallError):
    """The input of the call has failed: its iterable has raised an exception, which is the ``__cause__``, or has given an item
    that cannot be sent. The method has got an ``InputFailed``, if it asked for more items."""


class ResultError(CallError):
    """The method has run, but its result cannot be encoded, or not decoded."""


class SetupError(CallError):
    """The worker's ``setup`` failed. The next call tries it again. ``causes`` is as in ``InterfaceError``."""

    causes: list[str] = []


class Dropped(CallError):
    """The call was not run because an earlier call of the checkout failed."""


class FatalError(Error):
    """The checkout is over; every later call on it ends with such an error."""

    fatal = True


class TimedOut(FatalError, TimeoutError):
    """The timeout of a call passed; it counts from making the call. ``after`` is the timeout in seconds. ``stack`` is the
    worker's stack when it was killed, or when its code was interrupted, and ``no_stack`` says why there is none.
    ``stderr`` is the end of its standard error, if the server reported it.

    It is a ``TimeoutError`` too."""

    after: float = 0.0
    stack: Optional[str] = None
    no_stack: Optional[str] = None
    stderr: Optional[str] = None


class WorkerDied(FatalError):
    """The worker ended. ``exit`` is its status and ``signal`` its signal; both are None if the cause is unknown.

    ``pid`` is what ``os.getpid()`` returned in it. A program in another language has a process in front of it, which the
    server counts as the worker: ``worker_pid`` is that of this process, and the same as ``pid`` elsewhere. Lines in the log begin
    with both: ``[WORKER_PID/PID]``. If nobody could say how the program ended, ``pid`` is that of the process in front of it."""

    pid: int = 0
    worker_pid: int = 0
    exit: Optional[int] = None
    signal: Optional[int] = None
    during: Optional[str] = None
    reason: Optional[str] = None
    stderr: Optional[str] = None
    stack: Optional[str] = None
    no_stack: Optional[str] = None


class Aborted(FatalError):
    """``abort`` was called, the checkout was released, or the client was closed."""


class CannotConnect(FatalError):
    """No server answered before the timeout. ``__cause__`` is the error of the last attempt, if it raised one."""

    address: str = ""
    reason: str = ""
    unreachable_for: float = 0.0


class WrongInterface(FatalError):
    """The server does not serve an interface that the client requires. ``difference`` is the server's text."""

    address: str = ""
    difference: str = ""


class Overloaded(FatalError):
    """The queue has ``max_queue`` checkouts already."""

    queued: int = 0


class ProtocolError(FatalError):
    """The peer violated the protocol."""
