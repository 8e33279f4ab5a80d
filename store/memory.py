"""Storage in memory: a dict behind the protocol, for tests, examples and scratch work."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from store.checksum import extend
from store.errors import ConflictError, StoreError
from store.storage import ReadInto, Written, check_key, missing, short


class MemoryStorage:
    """A dict behind the protocol; ``memory://name`` is the same dict all through one process."""

    _named: dict[str, MemoryStorage] = {}  # noqa: RUF012 - the process-wide name space of memory://
    _names_lock = threading.Lock()
    call_bytes = 1
    calls_at_once = 1

    def __init__(self, url: str = "memory://") -> None:
        self.url = url
        self._objects: dict[str, bytes] = {}
        self._times: dict[str, float] = {}
        self._lock = threading.Lock()

    @classmethod
    def named(cls, name: str) -> MemoryStorage:
        """Return the storage of that name, making it at first use."""
        with cls._names_lock:
            return cls._named.setdefault(name, cls(f"memory://{name}"))

    def __reduce__(self) -> tuple[Any, ...]:
        name = self.url.removeprefix("memory://")
        return _again, (name, os.getpid(), id(self))

    def local_path(self, key: str) -> None:
        check_key(key)

    def create(self, key: str, data: bytes) -> bool:
        with self._lock:
            if check_key(key) in self._objects:
                return False
            self._objects[key] = bytes(data)
            self._times[key] = time.time()
            return True

    def put(self, key: str, data: bytes) -> Written:
        stream = self.stream(key)
        stream.write(data)
        return stream.finish()

    def stream(self, key: str) -> MemoryStream:
        return MemoryStream(self, check_key(key))

    def get(self, key: str, most: int | None = None) -> bytes:
        try:
            data = self._objects[key]
            return data if most is None or len(data) <= most else data[: most + 1]
        except KeyError as error:
            raise missing(key, self.url) from error

    def size(self, key: str) -> int:
        return len(self.get(key))

    def modified(self, key: str) -> float:
        self.get(key)
        return self._times[key]

    def read_into(self, key: str, ranges: Sequence[tuple[int, Any]]) -> None:
        data = self.get(key)
        for offset, buffer in ranges:
            view = memoryview(buffer).cast("B")
            if offset + len(view) > len(data):
                raise short(key, self.url, offset, len(view))
            view[:] = data[offset : offset + len(view)]

    @contextlib.contextmanager
    def reading(self, key: str, soon: Sequence[Sequence[int]] = ()) -> Iterator[ReadInto]:
        del soon
        yield functools.partial(self.read_into, key)

    def mapped(self, key: str) -> memoryview | None:
        return memoryview(self.get(key))

    def settle(self, prefix: str) -> None:
        pass

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


def _again(name: str, process: int, number: int) -> MemoryStorage:
    """Return the storage that was pickled; elsewhere its bytes are not, and an empty one in its place would be a lie."""
    found = MemoryStorage._named.get(name)
    if found is None or (os.getpid(), id(found)) != (process, number):
        raise StoreError(
            f"memory://{name} was made in process {process} and lives there alone; it was opened in {os.getpid()}. "
            "Nothing was read or written. Use a folder or a bucket where several processes share a store.",
            kind="not-shared",
        )
    return found


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
