"""The event loop to which a client, and what it makes, belong."""

from __future__ import annotations

import asyncio
import os
from typing import Optional


def running_loop() -> Optional[asyncio.AbstractEventLoop]:
    """The event loop of this thread. None if none runs, also in a child that was forked while one did."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def check(loop: asyncio.AbstractEventLoop, pid: int) -> None:
    """``RuntimeError`` in another event loop, or another process."""
    if running_loop() is not loop:
        raise RuntimeError(
            "this client was made before the process was forked: make a new one in each process"
            if os.getpid() != pid
            else "this client belongs to another event loop: make one in each, as `async with taskfork.Client(…)` does"
        )
