"""Texts that can be sent, whatever user code makes of them."""

from __future__ import annotations

import sys
from typing import Any

from . import _sending

#: Levels of a value in a log, so that the message is within the 64 levels of Log::Defer.
_MOST_LEVELS = 48

#: The most elements of one line, and the most characters of an object that is no plain value.
_MOST_ELEMENTS, _MOST_SHOWN = 10_000, 1_000


def encodable(text: str) -> str:
    """A text, in which escapes replace what cannot be encoded."""
    return text.encode(errors="backslashreplace").decode()


class _Left:
    """How many elements a line may have still."""

    def __init__(self) -> None:
        self.elements = _MOST_ELEMENTS


def loggable(value: Any) -> Any:
    """A copy of what a call logs, in which texts replace what cannot be shown: a line must not fail its call."""
    return _shown(value, _MOST_LEVELS, _Left())


def _shown(value: Any, levels: int, left: _Left) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value if value.isascii() else encodable(value)
    if isinstance(value, int):
        return int(value) if -(1 << 63) <= value < 1 << 64 else _text_of(value)
    if isinstance(value, float):
        return float(value)
    if not isinstance(value, (list, tuple, dict)):
        plain = _plain(value)
        return _text_of(value) if plain is value else _shown(plain, levels - 1, left) if levels > 0 else "…"
    if levels <= 0:
        return "(nested too deeply)"
    left.elements -= len(value)
    if left.elements < 0:
        return f"({len(value)} elements)"
    if isinstance(value, dict):
        return {_key(key): _shown(item, levels - 1, left) for key, item in list(value.items())}
    return [_shown(item, levels - 1, left) for item in list(value)]


def _key(key: Any) -> str:
    return encodable(key) if isinstance(key, str) else _text_of(key)


def _plain(value: Any) -> Any:
    """A plain value for an object; the object itself if there is none."""
    numpy = sys.modules.get("numpy")
    try:
        if numpy is not None and isinstance(value, numpy.generic):
            number = value.item()
            return value if isinstance(number, numpy.generic) else number
        return _sending.to_plain(value)
    except Exception:
        # Code of the user.
        return value


def _text_of(value: Any) -> str:
    try:
        return encodable(f"{value!r:.{_MOST_SHOWN}}")
    except Exception:
        return f"a {type(value).__name__}"
