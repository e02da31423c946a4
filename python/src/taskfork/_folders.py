"""The folders in which servers have their sockets."""

from __future__ import annotations

import os
from typing import Optional


def remove(place: Optional[str]) -> None:
    """Removes a folder with a socket. A socket at a path of the user's is removed by the server itself: another one may have
    taken its place later."""
    if place is not None and os.path.isdir(place):
        # A new server starts faster without it.
        import shutil

        shutil.rmtree(place, ignore_errors=True)
