"""Pickling."""

from __future__ import annotations

import functools
import io
import os
import pickle
import sys
import types
import weakref
from typing import Any, Optional

#: Buffers of this length or more are left out of what is pickled, where the caller takes them.
_LEAST = 64 << 10


class Main:
    """The functions and classes that the program's main module has now. A fork of the program has them too."""

    def __init__(self) -> None:
        # Others are neither functions nor classes. The program's objects end as if this did not exist.
        self._known: dict[str, weakref.ref[Any]] = {}
        for name, value in list(vars(_main()).items()):
            if isinstance(value, (type, types.FunctionType)):
                self._known[name] = weakref.ref(value)

    def has(self, names: set[str]) -> bool:
        """Whether these are among them, and none has been replaced since: what one of them calls may have been."""
        now = vars(_main())
        return names <= self._known.keys() and all(now.get(name) is value() for name, value in self._known.items())


class _Names(pickle.Pickler):
    """Notes the names in the main module by which it pickles functions and classes."""

    names: set[str]

    def reducer_override(self, value: Any) -> Any:
        if getattr(value, "__module__", None) == "__main__":
            name = getattr(value, "__qualname__", None)
            if isinstance(name, str):
                self.names.add(name.partition(".")[0])
        return NotImplemented


def dumps(value: Any, buffers: Optional[list[memoryview]] = None, main: Optional[Main] = None) -> bytes:
    """Pickles a value, by ``cloudpickle`` if that is there, and ``pickle`` cannot or would name what only this process has.
    ``main``: what the other process, a fork, has in common with this one.

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
    if b"__main__" in pickled and not _main_can_be_imported() and not (main and main.has(_names_in(value))):
        return _by_value(value, buffers) or pickled
    return pickled


def _names_in(value: Any) -> set[str]:
    """The names in the main module that pickling a value needs."""
    pickler = _Names(io.BytesIO(), pickle.HIGHEST_PROTOCOL, buffer_callback=lambda _: None)
    pickler.names = set()
    pickler.dump(value)
    return pickler.names


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


def _main() -> Any:
    return sys.modules["__main__"]


@functools.lru_cache(None)
def _main_can_be_imported() -> bool:
    """Whether the server of the workers can import the program's main module: it is a file, or a module with a name. A
    program from standard input, from ``-c``, from the prompt and the ``__main__`` of a package are not."""
    main = _main()
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return not (spec.name == "__main__" or spec.name.endswith(".__main__"))
    path = getattr(main, "__file__", None)
    return path is not None and os.path.isfile(path)
