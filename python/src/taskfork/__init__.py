"""Exclusive checkouts of forked worker processes.

``taskfork.worker.serve`` turns Python functions into a worker. ``taskfork.Client`` calls workers from asyncio, and
``taskfork.blocking.Client`` from threads.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from .errors import (
    Aborted,
    ArgumentsError,
    CallError,
    CannotConnect,
    Dropped,
    Error,
    FatalError,
    InputError,
    InterfaceError,
    Overloaded,
    PanicError,
    ProtocolError,
    ResultError,
    SetupError,
    TimedOut,
    UnknownMethod,
    WorkerDied,
    WrongInterface,
)

from ._progress import Progress
from .shared import Blob, BlobMut

if TYPE_CHECKING:
    from ._call import Call, Reports, Stream
    from ._server import Server
    from .executor import Executor
    from .client import Checkout, Client, Stats
    from .converters import add_converter, convert
    from .worker import context

__all__ = [
    "Aborted",
    "ArgumentsError",
    "Blob",
    "BlobMut",
    "Call",
    "CallError",
    "CannotConnect",
    "Checkout",
    "Client",
    "Dropped",
    "Error",
    "Executor",
    "FatalError",
    "InputError",
    "InterfaceError",
    "Overloaded",
    "PanicError",
    "Progress",
    "ProtocolError",
    "Reports",
    "ResultError",
    "Server",
    "SetupError",
    "Stats",
    "Stream",
    "TimedOut",
    "UnknownMethod",
    "WorkerDied",
    "WrongInterface",
    "add_converter",
    "context",
    "convert",
]


#: Imported on first use: workers start faster without asyncio, and clients without the modules of workers.
_MODULES = {
    **dict.fromkeys(("Call", "Reports", "Stream"), "_call"),
    **dict.fromkeys(("Checkout", "Client", "Stats"), "client"),
    **dict.fromkeys(("add_converter", "convert"), "converters"),
    "Executor": "executor",
    "Server": "_server",
    "context": "worker",
}


def _refuse_free_threading() -> None:
    """Raises ImportError in an interpreter without the global lock, on which the native module relies at forks and for the objects of
    calls. Such an interpreter could not load it either."""
    if "t" in sys.abiflags:
        raise ImportError(
            "taskfork does not work in a free-threaded build of Python: use the ordinary build of the same version, such as python3.13 "
            "instead of python3.13t, also for the programs that taskfork starts"
        )


def _refuse_subinterpreters() -> None:
    """Raises ImportError in an interpreter that is not the first one of its process. The native module has one thread, one
    watch over forks and one set of types for a process, and could not say to which interpreter an object belongs."""
    for name in ("_interpreters", "_xxsubinterpreters"):
        try:
            interpreters = importlib.import_module(name)
            break
        except ImportError:
            continue
    else:
        return
    if interpreters.get_current() != interpreters.get_main():
        raise ImportError(
            "taskfork does not work in a subinterpreter: import it in the main interpreter of the process, or run the code "
            "in another process, as taskfork.Server and taskfork.Executor do"
        )


def __getattr__(name: str) -> Any:
    if name == "_native":
        # Asked for before the module is imported for the first time.
        _refuse_free_threading()
        _refuse_subinterpreters()
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
