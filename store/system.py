"""What the POSIX adapter asks of the operating system, call by call.

The one seam below the adapter: tests hand in a disk that loses power (``store.testing.power``). A method is the call of
its name and adds nothing, so what such a disk sees is what the kernel would see.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

# macOS has no fdatasync; fsync does the same and more.
_fdatasync = getattr(os, "fdatasync", os.fsync)


# Linux alone has it, and Python does not pass it on.
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin, and do not wait


class Entry(Protocol):
    """A name in a folder."""

    @property
    def name(self) -> str:
        """The name."""

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether a folder is behind it."""


class System:
    """The operating system this process runs on; has no state and can be pickled."""

    def open(self, path: Path | str, flags: int, mode: int = 0o777) -> int:
        """See open(2)."""
        return os.open(path, flags, mode)

    def close(self, fd: int) -> None:
        """See close(2)."""
        os.close(fd)

    def write(self, fd: int, data: memoryview) -> int:
        """See write(2)."""
        return os.write(fd, data)

    def read(self, fd: int, size: int) -> bytes:
        """See read(2)."""
        return os.read(fd, size)

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        """See preadv(2); returns how many bytes of the buffers were filled, one after the other."""
        return os.preadv(fd, buffers, offset)

    def begin_read(self, fd: int, offset: int, size: int) -> None:
        """See posix_fadvise(2), POSIX_FADV_WILLNEED: these bytes will be read; waits for nothing."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_WILLNEED)

    def mmap(self, fd: int) -> memoryview:
        """See mmap(2); the whole file, for reading."""
        return memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))

    def begin_sync(self, fd: int, offset: int, size: int) -> None:
        """See sync_file_range(2): the disk may as well write these bytes now; promises nothing, and waits for nothing."""
        if _sync_file_range is not None:
            _sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(size), _WRITE)

    def fdatasync(self, fd: int) -> None:
        """See fdatasync(2): the bytes of a file, and its size, are durable."""
        _fdatasync(fd)

    def fsync(self, fd: int) -> None:
        """See fsync(2); of a folder: the names in it are durable."""
        os.fsync(fd)

    def fstat(self, fd: int) -> os.stat_result:
        """See fstat(2)."""
        return os.fstat(fd)

    def stat(self, path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        """See stat(2) and lstat(2)."""
        return path.stat(follow_symlinks=follow_symlinks)

    def link(self, source: Path, target: Path) -> None:
        """See link(2)."""
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        """See unlink(2)."""
        path.unlink()

    def mkdir(self, path: Path) -> None:
        """See mkdir(2)."""
        path.mkdir()

    def rmdir(self, path: Path) -> None:
        """See rmdir(2)."""
        path.rmdir()

    def scandir(self, path: Path) -> AbstractContextManager[Iterator[Entry]]:
        """See readdir(3)."""
        found: Any = os.scandir(path)
        return found  # type: ignore[no-any-return]
