"""Which storage is behind a URL."""

from __future__ import annotations

from pathlib import Path

from store.errors import InvalidInputError
from store.memory import MemoryStorage
from store.posix import PosixStorage
from store.storage import Storage


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
