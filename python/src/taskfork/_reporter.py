"""Sending from a worker how far its call has got."""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, ContextManager, Optional

#: The shortest time between two reports, in seconds.
_INTERVAL = 0.05


class Reporter:
    """Sends the latest report of the running call, at most 20 times a second.

    ``send`` is called in another thread, so that a report never waits, and with ``sending`` held. Nothing of a call is
    sent after its ``end``."""

    def __init__(self, sending: ContextManager[Any], send: Callable[[list[Any]], None]) -> None:
        # A lock of its own: `sending` may be held for a long time. It is locked after that one.
        self._lock = threading.Lock()
        self._sending, self._send = sending, send
        self._latest: Optional[list[Any]] = None
        self._is_scheduled = False
        self._sent_at = 0.0

    def report(self, report: list[Any]) -> None:
        """Sends a report soon, in place of an earlier one that has not been sent."""
        with self._lock:
            self._latest = report
            if not self._is_scheduled:
                wait = self._sent_at + _INTERVAL - time.monotonic()
                # It lives until it has sent: a program without other threads can be forked safely at other times.
                timer = threading.Timer(max(wait, 0.0), self._send_latest)
                timer.daemon = True
                try:
                    timer.start()
                except RuntimeError:
                    # There can be no more threads. The next report tries again.
                    return
                self._is_scheduled = True

    def end(self) -> None:
        """The call has ended: a report that has not been sent is dropped."""
        with self._sending, self._lock:
            self._latest = None

    def _send_latest(self) -> None:
        with self._sending:
            with self._lock:
                report, self._latest = self._latest, None
                self._is_scheduled = False
                self._sent_at = time.monotonic()
            if report is not None:
                try:
                    self._send(report)
                except OSError:
                    # The answer cannot be sent either.
                    pass
