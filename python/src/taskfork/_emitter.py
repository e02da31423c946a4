"""What methods that stream, and their callers, are told."""

from __future__ import annotations

#: Why a call and its method do not fit.
STREAMS_NOTHING = "the method streams no items: make a call, and no stream"
TAKES_NOTHING = "the method takes no input: make a call without one"


class ItemError(Exception):
    """Raised at the ``yield`` of an item that cannot be sent, because it cannot be encoded or is too long, and by an input for an
    item that cannot be read. Others can follow."""
