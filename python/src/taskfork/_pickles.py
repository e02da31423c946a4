"""Objects that have no other encoding, which are pickled where both sides have agreed to that by ``pickle=True``."""

from __future__ import annotations

import pickle
from typing import Any, Union

from . import _scalars
from ._pickling import dumps as _dumps

#: What says that a receiver has not agreed.
REFUSED = (
    "a value is pickled, and this side has not agreed to that: who can send such a value can run any code here. If you trust the "
    "other side, pass `pickle=True` to `Client`, and to `serve` or `run`"
)


class Refused(ValueError):
    """A pickled value is not taken; the text says why."""


def with_hint(reason: str) -> str:
    """Why an object cannot be encoded, and what to do."""
    return f"{reason} (if both sides have `pickle=True`, it is pickled)"


def dumps(value: Any, reason: str) -> Union[bytes, str]:
    """A pickled object; a text if it cannot be pickled. ``reason`` says why it has no other encoding."""
    try:
        return _dumps(value)
    except Exception as error:
        return f"{reason}; and it cannot be pickled: {_scalars.said(error)}"


def loads(data: bytes, is_agreed: bool) -> Any:
    """The object. ``Refused`` if this side has not agreed, or if the object cannot be made."""
    if not is_agreed:
        raise Refused(REFUSED)
    try:
        return pickle.loads(data)
    except (Exception, SystemExit) as error:
        # What else there is interrupts the receiver, as Ctrl-C and the end of the call's time do.
        raise Refused(f"a pickled value cannot be read: {_scalars.said(error)}") from error
