"""Converters: what makes objects of values that have arrived, and says what is wrong with those that do not fit.

A converter goes into a value as deep as the value is, which the decoder has bounded, and looks at each element at most once for each
member of a union. Among the members of a union at most one takes arrays and one takes maps: with several, wrong values could be
tried in all combinations.
"""

from __future__ import annotations

from typing import Any, Callable, Iterable, Mapping, Optional, Sequence

from . import _collisions, _scalars, _sending

Receive = Callable[[Any], Any]

NONE = type(None)
ARRAYS, MAPS, BYTES = (list, tuple), (dict,), (bytes, memoryview)
ALL = (NONE, bool, int, float, str, *BYTES, *ARRAYS, *MAPS)


class Unusable(TypeError):
    """An annotation cannot be read; the text says why."""


class Mismatch(ValueError):
    """A value is not what an annotation asks for."""

    def __init__(self, expected: str, value: Any, reason: str = "") -> None:
        super().__init__(reason)
        self._expected, self._value, self._reason = expected, value, reason
        #: Where it is, from the inside.
        self.path: list[str] = []

    def text(self, where: str) -> str:
        place = where + "".join(reversed(self.path))
        because = f": {self._reason}" if self._reason else ""
        return f"{place} must be {self._expected}, and is {_shown(self._value)}{because}"


class Unfit(ValueError):
    """A value does not fit. The text says what is wrong, and where."""


def apply(receive: Receive, what: str, value: Any) -> Any:
    """Converts a value. Raises :class:`Unfit`, whose cause is the exception of a user's function if there was one."""
    try:
        return receive(value)
    except Mismatch as mismatch:
        raise Unfit(mismatch.text(what)) from mismatch.__cause__
    except RecursionError:
        raise Unfit(f"{what} is nested too deeply to be converted") from None
    except Exception as error:
        # Code of the user can raise anything.
        raise Unfit(f"{what} cannot be converted: {_scalars.said(error)}") from error


class Converter:
    """How values are converted, and which ones can be."""

    def __init__(
        self,
        name: str,
        forms: Sequence[type],
        run: Receive,
        *,
        accepts: Optional[Sequence[type]] = None,
        is_plain: bool = False,
        takes_all: bool = False,
        kind: Any = None,
    ) -> None:
        #: What is asked for, in errors.
        self.name = name
        #: The types of values that are sent for it, and of all that it can read.
        self.forms, self.accepts = forms, forms if accepts is None else accepts
        #: Raises :class:`Mismatch`.
        self.run = run
        #: It leaves what is right as it is.
        self.is_plain = is_plain
        #: It leaves everything as it is.
        self.takes_all = takes_all
        #: The class whose objects it leaves as they are, if they have arrived pickled; None if it takes none.
        self.kind = kind


def anything() -> Converter:
    return Converter("anything", ALL, lambda value: value, is_plain=True, takes_all=True)


def check(name: str, *kinds: type) -> Receive:
    def run(value: Any) -> Any:
        # Not `isinstance`: True is no number.
        if type(value) not in kinds:
            raise Mismatch(name, value)
        return value

    return run


def _float(value: Any) -> float:
    # JSON writes some numbers without a point.
    if type(value) not in (float, int):
        raise Mismatch("float", value)
    try:
        return float(value)
    except OverflowError as error:
        raise Mismatch("float", value, str(error)) from error


def _plain(kind: type, *forms: type) -> Converter:
    name = kind.__name__
    return Converter(name, forms or (kind,), check(name, *(forms or (kind,))), is_plain=True)


#: Types whose values arrive as they are sent.
PLAIN = {
    Any: anything(),
    object: anything(),
    bool: _plain(bool),
    int: _plain(int),
    float: Converter("float", (float,), _float, accepts=(float, int), is_plain=True),
    str: _plain(str),
    bytes: _plain(bytes, *BYTES),
}


def view() -> Converter:
    check_bytes = check("memoryview", *BYTES)
    return Converter("memoryview", BYTES, lambda value: memoryview(check_bytes(value)), kind=memoryview)


def scalar(kind: Any, scalar: _scalars.Scalar) -> Converter:
    name = kind.__name__

    def run(value: Any) -> Any:
        if type(value) not in scalar.accepts:
            if isinstance(value, kind):
                # It was pickled, as a Decimal that is not finite.
                return value
            raise Mismatch(name, value)
        try:
            return scalar.receive(value, kind)
        except (ValueError, ArithmeticError, NotImplementedError) as error:
            raise Mismatch(name, value, str(error)) from error
        except RecursionError:
            raise
        except Exception as error:
            raise Mismatch(name, value, _scalars.said(error)) from error

    return Converter(name, scalar.forms, run, accepts=scalar.accepts, kind=kind)


