"""Memory that is passed to the peer as a descriptor instead of being sent.

::

    image = BlobMut(64 << 20)
    numpy.frombuffer(image.view, dtype="u1")[:] = 255
    total = await client.call("sum", image.freeze())

The peer maps the memory, in a time that does not depend on its length. It gets a read-only ``memoryview``, from which
``numpy.frombuffer`` makes an array without copying. Through TCP, and to peers that do not accept descriptors, the bytes
are sent.
"""

from __future__ import annotations

import fcntl
import io
import mmap
import os
import resource
from typing import Optional

__all__ = ["Blob", "BlobMut"]

# From <linux/fcntl.h>. Older versions of Python lack some of them.
_ADD_SEALS, _GET_SEALS = 1033, 1034
_SEAL, _SHRINK, _GROW, _WRITE = 1, 2, 4, 8
_ALL = _SHRINK | _GROW | _WRITE


class BlobMut:
    """``length`` bytes of memory, zeros at first, to be filled in place.

    The kernel treats the memory as a file. If the limit of file sizes (``RLIMIT_FSIZE``, ``ulimit -f``) is smaller than
    ``length``, the memory is private to this process and its bytes are sent."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._is_frozen = False
        self._file = -1 if _is_over_limit(length) else _memory_file(length)
        try:
            self._map: Optional[mmap.mmap] = mmap.mmap(self._file, length) if length else None
        except BaseException:
            self._close()
            raise

    def __len__(self) -> int:
        return self._length

    @property
    def view(self) -> memoryview:
        """The writable memory. Release it, and everything made from it, before ``freeze``.

        ``ValueError`` if the memory is frozen."""
        if self._is_frozen:
            raise ValueError("this memory is frozen and cannot be written to")
        return memoryview(self._map) if self._map is not None else memoryview(bytearray())

    def freeze(self) -> Blob:
        """Seals the memory, and returns it as a ``Blob`` that can be sent. Nothing can write to it afterwards.

        ``BufferError`` if a view, or an array made from one, still exists; ``ValueError`` if it is frozen already."""
        if self._is_frozen:
            raise ValueError("this memory is frozen already")
        # Private memory cannot be sealed, so its bytes are copied.
        own = bytes(self._map or b"") if self._file < 0 else None
        if self._map is not None:
            try:
                self._map.close()
            except BufferError:
                said = "a view of this memory still exists: release it, and delete arrays made from it"
                raise BufferError(said) from None
            self._map = None
        self._is_frozen = True
        if own is not None:
            return Blob(-1, memoryview(own))
        fcntl.fcntl(self._file, _ADD_SEALS, _ALL | _SEAL)
        file, self._file = self._file, -1
        return Blob(file)

    def _close(self) -> None:
        file, self._file = getattr(self, "_file", -1), -1
        if file >= 0:
            os.close(file)

    def __del__(self) -> None:
        self._close()


def _is_over_limit(length: int) -> bool:
    """Whether the limit of file sizes forbids this length. Exceeding it would raise SIGXFSZ, which ends a program."""
    most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return most != resource.RLIM_INFINITY and length > most


def _memory_file(length: int) -> int:
    file = os.memfd_create("taskfork-blob", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(file, length)
    except BaseException:
        os.close(file)
        raise
    return file


class Blob:
    """Immutable bytes that the peer can map. Made by ``BlobMut.freeze``; it can be sent any number of times."""

    def __init__(self, file: int, own: Optional[memoryview] = None) -> None:
        """``own`` contains the bytes of a blob without a file."""
        self._file = file
        self._view = view_of(os.dup(file)) if own is None else own

    def __len__(self) -> int:
        return len(self._view)

    @property
    def view(self) -> memoryview:
        """The bytes."""
        return self._view

    def fileno(self) -> int:
        """The descriptor of the memory. ``io.UnsupportedOperation`` if the memory is private to this process."""
        if self._file < 0:
            raise io.UnsupportedOperation("this blob is memory of this process alone")
        return self._file

    @property
    def is_shareable(self) -> bool:
        """Whether the peer can map the memory. Otherwise its bytes are sent."""
        return self._file >= 0

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            os.close(self._file)


def view_of(file: int) -> memoryview:
    """Maps a sealed memfd, and closes the descriptor. ``ValueError`` for another file."""
    try:
        try:
            seals = fcntl.fcntl(file, _GET_SEALS)
        except OSError:
            raise ValueError("a blob is not a memfd") from None
        if seals & _ALL != _ALL:
            raise ValueError("a blob is not sealed against changes")
        length = os.fstat(file).st_size
        if length == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ))
    finally:
        os.close(file)


def opened(file: int) -> io.FileIO:
    """A file object that owns the descriptor. ``OSError``, and the descriptor is closed, if Python has none for it, as for a
    directory."""
    try:
        access = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        return io.FileIO(file, {os.O_RDONLY: "r", os.O_WRONLY: "w"}.get(access, "r+"))
    except BaseException:
        os.close(file)
        raise
