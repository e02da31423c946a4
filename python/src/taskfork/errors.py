"""The errors of calls."""

from __future__ import annotations

import signal as _signal
from typing import Any, Optional, Sequence

#: The most causes that an error keeps.
MAX_CAUSES = 64


class Error(Exception):
    """The base of all errors of calls.

    ``fatal`` is true if the checkout is over. ``may_have_run`` is false if the call has certainly not begun, so that it
    can be repeated."""

    fatal = False

    def __init__(self, message: str, *, may_have_run: bool = True) -> None:
        super().__init__(message)
        self.message = message
        self.may_have_run = may_have_run


class CallError(Error):
    """The call failed; its checkout remains usable."""

    #: Whether the worker may be used for other checkouts, as it says itself.
    _keeps_worker = False


class InterfaceError(CallError):
    """The interface's own error. ``causes`` has the messages of its causes, nearest first: at most 64, and a text that
    states the number of the others. ``value`` is the error itself if the interface is typed. ``stack`` is the worker's
    stack when it was raised."""

    def __init__(
        self,
        message: str,
        causes: Sequence[str] = (),
        value: Any = None,
        stack: Optional[str] = None,
    ) -> None:
        super().__init__(message)
        self.causes = list(causes)
        self.value = value
        self.stack = stack


class PanicError(CallError):
    """The worker's code panicked. ``location`` is (file, line, column), or None."""

    def __init__(
        self,
        message: str,
        location: Optional[tuple[str, int, int]] = None,
        stack: Optional[str] = None,
    ) -> None:
        place = "" if location is None else " (%s:%d:%d)" % location
        super().__init__(f"panicked: {message}{place}")
        self.location = location
        self.stack = stack


class UnknownMethod(CallError):
    """The interface has no such method. ``known`` has the names of its methods."""

    def __init__(self, message: str, known: Sequence[str] = ()) -> None:
        there = f": there is {', '.join(known)}" if known else ""
        super().__init__(message + there, may_have_run=False)
        self.known = list(known)


class ArgumentsError(CallError):
    """The arguments do not match the method, or cannot be encoded."""

    def __init__(self, message: str) -> None:
        super().__init__(f"bad arguments: {message}", may_have_run=False)


class ResultError(CallError):
    """The method has run, but its result cannot be encoded."""

    def __init__(self, message: str) -> None:
        super().__init__(f"the result cannot be sent: {message}")


class SetupError(CallError):
    """The worker's ``setup`` failed. The next call tries it again."""

    def __init__(self, message: str, causes: Sequence[str] = ()) -> None:
        super().__init__(f"setup exception: {message}", may_have_run=False)
        self.causes = list(causes)


class Dropped(CallError):
    """The call was not run because an earlier call of the checkout failed."""

    def __init__(self, behind: str) -> None:
        super().__init__(f"not run because {behind} failed before it", may_have_run=False)


class FatalError(Error):
    """The checkout is over; every later call on it ends with this error."""

    fatal = True


class TimedOut(FatalError):
    """The timeout of a call passed; it counts from making the call. ``after`` is the timeout in seconds. ``stack`` is the
    worker's stack when it was killed, and ``stderr`` the end of its standard error, if the server reported them."""

    def __init__(
        self,
        after: float,
        doing: str,
        *,
        may_have_run: bool,
        stack: Optional[str] = None,
        stderr: Optional[str] = None,
    ) -> None:
        super().__init__(f"timed out after {seconds(after)} {doing}", may_have_run=may_have_run)
        self.after = after
        self.stack = stack
        self.stderr = stderr


class WorkerDied(FatalError):
    """The worker ended. ``exit`` is its status and ``signal`` its signal; both are None if the cause is unknown."""

    def __init__(self, pid: int, notice: Optional[dict[str, Any]], *, may_have_run: bool) -> None:
        notice = notice or {}
        self.pid = int(notice.get("pid", pid))
        self.exit: Optional[int] = notice.get("exit")
        self.signal: Optional[int] = notice.get("signal")
        self.during: Optional[str] = notice.get("during")
        self.reason: Optional[str] = notice.get("reason")
        self.stderr: Optional[str] = notice.get("stderr")
        self.stack: Optional[str] = notice.get("stack")
        self.no_stack: Optional[str] = notice.get("no_stack")
        text = f"worker connection suddenly died: worker {self.pid} {self._end()}"
        doing = {"setup": "during setup", "idle": "between calls", "call": "during a call"}
        if self.during is not None:
            text += " " + doing.get(self.during, f"during {self.during}")
        if self.reason is not None:
            text += f": {self.reason}"
        super().__init__(text, may_have_run=may_have_run)

    def _end(self) -> str:
        if self.signal is not None:
            try:
                return f"was killed by {_signal.Signals(self.signal).name}"
            except ValueError:
                return f"was killed by signal {self.signal}"
        if self.exit is not None:
            return f"exited with status {self.exit}"
        return "closed its connection"


class Aborted(FatalError):
    """``abort`` was called, or the client was closed."""


class CannotConnect(FatalError):
    """No server answered before the timeout. ``__cause__`` is the error of the last attempt, if it raised one."""

    def __init__(self, address: str, reason: str, unreachable_for: float, after: float) -> None:
        super().__init__(
            f"timed out after {seconds(after)}: no server answered at {address} for the last "
            f"{seconds(unreachable_for)} ({reason})",
            may_have_run=False,
        )
        self.address = address
        self.reason = reason
        self.unreachable_for = unreachable_for


class WrongInterface(FatalError):
    """The server does not serve an interface that the client requires. ``difference`` is the server's text."""

    def __init__(self, address: str, difference: str) -> None:
        super().__init__(
            f"the server at {address} and this client do not fit: {difference}", may_have_run=False
        )
        self.address = address
        self.difference = difference


class Overloaded(FatalError):
    """The queue has ``max_queue`` checkouts already."""

    def __init__(self, queued: int) -> None:
        super().__init__(
            f"overloaded: {queued} checkouts wait already (max_queue)", may_have_run=False
        )
        self.queued = queued


class ProtocolError(FatalError):
    """The peer violated the protocol."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"protocol broken: {detail}")


def seconds(time: float) -> str:
    """A duration as text."""
    text = f"{time:.3f}".rstrip("0").rstrip(".")
    return f"{text} second" if text == "1" else f"{text} seconds"
