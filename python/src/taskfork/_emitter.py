"""What methods that stream, and their callers, are told, in workers of both kinds."""

from __future__ import annotations

#: Why a call and its method do not fit.
STREAMS_NOTHING = "the method streams no items: make a call, and no stream"
TAKES_NOTHING = "the method takes no input: make a call without one"
IS_NOT_FED = (
    "the method takes an input, which this call does not stream: pass one by `input=` in Python, or by a typed client or "
    "`call_with_input` in Rust (clients that speak JSON cannot)"
)
IS_NOT_READ = (
    "the method streams items, which this call does not read: make a stream, and no call "
    "(clients that speak JSON cannot)"
)


class ItemError(Exception):
    """Raised at the ``yield`` of an item that cannot be sent, because it cannot be encoded or is too long, and by an input for an
    item that cannot be read. Others can follow."""
