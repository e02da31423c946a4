"""Pickling."""

from __future__ import annotations

import functools
import os
import pickle
import sys
from typing import Any, Optional

#: Buffers of this length or more are left out of what is pickled, where the caller takes them.
_LEAST = 64 << 10


def dumps(value: Any, buffers: Optional[list[memoryview]] = None) -> bytes:
    """Pickles a value, by ``cloudpickle`` if that is there, and ``pickle`` cannot or would name what only this process has.

    If the caller has a list for ``buffers``, the memory of large arrays is put there instead, without copying it: ``pickle.loads``
    needs them then."""
    callback = None if buffers is None else functools.partial(_is_pickled, buffers)
    try:
        pickled = pickle.dumps(value, pickle.HIGHEST_PROTOCOL, buffer_callback=callback)
    except Exception:
        by_value = _by_value(value, buffers)
        if by_value is None:
            raise
        return by_value
    if b"__main__" in pickled and not _main_can_be_imported():
        return _by_value(value, buffers) or pickled
    return pickled


def _is_pickled(buffers: list[memoryview], buffer: pickle.PickleBuffer) -> bool:
    """Whether a buffer is a part of what is pickled. Otherwise it is put to the others."""
    try:
        memory = buffer.raw()
    except BufferError:
        # It is not contiguous.
        return True
    if memory.nbytes < _LEAST:
        return True
    buffers.append(memory)
    return False


def _by_value(value: Any, buffers: Optional[list[memoryview]]) -> Optional[bytes]:
    """Pickles also what cannot be imported. None if ``cloudpickle`` is not there."""
    try:
        import cloudpickle
    except ImportError:
        return None
    callback = None
    if buffers is not None:
        buffers.clear()
        callback = functools.partial(_is_pickled, buffers)
    pickled: bytes = cloudpickle.dumps(value, pickle.HIGHEST_PROTOCOL, buffer_callback=callback)
    return pickled


@functools.lru_cache(None)
def _main_can_be_imported() -> bool:
    """Whether the server of the workers can import the program's main module: it is a file, or a module with a name. A
    program from standard input, from ``-c``, from the prompt and the ``__main__`` of a package are not."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return not (spec.name == "__main__" or spec.name.endswith(".__main__"))
    path = getattr(main, "__file__", None)
    return path is not None and os.path.isfile(path)
