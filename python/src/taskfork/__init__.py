"""Exclusive checkouts of forked worker processes.

``taskfork.worker.serve`` turns Python functions into a worker. ``taskfork.Client`` calls workers from asyncio, and
``taskfork.blocking.Client`` from threads.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import (
    Aborted,
    ArgumentsError,
    CallError,
    CannotConnect,
    Dropped,
    Error,
    FatalError,
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
    from .client import Checkout, Client, Stats
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
    "FatalError",
    "InterfaceError",
    "Overloaded",
    "PanicError",
    "Progress",
    "ProtocolError",
    "Reports",
    "ResultError",
    "SetupError",
    "Stats",
    "Stream",
    "TimedOut",
    "UnknownMethod",
    "WorkerDied",
    "WrongInterface",
    "context",
]


#: Imported on first use: workers start faster without asyncio, and clients without the modules of workers.
_MODULES = {
    **dict.fromkeys(("Call", "Reports", "Stream"), "_call"),
    **dict.fromkeys(("Checkout", "Client", "Stats"), "client"),
    "context": "worker",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
