"""Options of clients, which are given as keyword arguments."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from typing import Any, Literal, Mapping, Optional, Tuple, TypedDict, Union

#: The longest message in bytes, unless a client sets another length.
MAX_FRAME = 64 << 20

#: The most interfaces that a client can require, and the most labels.
_MOST_NAMES = 64

#: The routes to a node.
_ROUTES = ("auto", "direct", "relayed")

#: What each option takes.
_TEXT, _COUNT, _TIME, _FLAG, _NAMES = "a text", "an integer, 0 or more", "seconds, 0 or more", "True or False", "names"
_FILE, _FILES, _ROUTE = "a path", "a pair of paths", ", ".join(map(repr, _ROUTES))

_Path = Union[str, "os.PathLike[str]"]


class ClientOptions(TypedDict, total=False):
    """The options of a client. :class:`taskfork.Client` describes them."""

    name: str
    interfaces: Collection[str]
    min_workers: Optional[int]
    max_workers: int
    timeout: Optional[float]
    grace: Optional[float]
    max_checkouts: Optional[int]
    max_queue: Optional[int]
    reuse_after_error: bool
    connect_timeout: Optional[float]
    max_frame: int
    pickle: bool
    tls_ca: Optional[_Path]
    tls_identity: Optional[Tuple[_Path, _Path]]
    tls_name: Optional[str]
    nats_creds: Optional[_Path]
    nats_ca: Optional[_Path]
    nats_identity: Optional[Tuple[_Path, _Path]]
    nats_route: Optional[Literal["auto", "direct", "relayed"]]
    labels: Collection[str]
    key: Optional[str]


#: The options of a client with their defaults, what each takes, and whether that may be None.
_CLIENT: dict[str, tuple[Any, str, bool]] = {
    "name": ("taskfork", _TEXT, False),
    "interfaces": ((), _NAMES, False),
    "min_workers": (None, _COUNT, True),
    "max_workers": (20, _COUNT, False),
    "timeout": (30.0, _TIME, True),
    "grace": (0.1, _TIME, True),
    "max_checkouts": (None, _COUNT, True),
    "max_queue": (None, _COUNT, True),
    "reuse_after_error": (False, _FLAG, False),
    "connect_timeout": (5.0, _TIME, True),
    "max_frame": (MAX_FRAME, _COUNT, False),
    "pickle": (False, _FLAG, False),
    "tls_ca": (None, _FILE, True),
    "tls_identity": (None, _FILES, True),
    "tls_name": (None, _TEXT, True),
    "nats_creds": (None, _FILE, True),
    "nats_ca": (None, _FILE, True),
    "nats_identity": (None, _FILES, True),
    "nats_route": (None, _ROUTE, True),
    "labels": ((), _NAMES, False),
    "key": (None, _TEXT, True),
}


def of_client(given: Mapping[str, Any], *, writable: bool = False) -> dict[str, Any]:
    """The options of a client, those that are not given at their defaults. ``writable``: whether long bytes of results are a
    ``bytearray``. ``TypeError`` for one that does not exist or has a wrong
    type, ``ValueError`` for one that is out of range."""
    for name in given:
        if name not in _CLIENT:
            raise TypeError(f"a client has no option {name!r}: its options are {', '.join(_CLIENT)}")
    options: dict[str, Any] = {}
    for name, (default, takes, may_be_none) in _CLIENT.items():
        value = given.get(name, default)
        _check(name, value, takes, may_be_none)
        options[name] = value
    for name, (_, takes, _) in _CLIENT.items():
        if options[name] is not None:
            options[name] = _plain(options[name], takes)
    options["writable"] = writable
    return options


def _plain(value: Any, takes: str) -> Any:
    """The value as the native module takes it."""
    if takes == _NAMES:
        return list(value)
    if takes == _FILE:
        return os.fspath(value)
    if takes == _FILES:
        return tuple(map(os.fspath, value))
    return value


def _check(name: str, value: Any, takes: str, may_be_none: bool) -> None:
    if value is None and may_be_none:
        return
    or_none = ", or None" if may_be_none else ""
    if takes == _NAMES:
        is_right = isinstance(value, Collection)
        if is_right and (isinstance(value, str) or len(value) > _MOST_NAMES):
            raise ValueError(f"{name} is a list of at most {_MOST_NAMES} names")
        is_right = is_right and all(isinstance(each, str) for each in value)
    elif takes == _TEXT:
        is_right = isinstance(value, str)
    elif takes == _ROUTE:
        is_right = isinstance(value, str)
        if is_right and value not in _ROUTES:
            raise ValueError(f"{name} is {value!r:.100}: it takes {takes}{or_none}")
    elif takes == _FILE:
        is_right = _is_path(value)
    elif takes == _FILES:
        is_right = isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_path, value))
    elif takes == _FLAG:
        is_right = isinstance(value, bool)
    else:
        is_right = _is_number(value, takes == _COUNT)
        most = (1 << 64) - 1 if takes == _COUNT else math.inf
        # "Not a number" is in no range.
        if is_right and not 0 <= value <= most:
            raise ValueError(f"{name} is {value!r:.100}: it takes {takes}{or_none}")
    if not is_right:
        raise TypeError(f"{name} is {value!r:.100}: it takes {takes}{or_none}")


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike)) and isinstance(os.fspath(value), str)


def _is_number(value: Any, is_whole: bool) -> bool:
    """Whether it can be used as a number: those of NumPy can."""
    if isinstance(value, (bool, str)):
        return False
    return hasattr(value, "__index__") or (not is_whole and hasattr(value, "__float__"))
