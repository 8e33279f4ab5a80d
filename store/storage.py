"""What a store asks of the world outside: keys to bytes, behind one protocol.

Every object is written once. ``put`` and ``stream`` make an object appear whole or not at all; ``create`` makes
one of many racing writers win. Nothing else in the package touches files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from store.errors import CorruptError, InvalidInputError, NotFoundError

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@=-]*(/[A-Za-z0-9_][A-Za-z0-9_.@=-]*)*")


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


ReadInto = Callable[[Sequence[tuple[int, Any]]], None]
"""Fills each writable buffer from its offset, as ``Storage.read_into`` does."""


class Storage(Protocol):
    """Keys to bytes. Keys are relative and validated; nothing here caches or interprets."""

    url: str
    call_bytes: int
    """What one call should read where more is wanted: little where a call costs nothing, so that it is still in the
    processor's cache when it is looked at; much where calls travel."""
    calls_at_once: int
    """Calls that are worth making at once; 1: threads gain nothing."""

    def create(self, key: str, data: bytes) -> bool:
        """Write a small object unless the key is taken; return whether this call wrote it."""

    def put(self, key: str, data: bytes) -> Written:
        """Write a whole object under a key nobody else writes."""

    def stream(self, key: str) -> Stream:
        """Open an object for writing under a key nobody else writes."""

    def get(self, key: str, most: int | None = None) -> bytes:
        """Return an object's bytes, or raise ``not-found``.

        Of one with more than ``most`` bytes, ``most + 1`` of them, so that its size need not be trusted.
        """

    def size(self, key: str) -> int:
        """Return an object's size in bytes, or raise ``not-found``."""

    def modified(self, key: str) -> float:
        """Return when an object was written, in seconds since 1970 by the storage's clock, or raise ``not-found``."""

    def read_into(self, key: str, ranges: Sequence[tuple[int, Any]]) -> None:
        """Fill each writable buffer from its offset; a short read raises ``object-short``."""

    def reading(
        self, key: str, soon: Sequence[Sequence[int]] = ()
    ) -> AbstractContextManager[ReadInto]:
        """Open an object for several reads, each as ``read_into``; ``soon`` are the (offset, size) they will ask for."""

    def mapped(self, key: str) -> memoryview | None:
        """Return a whole object as memory that is read when it is touched, or None where that cannot be had.

        Whoever truncates the object meanwhile ends the process that touches it.
        """

    def settle(self, prefix: str) -> None:
        """Make the names below a folder durable, whoever made them: a record may be seen before it is."""

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield every key that starts with the folder ``prefix``; never cached, unordered."""

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders directly below ``prefix``, sorted."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; a missing one is no error."""

    def local_path(self, key: str) -> Path | None:
        """Return the file behind a key where there is one."""


def each(storage: Storage, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Return what some work on each item comes to, in order; several at once where the storage gains by it."""
    threads = min(storage.calls_at_once, len(items))
    if threads < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))


def check_key(key: str) -> str:
    """Return ``key`` where it is a legal relative key, else raise ``bad-key``."""
    if _KEY.fullmatch(key) is None:
        raise InvalidInputError(
            f"{key!r} is no legal key of a store. Nothing was read or written. Keys are relative, of letters, "
            "digits and _ . @ = - between slashes.",
            kind="bad-key",
        )
    return key


def missing(key: str, url: str) -> NotFoundError:
    """Return the error for an object that is not there."""
    return NotFoundError(
        f"there is no object {key!r} in {url}. Nothing was changed.",
        kind="object-missing",
        path=key,
    )


def short(key: str, url: str, offset: int, want: int) -> CorruptError:
    """Return the error for an object that ends too early."""
    return CorruptError(
        f"object {key!r} in {url} ends before byte {offset + want}. Its rows were not returned. "
        "Restore the file from a copy; `actlake verify` lists all damage.",
        kind="object-short",
        path=key,
    )
