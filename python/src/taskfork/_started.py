"""What a process runs that ``taskfork.Server.start`` has started, a new one or a fork of the program."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import signal
import sys
import traceback
from typing import Any, Optional

from . import _folders, _guard, _native, server


def main(order: dict[str, Any], forked: Optional[server._Worker] = None, is_forked: bool = False) -> None:
    """Serves until the process that has started this one ends, or closes its pipe. ``forked``: what is served, if the program has
    made that before its fork."""
    reports = order["reports"]
    folder = order["folder"]
    if not is_forked:
        for file in (order["alive"], reports, order["listener"]):
            os.set_inheritable(file, False)
    if forked is None:
        # While it imports.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        # A thread may have blocked signals, and its child has too. Those of a fork are blocked until it serves.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        if not _native.end_with(order["alive"]):
            # The program ended before.
            os._exit(1)
        try:
            _guard.imports = True
            template = forked or template_of(order)
            _guard.imports = False
        except _guard.Unguarded as error:
            _say(reports, str(error))
            sys.exit(1)
        except BaseException as error:
            _say(reports, "".join(traceback.format_exception(type(error), error, error.__traceback__)))
            sys.exit(1)
        if forked is None:
            # A handler in Python would not run any more, and the server has its own one later.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            server._serve(f"fd:{order['listener']}", order["options"], template, is_forked)
        except (OverflowError, RuntimeError, TypeError, ValueError) as error:
            if not _say(reports, str(error)):
                print(f"taskfork: {error}", file=sys.stderr)
            sys.exit(1)
    finally:
        _folders.remove(folder)
        if folder is not None:
            with contextlib.suppress(OSError):
                os.unlink(folder)


def template_of(order: dict[str, Any]) -> server._Worker:
    pickled = order.get("pickled")
    if pickled is not None:
        from . import _pickled

        return server._Worker(*_pickled.interface(pickled))
    return server._Worker(*(_named(order[what]) for what in ("interface", "setup", "checkout_done")))


def _named(name: Any) -> Any:
    """What a name is of. A fork may have it already."""
    if not isinstance(name, str):
        return name
    module, _, attribute = name.partition(":")
    found: Any = importlib.import_module(module)
    if not attribute:
        names = getattr(found, "__all__", None) or [name for name in vars(found) if not name.startswith("_")]
        # Functions that the module has imported are not its own.
        own = [getattr(found, name) for name in names]
        return [each for each in own if inspect.isroutine(each) and getattr(each, "__module__", "") == module]
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


def _say(pipe: int, text: str) -> bool:
    """Tells the process that has started this one. False if it waits no more."""
    try:
        os.write(pipe, text.encode(errors="replace")[: 1 << 15])
    except OSError:
        return False
    return True
