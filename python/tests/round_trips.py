"""Values of all kinds, and what peers make of them. The functions here say what the documents say: README of the package about
Python's values, docs/PROTOCOL.md about JSON."""

from __future__ import annotations

import math
import struct
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

_SURROGATES = st.text(st.characters(categories=["Cs"]), min_size=1, max_size=2)

#: Numbers at the bounds, and all others.
_INTEGERS = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.integers(-1000, 1000),
    st.sampled_from([2**53 + 1, 2**63, 2**64 - 1, -(2**63), 2**64, -(2**63) - 1, 2**70, -(2**70)]),
)
_FLOATS = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1.0, 1e15, 1e16, 1e20, 1e21, 5e-324, 1.7976931348623157e308]))
_TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(["", "1", "true", "null", "__proto__", "\0", "\u2028", "\U0001f600"]))

_SCALARS = st.one_of(
    st.none(), st.booleans(), _INTEGERS, _FLOATS, _TEXTS, st.binary(max_size=20), st.sampled_from([b"x" * 16_383, b"x" * 16_384])
)
_KEYS = st.recursive(
    st.one_of(_TEXTS, _INTEGERS, st.booleans(), st.none(), _FLOATS, st.binary(max_size=5)),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)


def _nested(scalars: st.SearchStrategy[Any], keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        lists = st.lists(inner, max_size=5)
        return st.one_of(lists, lists.map(tuple), st.dictionaries(keys, inner, max_size=5))

    return st.recursive(scalars, containers, max_leaves=15)


#: Everything that MessagePack has, and what it does not have: longer integers and surrogates.
VALUES = _nested(st.one_of(_SCALARS, _SURROGATES), st.one_of(_KEYS, _SURROGATES))

#: What a peer that only has JSON sends.
JSON_VALUES = _nested(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.sampled_from([2**53 + 1, 2**63, 2**64 - 1, -(2**63), 1.0, 1e15, 1e16, 1e21, 5e-324, 1.7976931348623157e308]),
        st.floats(allow_nan=False, allow_infinity=False),
        _TEXTS,
    ),
    _TEXTS,
)


class Refused(Exception):
    """The call fails, and its error contains this text."""


def arrived(value: Any) -> Any:
    """What a value of Python is behind MessagePack. ``Refused`` if it cannot be encoded."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise Refused("more than 64 bits")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise Refused("surrogates not allowed")
    if isinstance(value, (list, tuple)):
        return [arrived(each) for each in value]
    if isinstance(value, dict):
        return {_key(arrived(key)): arrived(each) for key, each in value.items()}
    return value


def _key(key: Any) -> Any:
    return tuple(map(_key, key)) if isinstance(key, list) else key


class Json:
    """What a peer that speaks JSON makes of a value that has passed :func:`arrived`, and what comes back."""

    def number(self, number: float) -> Any:
        """What the peer makes of a number with a point, or of any number if it has only these."""
        raise NotImplementedError

    def integer(self, number: int) -> Any:
        return number

    def back(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, bytes):
            return "".join(map(chr, value))
        if isinstance(value, int):
            return self.integer(value)
        if isinstance(value, float):
            return self.number(_finite(value))
        if isinstance(value, list):
            return [self.back(each) for each in value]
        keys = [_text_of_key(key) for key in value]
        if len(set(keys)) < len(keys):
            raise Refused("two keys of a map are both")
        return {key: self.back(each) for key, each in zip(keys, value.values())}


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise Refused("is no number in JSON")
    return number


def _text_of_key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, bytes):
        return "".join(map(chr, key))
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, int):
        return str(key)
    if isinstance(key, float):
        return rust_number(_finite(key))
    raise Refused("key must be a string")


def rust_number(number: float) -> str:
    """A number as the JSON of a server in Rust has it, which needs the fewest digits."""
    sign, digits, exponent = Decimal(repr(number)).as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits))
    point = len(text) + exponent
    if number == 0:
        made = "0.0"
    elif -5 < point <= 16:
        whole, part = (text[:point], text[point:]) if point > 0 else ("0", "0" * -point + text)
        made = f"{whole.ljust(point, '0')}.{part.rstrip('0') or '0'}"
    else:
        text = text.rstrip("0")
        behind = f".{text[1:]}" if len(text) > 1 else ""
        made = f"{text[0]}{behind}e{point - 1:+}"
    return f"-{made}" if sign else made


class Node(Json):
    """Numbers are floats, and those without a fraction are written as integers."""

    def integer(self, number: int) -> Any:
        return self.number(float(number))

    def number(self, number: float) -> Any:
        if number != math.floor(number) or abs(number) >= 1e21:
            return number
        # The fewest digits that stand for the number, and zeros.
        return read_integer(str(int(Decimal(repr(number)))))


class Perl(Json):
    """Numbers with a point have 15 digits, and can become integers or texts: Perl itself does not know which they are."""

    def number(self, number: float) -> Any:
        return Digits(number)


class PerlClient(Perl):
    """What it sends is read by a server, which refuses to answer with infinity."""

    def number(self, number: float) -> Any:
        return Digits(_finite(float(f"{number:.15g}")))


class Digits:
    """Any value of which Perl can make the same 15 digits."""

    def __init__(self, number: float) -> None:
        self._text = f"{number:.15g}"

    def __repr__(self) -> str:
        return f"about {self._text}"

    def is_in(self, found: Any) -> bool:
        # Rounded, the greatest floats are infinite: the server in Rust reads them so.
        try:
            return not isinstance(found, bool) and float(f"{float(found):.15g}") == float(self._text)
        except (TypeError, ValueError):
            return False


def read_integer(text: str) -> Any:
    """An integer of JSON as the server in Rust reads it: one of more than 64 bits is a text."""
    number = int(text)
    return number if -(2**63) <= number < 2**64 else text


def same(one: Any, other: Any, has_order: bool) -> bool:
    """Whether these are the same values, of the same types. NaN is NaN, and 0.0 is not -0.0."""
    if isinstance(other, Digits):
        return other.is_in(one)
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(*pair, has_order) for pair in zip(one, other))
    if isinstance(one, dict):
        if not has_order:
            return one.keys() == other.keys() and all(same(one[key], other[key], False) for key in one)
        pairs = zip(one.items(), other.items())
        return len(one) == len(other) and all(same([*first], [*second], True) for first, second in pairs)
    return bool(one == other)
