"""Objects that are sent as plain values: texts, numbers, arrays and maps, which peers in any language can read.

The native module calls :func:`to_plain` for each object of a type that they do not know. What is inside
the value that it returns comes later, so the depth of values bounds this as well.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
import weakref
from collections import deque
from collections.abc import Mapping, Set
from typing import Any, Callable, Optional

from . import _scalars

Send = Callable[[Any], Any]

#: So many converters can follow each other before one has made something that needs none.
_MOST_STEPS = 16

#: What has an encoding of its own, also objects of classes that are derived from these.
PLAIN = (type(None), bool, int, float, str, bytes, bytearray, list, tuple, dict)

#: What users have added, by class.
_added: dict[type, Send] = {}

#: How objects of a class are sent, as far as that was asked for; None if no converter is known.
_known: weakref.WeakKeyDictionary[type, Optional[Send]] = weakref.WeakKeyDictionary()


class SendError(ValueError):
    """A converter has refused an object."""


def add(kind: type, send: Send) -> None:
    """Lets objects of a class, and of those that are derived from it, be sent as what a function makes of them."""
    _added[kind] = send
    _known.clear()


def to_plain(value: Any) -> Any:
    """What an object is sent as; the object itself if no converter is known for it. ``SendError`` if it cannot be sent."""
    given = value
    for _ in range(_MOST_STEPS):
        send = _sender(type(value))
        if send is None:
            return value
        try:
            value = send(value)
        except Exception as error:
            reason = str(error) if isinstance(error, _scalars.Refused) else _scalars.said(error)
            raise SendError(f"a {type(given).__name__} cannot be encoded: {reason}") from error
    raise SendError(f"a {type(given).__name__} cannot be encoded: its converters lead to no end")


def _sender(kind: type) -> Optional[Send]:
    try:
        return _known[kind]
    except KeyError:
        found = _known[kind] = _find(kind)
        return found


def _find(kind: type) -> Optional[Send]:
    if issubclass(kind, PLAIN):
        return None
    for base in kind.__mro__:
        if base in _added:
            return _added[base]
    if issubclass(kind, enum.Enum):
        return _value_of
    if dataclasses.is_dataclass(kind):
        return _fields_of
    for scalar in _scalars.SCALARS:
        module = sys.modules.get(scalar.module)
        if module is not None and issubclass(kind, getattr(module, scalar.name)):
            return scalar.send
    if issubclass(kind, (Set, deque)):
        return tuple
    return dict if issubclass(kind, Mapping) else None


def _value_of(member: enum.Enum) -> Any:
    return member.value


def _fields_of(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