def array(element: Converter, make: Callable[[Iterable[Any]], Any]) -> Converter:
    kind = getattr(make, "__name__", "list")
    name, run = kind if element.takes_all else f"{kind}[{element.name}]", element.run

    def convert(value: Any) -> Any:
        if type(value) not in ARRAYS:
            raise Mismatch(name, value)
        made: list[Any] = []
        try:
            for each in value:
                made.append(run(each))
        except Mismatch as mismatch:
            mismatch.path.append(f"[{len(made)}]")
            raise
        return made if make is list else make(made)

    return Converter(name, ARRAYS, convert, is_plain=make is list and element.is_plain)


def set_of(element: Converter, make: Callable[[Iterable[Any]], Any]) -> Converter:
    run = array(element, list).run
    kind = getattr(make, "__name__", "set")
    name = kind if element.takes_all else f"{kind}[{element.name}]"

    def convert(value: Any) -> Any:
        if type(value) not in ARRAYS:
            raise Mismatch(name, value)
        made = run(value)
        try:
            # Arrays are sent for tuples.
            elements = list(map(_hashable, made)) if element.takes_all else made
            _collisions.check(elements)
            return make(elements)
        except _collisions.Collisions as error:
            raise Mismatch(name, value, str(error)) from error
        except TypeError as error:
            raise Mismatch(name, value, _scalars.said(error)) from error

    return Converter(name, ARRAYS, convert)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if type(value) is list else value


def row(name: str, elements: Sequence[Converter], least: int, make: Callable[[Iterable[Any]], Any]) -> Converter:
    """An array whose elements have types of their own."""
    most = len(elements)
    count = str(most) if least == most else f"{least} to {most}"

    def convert(value: Any) -> Any:
        if type(value) not in ARRAYS:
            raise Mismatch(name, value)
        if not least <= len(value) <= most:
            raise Mismatch(name, value, f"it must have {count} elements")
        made: list[Any] = []
        try:
            for element, each in zip(elements, value):
                made.append(element.run(each))
        except Mismatch as mismatch:
            mismatch.path.append(f"[{len(made)}]")
            raise
        return _made(name, value, make, made)

    return Converter(name, ARRAYS, convert)


def map_of(keys: Converter, values: Converter) -> Converter:
    name = "dict" if keys.takes_all and values.takes_all else f"dict[{keys.name}, {values.name}]"

    def convert(value: Any) -> Any:
        if type(value) is not dict:
            raise Mismatch(name, value)
        pairs: list[tuple[Any, Any]] = []
        key: Any = None
        try:
            for key, each in value.items():
                pairs.append((_key(keys, key), values.run(each)))
        except Mismatch as mismatch:
            mismatch.path.append(f"[{_shown_key(key)}]")
            raise
        if not keys.is_plain:
            try:
                _collisions.check([key for key, _ in pairs])
            except _collisions.Collisions as error:
                raise Mismatch(name, value, str(error)) from error
        made = dict(pairs)
        if len(made) < len(value):
            raise Mismatch(name, value, "two keys are the same")
        return made

    return Converter(name, MAPS, convert, is_plain=keys.is_plain and values.is_plain)


def _key(keys: Converter, key: Any) -> Any:
    made = keys.run(key)
    try:
        hash(made)
    except TypeError as error:
        raise Mismatch(f"a key, {keys.name},", key, _scalars.said(error)) from error
    return made


def record(
    name: str,
    fields: Mapping[str, Converter],
    others: Sequence[str],
    required: Iterable[str],
    make: Callable[[dict[str, Any]], Any],
    kind: Any = None,
) -> Converter:
    """A map whose keys are names of fields. ``others`` are sent, and computed by the receiver. Objects of ``kind`` stay."""
    wanted = sorted(required)

    def convert(value: Any) -> Any:
        if type(value) is not dict:
            if kind is not None and isinstance(value, kind):
                return value
            raise Mismatch(name, value)
        made = {}
        for key, each in value.items():
            field = fields.get(key)
            if field is None:
                if key in others:
                    continue
                raise Mismatch(name, value, f"it has no field {_shown_key(key)}")
            try:
                made[key] = field.run(each)
            except Mismatch as mismatch:
                mismatch.path.append(f".{key}")
                raise
        for key in wanted:
            if key not in made:
                raise Mismatch(name, value, f"its field {key!r} is missing")
        return _made(name, value, make, made)

    return Converter(name, MAPS, convert, kind=kind)


