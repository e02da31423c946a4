"""Single values of the standard library that travel as texts or numbers: times, decimal numbers, UUIDs and paths.

What is read comes from a peer. So each text is bounded before it is looked at, and nothing is computed that takes long.
"""

from __future__ import annotations

import re
from typing import Any, Callable, NamedTuple, NoReturn

#: The most characters of a decimal number, and the most places by which its exponent moves the point.
MOST_DIGITS, MOST_PLACES = 1000, 10_000

#: The longest text of a time, a date or a UUID.
_LONGEST_TEXT = 64

_DATE = r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
_TIME = r"([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?([Zz]|[+-][0-9]{2}:[0-9]{2})?"


class Refused(ValueError):
    """The text says what is wrong with a value."""


class Scalar(NamedTuple):
    """A class, how its objects are sent, and how they are made of what has arrived."""

    #: Where the class is. It may not have been imported.
    module: str
    name: str
    send: Callable[[Any], Any]
    #: Gets the class as well. Raises an exception for what it cannot read.
    receive: Callable[[Any, Any], Any]
    #: The types of what is sent, and of what else can be read.
    forms: tuple[type, ...]
    accepts: tuple[type, ...]


def said(error: BaseException) -> str:
    """What an exception of somebody else's code says. Its ``__str__`` may raise another one."""
    name = type(error).__name__
    try:
        text = str(error)
    except Exception:
        return name
    return f"{name}: {text:.200}" if text else name


def _refuse(reason: str) -> NoReturn:
    raise Refused(reason)


def _matched(pattern: str, text: str, form: str) -> Any:
    found = re.fullmatch(pattern, text) if len(text) <= _LONGEST_TEXT else None
    return found or _refuse(f"its form is {form}")


def _zone(text: str) -> Any:
    import datetime

    if text in "Zz":
        return datetime.timezone.utc
    hours, minutes = int(text[1:3]), int(text[4:])
    if hours > 23 or minutes > 59:
        _refuse(f"its distance from UTC is {text}, and must be less than a day")
    away = datetime.timedelta(hours=hours, minutes=minutes)
    return datetime.timezone(-away if text[0] == "-" else away)


def _clock(hour: str, minute: str, second: str, fraction: Any, zone: Any) -> tuple[Any, ...]:
    # Digits behind the microseconds, as Rust writes them, are left out.
    micros = int((fraction or "0").ljust(6, "0")[:6])
    return (int(hour), int(minute), int(second), micros, _zone(zone) if zone else None)


def _send_datetime(value: Any) -> str:
    import datetime

    away = value.utcoffset()
    if away is not None and away % datetime.timedelta(minutes=1):
        # The form has no distances with seconds.
        value = value.astimezone(datetime.timezone.utc)
    text: str = value.isoformat()
    return text


def _receive_datetime(text: str, kind: Any) -> Any:
    found = _matched(f"{_DATE}[Tt ]{_TIME}", text, "2026-11-30T08:15:00.5+01:00, or without the distance from UTC")
    year, month, day, *rest = found.groups()
    return kind(int(year), int(month), int(day), *_clock(*rest))


def _send_date(value: Any) -> str:
    text: str = value.isoformat()
    return text


def _receive_date(text: str, kind: Any) -> Any:
    return kind(*map(int, _matched(_DATE, text, "2026-11-30").groups()))


def _send_time(value: Any) -> str:
    import datetime

    away = value.utcoffset()
    if away is not None and away % datetime.timedelta(minutes=1):
        _refuse("its distance from UTC has seconds")
    text: str = value.isoformat()
    return text


def _receive_time(text: str, kind: Any) -> Any:
    return kind(*_clock(*_matched(_TIME, text, "08:15:00.5, or with a distance from UTC").groups()))


def _send_timedelta(value: Any) -> Any:
    if not value.microseconds:
        return value.days * 86400 + value.seconds
    seconds = value.total_seconds()
    try:
        is_exact = type(value)(seconds=seconds) == value
    except OverflowError:
        is_exact = False
    return seconds if is_exact else _refuse("it has more microseconds than a number of 64 bits can count")


def _receive_timedelta(seconds: Any, kind: Any) -> Any:
    return kind(seconds=seconds)


def _check_decimal(value: Any) -> Any:
    if not value.is_finite():
        _refuse("it is no finite number")
    if abs(value.as_tuple().exponent) > MOST_PLACES:
        _refuse(f"it has more than {MOST_PLACES} places")
    return value


def _send_decimal(value: Any) -> str:
    text = str(_check_decimal(value))
    return text if len(text) <= MOST_DIGITS else _refuse(f"it has more than {MOST_DIGITS} digits")


def _receive_decimal(text: Any, kind: Any) -> Any:
    if isinstance(text, str):
        if len(text) > MOST_DIGITS:
            _refuse(f"it has more than {MOST_DIGITS} characters")
        if not re.fullmatch(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,9})?", text):
            _refuse("its form is -12.50")
    return _check_decimal(kind(text))


def _receive_uuid(given: Any, kind: Any) -> Any:
    if isinstance(given, bytes):
        return kind(bytes=given) if len(given) == 16 else _refuse("its bytes are 16")
    hexadecimal = "[0-9a-fA-F]"
    pattern = "-".join(f"{hexadecimal}{{{length}}}" for length in (8, 4, 4, 4, 12))
    return kind(_matched(pattern, given, "12345678-1234-5678-1234-567812345678").group())


def _receive_path(text: str, kind: Any) -> Any:
    return kind(text) if "\0" not in text else _refuse("it has a zero character")


#: A class that is derived from another one of these stands in front of it.
SCALARS = (
    Scalar("datetime", "datetime", _send_datetime, _receive_datetime, (str,), (str,)),
    Scalar("datetime", "date", _send_date, _receive_date, (str,), (str,)),
    Scalar("datetime", "time", _send_time, _receive_time, (str,), (str,)),
    Scalar("datetime", "timedelta", _send_timedelta, _receive_timedelta, (int, float), (int, float)),
    Scalar("decimal", "Decimal", _send_decimal, _receive_decimal, (str,), (str, int)),
    Scalar("uuid", "UUID", str, _receive_uuid, (str,), (str, bytes)),
    Scalar("pathlib", "PurePath", str, _receive_path, (str,), (str,)),
)
