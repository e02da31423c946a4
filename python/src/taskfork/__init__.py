"""Exclusive checkouts of forked worker processes.

``taskfork.worker.serve`` turns Python functions into a worker. ``taskfork.Client`` calls workers from asyncio, and
``taskfork.blocking.Client`` from threads.
"""

from __future__ import annotations

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
)

from .shared import Blob, BlobMut

if TYPE_CHECKING:
    from .client import Checkout, Client, Stats

__all__ = [
    "Aborted",
    "ArgumentsError",
    "Blob",
    "BlobMut",
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
    "ProtocolError",
    "ResultError",
    "SetupError",
    "Stats",
    "TimedOut",
    "UnknownMethod",
    "WorkerDied",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: workers start faster without asyncio.
    if name in ("Checkout", "Client", "Stats"):
        from . import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
