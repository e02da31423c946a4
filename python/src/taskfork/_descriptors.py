"""Receiving descriptors."""

from __future__ import annotations

import array
import socket

from . import _wire


def receive(connection: socket.socket, size: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """Receives bytes, at most ``size``, and the descriptors that accompany them. Programs that this one starts do not
    inherit them.

    ``socket.recv_fds`` ignores its flags."""
    files = array.array("i")
    data, ancillary, _, _ = connection.recvmsg(
        size, socket.CMSG_LEN(_wire.MAX_FILES * files.itemsize), flags | socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            files.frombytes(content[: len(content) - len(content) % files.itemsize])
    return data, list(files)
