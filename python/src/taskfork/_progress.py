"""How far a call has got."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

#: The most bytes of a text.
MAX_TEXT = 64


@dataclass(frozen=True)
class Progress:
    """How far a call has got: ``done`` of ``total``, in a unit that the worker chooses. ``total`` is None if it is not
    known. ``what`` says what is counted, or what the worker does now, and has at most 64 bytes."""

    done: int
    total: Optional[int] = None
    what: str = ""

    @property
    def fraction(self) -> Optional[float]:
        """The part that is done, from 0 to 1; None if the total is not known or 0."""
        return min(self.done / self.total, 1.0) if self.total else None

    def __str__(self) -> str:
        """As in ``3 of 12 pages``."""
        of = "" if self.total is None else f" of {self.total}"
        return f"{self.done}{of} {self.what}".rstrip()


def is_count(value: Any) -> bool:
    """Whether it is an unsigned integer of 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64


def cut(text: str) -> str:
    """The first 64 bytes of a text, in whole characters."""
    return text.encode(errors="replace")[:MAX_TEXT].decode(errors="ignore")
