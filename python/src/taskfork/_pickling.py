"""Pickling."""

from __future__ import annotations

import functools
import os
import pickle
import sys
from typing import Any, Optional


def dumps(value: Any) -> bytes:
    """Pickles a value, by ``cloudpickle`` if that is there, and ``pickle`` cannot or would name what only this process has."""
    try:
        pickled = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:
        by_value = _by_value(value)
        if by_value is None:
            raise
        return by_value
    if b"__main__" in pickled and not _main_can_be_imported():
        return _by_value(value) or pickled
    return pickled


def _by_value(value: Any) -> Optional[bytes]:
    """Pickles also what cannot be imported. None if ``cloudpickle`` is not there."""
    try:
        import cloudpickle
    except ImportError:
        return None
    pickled: bytes = cloudpickle.dumps(value)
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
