"""The end of a call's time."""

from __future__ import annotations


class DeadlineExceeded(BaseException):
    """Raised in a call when its time is over. It is no ``Exception``, so that ``except Exception`` lets it pass. The call
    may clean up within the caller's grace, which defaults to 0.1 seconds. Then the worker is killed."""
