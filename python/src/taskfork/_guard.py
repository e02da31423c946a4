"""Modules that start servers while they are imported for one."""

from __future__ import annotations

#: Whether this process has been started for a server, and imports what it serves.
imports = False


class Unguarded(RuntimeError):
    """A module starts a server while it is imported for one, which would never end."""

    def __init__(self) -> None:
        super().__init__(
            "the program's module is imported by the server of its workers, and starts a server itself: put what only the "
            'program does below `if __name__ == "__main__":`'
        )


def check_guarded() -> None:
    """``Unguarded`` in a process that imports what it will serve."""
    if imports:
        raise Unguarded
