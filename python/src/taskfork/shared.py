"""Memory that is handed over instead of being sent.

::

    image = BlobMut(64 << 20)
    numpy.frombuffer(image.view, dtype="u1")[:] = 255
    total = await client.call("sum", image.freeze())

The other side maps it, in a time that does not depend on its length. It arrives as a read-only
``memoryview``, from which ``numpy.frombuffer`` makes an array without copying. Where memory cannot be
handed over, as through TCP, it is sent as any other bytes.
"""

from __future__ import annotations

import fcntl
import io
import mmap
import os
import resource
from typing import Optional

__all__ = ["Blob", "BlobMut"]

#: The most bytes of one blob that is mapped, as the protocol has it unless a hello says otherwise.
MAX_BLOB = 256 << 20

# As in the kernel's <linux/fcntl.h>, of which not every Python knows them all.
_ADD_SEALS, _GET_SEALS = 1033, 1034
_SEAL, _SHRINK, _GROW, _WRITE = 1, 2, 4, 8
_ALL = _SHRINK | _GROW | _WRITE


class BlobMut:
    """``length`` bytes of memory, zeros at first, to be filled in place.

    The memory is a file to the kernel. Where the limit of file sizes (``RLIMIT_FSIZE``, ``ulimit -f``) is smaller,
    it is memory of this process alone, which is sent as any other bytes."""

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
        """The memory, to be written to. Released, like all that was made of it, before ``freeze``."""
        if self._is_frozen:
            raise ValueError("this memory is frozen: nobody can write to it any more")
        return memoryview(self._map) if self._map is not None else memoryview(bytearray())

    def freeze(self) -> Blob:
        """Makes it what can be handed over. It cannot be written to from here on: a ``BufferError``
        says that a view, or an array that was made of one, is still there."""
        if self._is_frozen:
            raise ValueError("this memory is frozen already")
        # Memory of this process cannot be sealed, so that its bytes are copied.
        own = bytes(self._map or b"") if self._file < 0 else None
        if self._map is not None:
            try:
                self._map.close()
            except BufferError:
                said = "a view of this memory is still there: release it, and delete arrays made of it"
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
    """Whether a file may not have so many bytes. To make one longer would end programs that take SIGXFSZ by default."""
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
    """Bytes that stay as they are, and that the other side can map. Made by ``BlobMut.freeze``; it can
    be sent any number of times."""

    def __init__(self, file: int, own: Optional[memoryview] = None) -> None:
        """``own`` are the bytes of a blob that has no file."""
        self._file = file
        self._view = view_of(os.dup(file)) if own is None else own

    def __len__(self) -> int:
        return len(self._view)

    @property
    def view(self) -> memoryview:
        """The bytes."""
        return self._view

    def fileno(self) -> int:
        """The descriptor of the memory. An ``io.UnsupportedOperation`` says that it has none."""
        if self._file < 0:
            raise io.UnsupportedOperation("this blob is memory of this process alone")
        return self._file

    @property
    def is_shareable(self) -> bool:
        """Whether the other side can map it. Otherwise its bytes are sent."""
        return self._file >= 0

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            os.close(self._file)


def view_of(file: int, most: Optional[int] = None) -> memoryview:
    """The bytes of memory that nobody can change, if there are no more than so many. The descriptor is taken over."""
    try:
        try:
            seals = fcntl.fcntl(file, _GET_SEALS)
        except OSError:
            raise ValueError("a blob is no memory") from None
        if seals & _ALL != _ALL:
            raise ValueError("a blob is not sealed against changes")
        length = os.fstat(file).st_size
        if most is not None and length > most:
            raise ValueError(f"a blob has {length} bytes, and the limit is {most}")
        if length == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ))
    finally:
        os.close(file)


def opened(file: int) -> io.FileIO:
    """An open file of this descriptor."""
    access = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
    return io.FileIO(file, {os.O_RDONLY: "r", os.O_WRONLY: "w"}.get(access, "r+"))
