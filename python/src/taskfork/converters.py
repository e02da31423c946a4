"""Conversions between objects of Python and plain values, which peers in any language have."""

from __future__ import annotations

import functools
from typing import Any, Callable, Optional

from . import _annotations, _sending
from ._conversions import Converter, Receive, Unusable, apply

__all__ = ["add_converter", "convert"]

#: So many annotations of ``returns=`` and ``yields=`` are kept as they have been read.
_MOST_KEPT = 256


def add_converter(
    kind: type,
    *,
    send: Optional[Callable[[Any], Any]] = None,
    receive: Optional[Callable[[Any], Any]] = None,
) -> None:
    """Says how the objects of a class travel, in this process.

    - ``send`` gets an object of the class, or of one that is derived from it, and returns what is sent for it: a plain value, or
      one that contains other objects that can be sent.
    - ``receive`` gets what has arrived where an annotation names the class, and returns an object. An exception says what is wrong:
      it is the error of the call.

    It replaces what was known of the class before. Objects that are texts, numbers, bytes, lists, tuples or dicts, or of classes that
    are derived from these, are sent as such: ``send`` does not get them.

    Call it before ``serve`` or ``run``, which read the annotations of methods. ``TypeError`` if it is no class, or without a
    function."""
    if not isinstance(kind, type) or (send is None and receive is None):
        raise TypeError("add_converter takes a class, and a function for `send`, `receive` or both")
    if send is not None:
        _sending.add(kind, send)
    if receive is not None:
        _annotations.add(kind, receive)
        _kept.cache_clear()


def convert(value: Any, annotation: Any) -> Any:
    """Converts a plain value to what an annotation asks for, as for a parameter of a method with that annotation. It is checked also
    if the annotation asks for plain values.

    ``ValueError`` if the value does not fit, with what is wrong and where. ``TypeError`` if it is no annotation that can be used, for
    example a text."""
    receive = receiver(annotation)
    return value if receive is None else apply(receive, "the value", value)


def receiver(annotation: Any) -> Optional[Receive]:
    """The function that converts to an annotation, for ``apply``; None if values stay as they are. ``TypeError`` for what
    is no annotation."""
    if isinstance(annotation, str):
        raise TypeError(f"{annotation!r:.100} is a text, and no annotation: pass the type itself")
    try:
        # Unions are equal whose members have another order, and the order matters, also deep within other annotations.
        found = _kept(annotation, repr(annotation))
    except TypeError as error:
        if isinstance(error, Unusable):
            raise
        # Not every annotation has a hash.
        found = _annotations.converter_of(annotation, {}, is_strict=True)
    return None if found.takes_all else found.run


@functools.lru_cache(_MOST_KEPT, typed=True)
def _kept(annotation: Any, _text: str) -> Converter:
    return _annotations.converter_of(annotation, {}, is_strict=True)
