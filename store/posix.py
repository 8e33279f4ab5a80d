"""Storage on POSIX file systems: files below one folder, durable and atomic.

An object is written as a temporary file in the same folder, fdatasync, a hard link to the final name (which
fails if the name is taken), fsync of the folder. The folders above are fsynced once per process even where
somebody else made them: their maker may have died before its own fsync. When the link lands but its answer is
lost (NFS), the temporary file's link count of two says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from store.checksum import extend
from store.errors import (
    ConflictError,
    StoreError,
    UnavailableError,
)
from store.storage import Written, check_key, missing, short

TEMPORARY = ".tmp-"
_FOLDER_TRIES = 16  # a racing writer's clean-up may take an empty folder away between two calls
# macOS has no fdatasync; fsync does the same and more.
_sync_file = getattr(os, "fdatasync", os.fsync)


# EEXIST: a file stands where a folder is needed (a taken key never gets here, see PosixStream.finish)
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.EEXIST, errno.ENAMETOOLONG}


@contextlib.contextmanager
def _translated(key: str, url: str) -> Iterator[None]:
    """Turn an operating-system error into the store's, once, here."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise missing(key, url) from error
    except OSError as error:
        raise _from_os(error, key, url) from error


def _from_os(error: OSError, key: str, url: str) -> StoreError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return StoreError(
            f"the disk is full: writing {key!r} into {url} failed ({error.strerror}). What was "
            "committed before stands, the part being written is dropped. Free space and run the same "
            "command again.",
            kind="disk-full",
            path=key,
        )
    if error.errno in _FORBIDDEN:
        return StoreError(
            f"{url} does not let {key!r} be written or read ({error.strerror}). Nothing was changed. "
            "Choose a folder you may write to.",
            kind="not-permitted",
            path=key,
        )
    return UnavailableError(
        f"{url}: {key!r} failed ({error.strerror}). What was committed before stands. Try again.",
        path=key,
    )


class PosixStorage:
    """Files below one folder, durable and atomic."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root.expanduser()))  # noqa: PTH100 - resolve() follows links
        self.url = str(self.root)
        self._durable: set[Path] = set()

    def local_path(self, key: str) -> Path:
        return self.root / check_key(key)

    def create(self, key: str, data: bytes) -> bool:
        stream = self.stream(key)
        try:
            stream.write(data)
            stream.finish()
        except ConflictError:
            with _translated(key, self.url):
                _sync_folder(self.local_path(key).parent)  # its maker may have died before that
            return False
        finally:
            stream.abandon()
        return True

    def put(self, key: str, data: bytes) -> Written:
        stream = self.stream(key)
        try:
            stream.write(data)
            return stream.finish()
        finally:
            stream.abandon()

    def stream(self, key: str) -> PosixStream:
        path = self.local_path(key)
        with _translated(key, self.url):
            for _ in range(_FOLDER_TRIES - 1):
                with contextlib.suppress(FileNotFoundError):
                    self._make_folder(path.parent)
                    return PosixStream(path, key, self)
            self._make_folder(path.parent)
            return PosixStream(path, key, self)

    def _make_folder(self, folder: Path) -> None:
        """Make a folder whose name, and whose ancestors' names below the root, are durable."""
        wanted = []
        while folder != self.root and not (folder in self._durable and folder.is_dir()):
            wanted.append(folder)
            folder = folder.parent
        if folder == self.root:
            wanted += [path for path in (self.root, *self.root.parents) if not path.is_dir()]
        for path in reversed(wanted):
            path.mkdir(exist_ok=True)
            _sync_folder(path.parent)
            self._durable.add(path)

    def get(self, key: str) -> bytes:
        with _translated(key, self.url):
            return self.local_path(key).read_bytes()

    def size(self, key: str) -> int:
        with _translated(key, self.url):
            return self.local_path(key).stat().st_size

    def modified(self, key: str) -> float:
        # Temporary files are no legal keys, and the only others there are.
        with _translated(key, self.url):
            return (self.root / key).stat(follow_symlinks=False).st_mtime

    def read_into(self, key: str, ranges: Sequence[tuple[int, Any]]) -> None:
        with _translated(key, self.url), self.local_path(key).open("rb", buffering=0) as file:
            for offset, buffer in ranges:
                view = memoryview(buffer).cast("B")
                file.seek(offset)
                done = 0
                while done < len(view):
                    got = file.readinto(view[done:])
                    if not got:
                        raise short(key, self.url, offset, len(view))
                    done += got

    def settle(self, prefix: str) -> None:
        with _translated(prefix, self.url), contextlib.suppress(FileNotFoundError):
            for folder in (self.root / prefix).parent, self.root / prefix:
                _sync_folder(folder)
            for name in self.folders(prefix):
                _sync_folder(self.root / prefix / name)

    def keys(self, prefix: str) -> Iterator[str]:
        folder = self.root / prefix
        with _translated(prefix, self.url):
            if not folder.is_dir():
                return
            pending = [(folder, prefix if not prefix or prefix.endswith("/") else prefix + "/")]
            while pending:
                path, base = pending.pop()
                # A folder that a racing writer's clean-up took away meanwhile held nothing.
                with contextlib.suppress(FileNotFoundError), os.scandir(path) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            pending.append((path / entry.name, f"{base}{entry.name}/"))
                        else:
                            yield base + entry.name

    def folders(self, prefix: str) -> list[str]:
        folder = self.root / prefix
        with _translated(prefix, self.url):
            if not folder.is_dir():
                return []
            with os.scandir(folder) as entries:
                return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self.root / key
            with _translated(key, self.url), contextlib.suppress(FileNotFoundError):
                path.unlink()
                self.remove_empty(path.parent)

    def remove_empty(self, folder: Path) -> None:
        """Remove a folder and those above it as long as they are empty."""
        with contextlib.suppress(OSError):  # it holds something, or somebody else was faster
            while folder != self.root:
                folder.rmdir()
                folder = folder.parent


class PosixStream:
    """A temporary file beside the final name."""

    def __init__(self, path: Path, key: str, storage: PosixStorage) -> None:
        self._path, self._key, self._storage = path, key, storage
        self._url = storage.url
        self._temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._temporary, flags, 0o644)
        self._size = 0
        self._crc = 0

    def write(self, *buffers: Any) -> None:
        with _translated(self._key, self._url):
            for buffer in buffers:
                view = memoryview(buffer).cast("B")
                self._crc = extend(self._crc, view)
                self._size += len(view)
                done = 0
                while done < len(view):
                    done += os.write(self._fd, view[done:])

    def finish(self) -> Written:
        with _translated(self._key, self._url):
            _sync_file(self._fd)
            try:
                os.link(self._temporary, self._path)
            except OSError as error:
                landed = os.fstat(self._fd).st_nlink == 2  # the link was made, its answer lost
                if not landed and isinstance(error, FileExistsError):
                    raise ConflictError(
                        f"{self._key!r} is taken in {self._url}. It was left as it is.",
                        kind="taken",
                    ) from error
                if not landed:
                    raise
            self._close()
            _sync_folder(self._path.parent)
        return Written(size=self._size, crc32c=self._crc)

    def abandon(self) -> None:
        if self._fd >= 0:
            self._close()
            self._storage.remove_empty(self._path.parent)

    def _close(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # its bytes are durable or unwanted by now
                os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(OSError):  # gc finds it
                self._temporary.unlink()


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
