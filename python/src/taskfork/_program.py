"""A worker that is a program of its own, which a server has started."""

from __future__ import annotations

import sys
import threading
from typing import Any, Callable, Optional

from . import _native, server
from ._methods import Interface


def serve(
    state: Optional[int],
    connection: int,
    interface: Interface,
    setup: Optional[Callable[[], Any]],
    checkout_done: Optional[Callable[[], Any]],
    pickles: bool,
) -> None:
    """Serves calls until the connection ends. ``state`` is the descriptor of what the worker has known that this program has
    taken the place of. Without one, a worker has started this program to find out what it is, and waits at ``connection``."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("`serve` runs in the main thread, because Python handles signals there")
    # The worker learns before that if this fails.
    worker = server._Worker(interface, setup, checkout_done)
    try:
        if state is None:
            _native.offer_to_serve(connection)
            # The worker starts this program once more, in its own place. That one serves, and runs `setup`.
            sys.exit(0)
        worker.handle_signals()
        status = _native.serve_inherited(state, worker, pickles)
    except (OSError, RuntimeError) as error:
        sys.exit(f"taskfork: {error}")
    if status != 0:
        sys.exit(status)