def _made(name: str, value: Any, make: Callable[[Any], Any], parts: Any) -> Any:
    """What a class makes of its parts. It may have code of the user, which checks them."""
    try:
        return make(parts)
    except Exception as error:
        raise Mismatch(name, value, _scalars.said(error)) from error


def enumeration(kind: Any) -> Converter:
    name = kind.__name__
    members = {_token(_sending.to_plain(member.value)): member for member in kind}
    forms = tuple({type(_sending.to_plain(member.value)) for member in kind})

    def run(value: Any) -> Any:
        member = members.get(_token(value))
        if member is not None or isinstance(value, kind):
            return value if member is None else member
        if type(value) not in (*forms, *ARRAYS):
            raise Mismatch(name, value)
        # It may know values that are no member's, as flags do.
        return _made(name, value, kind, value)

    return Converter(name, forms, run, kind=kind)


def literal(values: tuple[Any, ...]) -> Converter:
    name = f"Literal{list(values)}"
    known = {_token(_sending.to_plain(value)): value for value in values}
    forms = tuple({type(_sending.to_plain(value)) for value in values})

    def run(value: Any) -> Any:
        token = _token(value)
        if token not in known:
            raise Mismatch(name, value)
        return known[token]

    return Converter(name, forms, run, is_plain=all(type(value) in ALL for value in values))


def _token(value: Any) -> Any:
    """A key for a value: True is not 1 there, and arrays are tuples. One that nothing is equal to, if it contains a map."""
    made = _hashable(list(value) if type(value) is tuple else value)
    try:
        hash(made)
    except TypeError:
        return object()
    return (bool, made) if type(made) is bool else made


def union(members: Sequence[Converter]) -> Converter:
    name = " or ".join(member.name for member in members)
    is_plain = all(member.is_plain for member in members)
    for what, kind in (("an array", list), ("a map", dict)):
        several = [member.name for member in members if kind in member.forms and member.forms is not ALL]
        if len(several) > 1:
            if is_plain:
                return anything()
            raise Unusable(f"{what} can be for {' or '.join(several)}")
    # What is sent for a member is for that one, rather than for another that could read it too; and first for a member that is
    # plain, so that a text is a `str` in `Union[date, str]` and in `Union[str, date]`, which are equal.
    choices = {
        kind: [
            *(each for each in members if kind in each.forms and each.is_plain and not each.takes_all),
            *(each for each in members if kind in each.forms and not each.is_plain),
            *(each for each in members if kind in each.accepts and kind not in each.forms),
            *(each for each in members if each.takes_all),
        ]
        for kind in ALL
    }

    def pickled(value: Any) -> list[Converter]:
        """The members that an object of another class is for."""
        of_class = [each for each in members if each.kind is not None and isinstance(value, each.kind)]
        return of_class or [each for each in members if each.forms is ALL]

    def run(value: Any) -> Any:
        candidates = choices.get(type(value)) or pickled(value)
        if len(candidates) == 1:
            return candidates[0].run(value)
        mismatches = []
        for each in candidates:
            try:
                return each.run(value)
            except Mismatch as mismatch:
                mismatches.append(mismatch)
        raise Mismatch(name, value, "; ".join(filter(None, map(str, mismatches))))

    forms = tuple({form for member in members for form in member.forms})
    accepts = tuple({form for member in members for form in member.accepts})
    takes_all = any(member.takes_all for member in members) and is_plain
    return Converter(name, forms, run, accepts=accepts, is_plain=is_plain, takes_all=takes_all)


_KINDS = {
    NONE: "None", bool: "a boolean", int: "an integer", float: "a number", str: "a text", bytes: "bytes", memoryview: "bytes",
    list: "an array", tuple: "an array", dict: "a map",
}  # fmt: skip


def _shown(value: Any) -> str:
    """A value in an error: what it is, and its beginning."""
    kind = _KINDS.get(type(value), type(value).__name__)
    if isinstance(value, (bool, int, float)):
        return f"{kind}, {_number(value)}"
    if isinstance(value, str):
        return f"{kind}, {_shown_key(value)}"
    return f"{kind} of {len(value)}" if isinstance(value, (bytes, memoryview, list, tuple, dict)) else kind


def _shown_key(key: Any) -> str:
    if isinstance(key, str):
        return repr(key) if len(key) <= 60 else f"{key[:60]!r}…"
    return _number(key) if isinstance(key, (bool, int, float)) else f"({_shown(key)})"


def _number(value: Any) -> str:
    """A number in an error. Python refuses to write long integers, which arrive pickled."""
    bits = value.bit_length() if isinstance(value, int) else 0
    return repr(value) if bits <= 64 else f"{'-' if value < 0 else ''}0x{abs(value) >> (bits - 64):x}… of {bits} bits"
