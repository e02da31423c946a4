"""Exclusive checkouts of forked worker processes.

``taskfork.worker.serve`` makes a worker of Python functions, ``taskfork.Client`` calls workers
from asyncio, and ``taskfork.blocking.Client`` from programs without it.
"""

from .client import Checkout, Client, Stats
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

__all__ = [
    "Aborted",
    "ArgumentsError",
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
