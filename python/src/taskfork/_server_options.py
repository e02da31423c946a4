"""The options of servers: what they may be."""

from __future__ import annotations

import math
import operator
from typing import Any, Optional

#: The most that a count can be in the native module.
_MOST = (1 << 63) - 1


def count(name: str, value: Any, least: int) -> Optional[int]:
    """A number of things. None stays, for the default of the server. ``TypeError`` or ``ValueError`` if it is none."""
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r:.100}: it takes an integer")
    # Also of NumPy's.
    number = operator.index(value)
    if not least <= number <= _MOST:
        raise ValueError(f"{name} is {value!r:.100}: it takes an integer from {least} on")
    return number


def seconds(name: str, value: Any) -> Optional[float]:
    """A time. None and infinity are None, for no limit. ``TypeError`` or ``ValueError`` if it is none."""
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r:.100}: it takes a number of seconds")
    if not value >= 0:
        raise ValueError(f"{name} is {value!r:.100}: a time is 0 or more")
    # A large integer is no float.
    return None if value > 1e18 or math.isinf(value) else float(value)


def text(name: str, value: Any) -> str:
    """A text that can be encoded. ``TypeError`` or ``ValueError`` if it is none."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r:.100}: it takes a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is {value!r:.100}: it takes a text without surrogates") from None
    return value


def flag(name: str, value: Any) -> bool:
    """A choice. A text such as "false" would mean the opposite of what it says."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r:.100}: it takes True or False")
    return value


def checked(
    *,
    name: str,
    max_workers: Optional[int],
    spare_workers: int,
    max_calls: Optional[int],
    share_details: bool,
    hung_worker_timeout: Optional[float],
    max_frame: Optional[int],
    shutdown_grace: float,
    pickle: bool,
    workers_name: str = "max_workers",
    **others: Any,
) -> dict[str, Any]:
    """The options for the native module. ``workers_name`` is that of ``max_workers`` where the user gives it."""
    grace = seconds("shutdown_grace", shutdown_grace)
    return {
        "name": text("name", name),
        "max_workers": count(workers_name, max_workers, 1),
        "spare_workers": count("spare_workers", spare_workers, 0) or 0,
        "max_calls": count("max_calls", max_calls, 1),
        "share_details": flag("share_details", share_details),
        "hung_worker_timeout": seconds("hung_worker_timeout", hung_worker_timeout),
        "max_frame": count("max_frame", max_frame, 256),
        "shutdown_grace": math.inf if grace is None else grace,
        "pickle": flag("pickle", pickle),
        "writable": False,
        **others,
    }
