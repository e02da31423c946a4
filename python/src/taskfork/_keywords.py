"""Arguments by name, as they travel: behind the other arguments there is a mark, and then a dict."""

from __future__ import annotations

from typing import Any, Sequence


class Keywords:
    """The mark: an extension type in a message."""

    def __repr__(self) -> str:
        return "KEYWORDS"


KEYWORDS = Keywords()


def join(args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a call as they travel. ``TypeError`` if a value among them is the mark: what follows would become arguments by
    name."""
    if has_mark(args):
        raise TypeError(_STRAY)
    return (*args, KEYWORDS, keywords) if keywords else args


_STRAY = "the mark of arguments by name is no argument"


def has_mark(args: Sequence[Any]) -> bool:
    """Whether one of the arguments is the mark."""
    # Not `in`, which calls `__eq__` of the arguments.
    for arg in args:
        if arg is KEYWORDS:
            return True
    return False


def split(args: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
    """The arguments by position and by name. ``TypeError`` if the names are none."""
    if len(args) < 2 or args[-2] is not KEYWORDS:
        if has_mark(args):
            raise TypeError(_STRAY)
        return args, {}
    keywords = args[-1]
    if not isinstance(keywords, dict) or not all(isinstance(name, str) for name in keywords):
        raise TypeError("the arguments by name are no map whose keys are texts")
    if has_mark(args[:-2]):
        raise TypeError(_STRAY)
    return args[:-2], keywords
