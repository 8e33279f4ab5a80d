"""The only I/O of a store: POSIX and memory behind one protocol.

Every object is written once. ``put`` and ``stream`` make an object appear whole or not at all; ``create`` makes
one of many racing writers win. On POSIX that is: a temporary file in the same folder, fdatasync, a hard link to
the final name (which fails if the name is taken), fsync of the folder and of every folder made on the way.
When the link lands but its answer is lost (NFS), the temporary file's link count of two says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from store.checksum import extend
from store.errors import (
    ConflictError,
    CorruptError,
    InvalidInputError,
    NotFoundError,
    StoreError,
    UnavailableError,
)

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@=-]*(/[A-Za-z0-9_][A-Za-z0-9_.@=-]*)*")
_TEMPORARY = ".tmp-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What a finished object is: its size in bytes and the crc32c of all of it."""

    size: int
    crc32c: int


class Stream(Protocol):
    """An object being written; invisible until ``finish``."""

    def write(self, *buffers: Any) -> None:
        """Append buffers, in order."""

    def finish(self) -> Written:
        """Make the object durable and visible under its key."""

    def abandon(self) -> None:
        """Drop what was written; calling it after ``finish`` does nothing."""


class Storage(Protocol):
    """Keys to bytes. Keys are relative and validated; nothing here caches or interprets."""

    url: str

    def create(self, key: str, data: bytes) -> bool:
        """Write a small object unless the key is taken; return whether this call wrote it."""

    def put(self, key: str, data: bytes) -> Written:
        """Write a whole object under a key nobody else writes."""

    def stream(self, key: str) -> Stream:
        """Open an object for writing under a key nobody else writes."""

    def get(self, key: str) -> bytes:
        """Return an object's bytes, or raise ``not-found``."""

    def size(self, key: str) -> int:
        """Return an object's size in bytes, or raise ``not-found``."""

    def read_into(self, key: str, ranges: Sequence[tuple[int, Any]]) -> None:
        """Fill each writable buffer from its offset; a short read raises ``object-short``."""

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield every key that starts with the folder ``prefix``; never cached, unordered."""

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders directly below ``prefix``, sorted."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; a missing one is no error."""

    def local_path(self, key: str) -> Path | None:
        """Return the file behind a key where there is one."""


def check_key(key: str) -> str:
    """Return ``key`` where it is a legal relative key, else raise ``bad-key``."""
    if _KEY.fullmatch(key) is None:
        raise InvalidInputError(f"{key!r} is no legal key of a store", kind="bad-key")
    return key


def open_storage(url: str) -> Storage:
    """Return the storage behind a URL: a local path, ``file://…`` or ``memory://name``."""
    scheme, found, rest = url.partition("://")
    if not found:
        return PosixStorage(Path(url))
    if scheme == "file":
        return PosixStorage(Path(rest))
    if scheme == "memory":
        return MemoryStorage.named(rest)
    raise InvalidInputError(
        f"{url!r} has the scheme {scheme!r}; this version opens local paths, file:// and memory://. "
        "Nothing was read or written.",
        kind="unsupported-url",
    )


def _missing(key: str, url: str) -> NotFoundError:
    return NotFoundError(
        f"there is no object {key!r} in {url}. Nothing was changed.",
        kind="object-missing",
        path=key,
    )


def _short(key: str, url: str, offset: int, want: int) -> CorruptError:
    return CorruptError(
        f"object {key!r} in {url} ends before byte {offset + want}. Its rows were not returned. "
        "Restore the file from a copy; `actlake verify` lists all damage.",
        kind="object-short",
        path=key,
    )


@contextlib.contextmanager
def _translated(key: str, url: str) -> Iterator[None]:
    """Turn an operating-system error into the store's, once, here."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise _missing(key, url) from error
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
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP}:
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


# -- POSIX -------------------------------------------------------------------------------------------------


class PosixStorage:
    """Files below one folder, durable and atomic."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root.expanduser()))  # noqa: PTH100 - resolve() follows links
        self.url = str(self.root)

    def local_path(self, key: str) -> Path:
        return self.root / check_key(key)

    def create(self, key: str, data: bytes) -> bool:
        stream = self.stream(key)
        try:
            stream.write(data)
            stream.finish()
        except ConflictError:
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
            self._make_folder(path.parent)
            return PosixStream(path, key, self.url)

    def _make_folder(self, folder: Path) -> None:
        made = []
        while not folder.is_dir():
            made.append(folder)
            folder = folder.parent
        for path in reversed(made):
            path.mkdir(exist_ok=True)
            _sync_folder(path.parent)

    def get(self, key: str) -> bytes:
        with _translated(key, self.url):
            return self.local_path(key).read_bytes()

    def size(self, key: str) -> int:
        with _translated(key, self.url):
            return self.local_path(key).stat().st_size

    def read_into(self, key: str, ranges: Sequence[tuple[int, Any]]) -> None:
        with _translated(key, self.url):
            fd = os.open(self.local_path(key), os.O_RDONLY | os.O_CLOEXEC)
            try:
                for offset, buffer in ranges:
                    view = memoryview(buffer).cast("B")
                    done = 0
                    while done < len(view):
                        got = os.preadv(fd, [view[done:]], offset + done)
                        if got == 0:
                            raise _short(key, self.url, offset, len(view))
                        done += got
            finally:
                os.close(fd)

    def keys(self, prefix: str) -> Iterator[str]:
        folder = self.root / prefix
        with _translated(prefix, self.url):
            if not folder.is_dir():
                return
            pending = [(folder, prefix if not prefix or prefix.endswith("/") else prefix + "/")]
            while pending:
                path, base = pending.pop()
                with os.scandir(path) as entries:
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
                with contextlib.suppress(OSError):  # the folder still holds something
                    while path.parent != self.root:
                        path = path.parent
                        path.rmdir()


