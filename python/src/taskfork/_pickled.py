"""Workers that take pickled calls, for :class:`taskfork.Executor`."""

from __future__ import annotations

import multiprocessing
import multiprocessing.spawn
import os
import pickle
import traceback
from typing import Any, Callable, Optional

from ._pickling import Main, dumps
from .worker import DeadlineExceeded

#: What an answer begins with: a result and its buffers follow, or an exception and its traceback as text.
RESULT, RAISED = b"\0", b"\1"

#: What this worker has in common with the program, if it comes from a fork of it.
_main: Optional[Main] = None


def preparation(initializer: Optional[Callable[..., Any]], initargs: tuple[Any, ...]) -> bytes:
    """What :func:`interface` reads from a file."""
    found = multiprocessing.spawn.get_preparation_data("taskfork")
    # Objects of a manager of `multiprocessing` need it. Only this user can read the file.
    found["authkey"] = bytes(multiprocessing.current_process().authkey)
    main_path = found.get("init_main_from_path")
    if main_path is not None and not os.path.isfile(main_path):
        # The program came from standard input.
        del found["init_main_from_path"]
    # That of the user's program stays: it would be set in the middle of an import of it.
    found.pop("start_method", None)
    return pickle.dumps(found) + dumps((initializer, initargs))


def interface(path: str) -> tuple[Any, Any, Any]:
    """Prepares this process as one that :mod:`multiprocessing` spawns. Returns interface, setup and checkout_done."""
    with open(path, "rb") as file:
        multiprocessing.spawn.prepare(pickle.load(file))
        initializer, initargs = pickle.load(file)
    os.unlink(path)

    def setup() -> None:
        if initializer is not None:
            initializer(*initargs)

    return [call], setup, None


def objects(initializer: Optional[Callable[..., Any]], initargs: tuple[Any, ...], main: Main) -> dict[str, Any]:
    """What a fork of the program serves, which needs nothing of the above."""

    def setup() -> None:
        global _main
        _main = main
        if initializer is not None:
            initializer(*initargs)

    return {"interface": [call], "setup": setup, "checkout_done": None}


def call(work: Any, *buffers: Any) -> list[Any]:
    """Runs a pickled call. An exception is an answer too, so that the worker goes on."""
    try:
        try:
            function, args, keywords = pickle.loads(work, buffers=buffers)
        except AttributeError as error:
            raise _explained(error) from error
        apart: list[memoryview] = []
        return [RESULT, dumps(function(*args, **keywords), apart, _main), *apart]
    except DeadlineExceeded:
        raise
    except BaseException as error:
        return [RAISED, _raised(error)]


def _explained(error: AttributeError) -> AttributeError:
    """The error of a function that is not in the main module here."""
    if "'__main__'" not in str(error) and "'__mp_main__'" not in str(error):
        return error
    if _main is not None:
        return AttributeError(
            f"{error}: workers have what the program had at the executor's first call, from which they are forked. Define the "
            "function before that, or make another executor"
        )
    return AttributeError(
        f'{error}: workers have no main module of a program from standard input, from `-c`, from `-m PACKAGE` or from the '
        'prompt, and nothing that is below `if __name__ == "__main__":`. Put the function into a module, or, if the program is '
        "no file, install cloudpickle"
    )


def _raised(error: BaseException) -> bytes:
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        pickled = dumps((error, text), None, _main)
        # One that cannot be made again there would end the wrong way.
        pickle.loads(pickled)
        return pickled
    except Exception as problem:
        said = f"{type(error).__name__}: {error}" if _has_text(error) else type(error).__name__
        replacement = RuntimeError(f"{said} (the exception cannot be pickled: {problem})")
        return pickle.dumps((replacement, text))


def _has_text(error: BaseException) -> bool:
    try:
        return bool(str(error))
    except Exception:
        return False
