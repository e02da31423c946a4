"""Bounds the time in which maps and sets are made of what a peer has sent.

The hashes of numbers and of tuples of numbers are known beforehand, and so a peer could choose keys that all compete for the same
places. ``crates/taskfork-python/src/keys.rs`` says how that is found out. Here are the maps that are not made in the native module."""

from __future__ import annotations

from typing import Any, Collection

#: A map with fewer keys takes no time worth mentioning. So many keys may have the same hash.
_FEW = 32

#: Each process hashes these in its own way, so that nobody can choose their hashes.
_SECRET = (str, bytes)


class Collisions(ValueError):
    """A map or a set would take too long."""

    def __init__(self) -> None:
        super().__init__("its keys have hashes that collide, so that a map or a set of them would take too long")


def check(keys: Collection[Any]) -> None:
    """Checks keys before a map or a set is made of them. ``Collisions`` if that would take too long, ``TypeError`` if one cannot be
    hashed."""
    if len(keys) <= _FEW or all(isinstance(key, _SECRET) for key in keys):
        return
    hashes: dict[int, int] = {}
    for key in keys:
        number = hash(key)
        hashes[number] = hashes.get(number, 0) + 1
    for number, count in hashes.items():
        # The same key may come any number of times.
        if count > _FEW and len({repr(key) for key in keys if hash(key) == number}) > _FEW:
            raise Collisions
    # Imported here: programs start faster.
    from ._native import are_colliding

    if are_colliding(list(hashes)):
        raise Collisions
