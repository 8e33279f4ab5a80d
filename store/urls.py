"""Which storage is behind a URL."""

from __future__ import annotations

from pathlib import Path

from store.errors import InvalidInputError
from store.memory import MemoryStorage
from store.object_store import PACKAGES, ObjectStorage
from store.posix import PosixStorage
from store.storage import Storage


def open_storage(url: str) -> Storage:
    """Return the storage behind a URL: a local path, ``file://…``, ``memory://name``, or a bucket."""
    scheme, found, rest = url.partition("://")
    if not found:
        return PosixStorage(Path(url))
    if scheme == "file":
        return PosixStorage(Path(rest))
    if scheme == "memory":
        return MemoryStorage.named(rest)
    if scheme in PACKAGES and "::" not in rest:
        return ObjectStorage(url)
    raise InvalidInputError(
        f"{url!r} has the scheme {scheme!r}; a store is a local path, file://, memory:// or "
        f"{', '.join(f'{name}://' for name in PACKAGES)}. Nothing was read or written.",
        kind="unsupported-url",
    )