class PosixStream:
    """A temporary file beside the final name."""

    def __init__(self, path: Path, key: str, url: str) -> None:
        self._path, self._key, self._url = path, key, url
        self._temporary = path.parent / f"{_TEMPORARY}{secrets.token_hex(8)}"
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
            os.fdatasync(self._fd)
            try:
                os.link(self._temporary, self._path)
            except FileExistsError as error:
                raise ConflictError(
                    f"{self._key!r} is taken in {self._url}", kind="taken"
                ) from error
            except OSError:
                if os.fstat(self._fd).st_nlink != 2:
                    raise
            self.abandon()
            _sync_folder(self._path.parent)
        return Written(size=self._size, crc32c=self._crc)

    def abandon(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(FileNotFoundError):
                self._temporary.unlink()


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# -- memory ------------------------------------------------------------------------------------------------


class MemoryStorage:
    """A dict behind the protocol; ``memory://name`` is the same dict all through one process."""

    _named: dict[str, MemoryStorage] = {}  # noqa: RUF012 - the process-wide name space of memory://
    _names_lock = threading.Lock()

    def __init__(self, url: str = "memory://") -> None:
        self.url = url
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @classmethod
    def named(cls, name: str) -> MemoryStorage:
        """Return the storage of that name, making it at first use."""
        with cls._names_lock:
            return cls._named.setdefault(name, cls(f"memory://{name}"))

    def local_path(self, key: str) -> None:
        check_key(key)

    def create(self, key: str, data: bytes) -> bool:
        with self._lock:
            if check_key(key) in self._objects:
                return False
            self._objects[key] = bytes(data)
            return True

    def put(self, key: str, data: bytes) -> Written:
        stream = self.stream(key)
        stream.write(data)
        return stream.finish()

    def stream(self, key: str) -> MemoryStream:
        return MemoryStream(self, check_key(key))

    def get(self, key: str) -> bytes:
        try:
            return self._objects[key]
        except KeyError as error:
            raise _missing(key, self.url) from error

    def size(self, key: str) -> int:
        return len(self.get(key))

    def read_into(self, key: str, ranges: Sequence[tuple[int, Any]]) -> None:
        data = self.get(key)
        for offset, buffer in ranges:
            view = memoryview(buffer).cast("B")
            if offset + len(view) > len(data):
                raise _short(key, self.url, offset, len(view))
            view[:] = data[offset : offset + len(view)]

    def keys(self, prefix: str) -> Iterator[str]:
        base = prefix if not prefix or prefix.endswith("/") else prefix + "/"
        with self._lock:
            keys = [key for key in self._objects if key.startswith(base)]
        yield from keys

    def folders(self, prefix: str) -> list[str]:
        base = prefix if not prefix or prefix.endswith("/") else prefix + "/"
        return sorted(
            {
                key[len(base) :].partition("/")[0]
                for key in self.keys(prefix)
                if "/" in key[len(base) :]
            }
        )

    def delete(self, keys: Iterable[str]) -> None:
        with self._lock:
            for key in keys:
                self._objects.pop(key, None)


class MemoryStream:
    """Collects buffers until ``finish``."""

    def __init__(self, storage: MemoryStorage, key: str) -> None:
        self._storage, self._key = storage, key
        self._data = bytearray()

    def write(self, *buffers: Any) -> None:
        for buffer in buffers:
            self._data += memoryview(buffer).cast("B")

    def finish(self) -> Written:
        data = bytes(self._data)
        if not self._storage.create(self._key, data):
            raise ConflictError(f"{self._key!r} is taken in {self._storage.url}", kind="taken")
        return Written(size=len(data), crc32c=extend(0, data))

    def abandon(self) -> None:
        self._data = bytearray()
