"""Pickling."""

from __future__ import annotations

import functools
import io
import os
import pickle
import sys
import weakref
from typing import Any, Callable, Optional

#: Buffers of this length or more are left out of what is pickled, where the caller takes them.
_LEAST = 64 << 10


class Main:
    """What the program's main module defines now: functions, classes, and other objects that are called or that pickle names. A fork
    of the program has that too."""

    def __init__(self) -> None:
        self._program = os.getpid()
        self._defined = {name: _reference(value) for name, value in _definitions().items()}

    def has(self, value: Any) -> bool:
        """Whether the other process has all that pickling a value names, and that is the same there. In the program nothing may have
        been defined since: what a function calls may be any of that. In the fork something may, if the value does not need it."""
        now = _definitions()
        if any(now.get(name) is not defined() for name, defined in self._defined.items()):
            return False
        if os.getpid() == self._program:
            return len(now) == len(self._defined)
        return _names_in(value) <= self._defined.keys()


class _Names(pickle.Pickler):
    """Notes the names in the main module by which it pickles functions and classes."""

    names: set[str]

    def reducer_override(self, value: Any) -> Any:
        if getattr(value, "__module__", None) == "__main__":
            name = getattr(value, "__qualname__", None)
            if isinstance(name, str):
                self.names.add(name.partition(".")[0])
        return NotImplemented


def _names_in(value: Any) -> set[str]:
    pickler = _Names(io.BytesIO(), pickle.HIGHEST_PROTOCOL, buffer_callback=lambda _: None)
    pickler.names = set()
    pickler.dump(value)
    return pickler.names


def _definitions() -> dict[str, Any]:
    found = {}
    for name, value in list(vars(_main()).items()):
        if not callable(value) and not _has_name_here(value):
            continue
        found[name] = value
        if isinstance(value, type) and value.__module__ == "__main__":
            methods = {attribute: each for attribute, each in list(vars(value).items()) if _is_method(each)}
            found.update((f"{name}.{attribute}", each) for attribute, each in methods.items())
    return found


def _has_name_here(value: Any) -> bool:
    """Whether pickle may name an object that is not called, such as a type variable."""
    try:
        return value.__module__ == "__main__" and isinstance(value.__name__, str)
    except Exception:
        # Mostly there are no such attributes. They may be code of the user.
        return False


def _is_method(value: Any) -> bool:
    # A static method can be called itself from Python 3.10 on.
    return callable(value) or isinstance(value, (classmethod, property, staticmethod))


def _reference(value: Any) -> Callable[[], Any]:
    """A reference that keeps no object, so that those of the program end as without it. Some can only be kept."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


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
    if b"__main__" in pickled and not _main_can_be_imported() and not (main and main.has(value)):
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
