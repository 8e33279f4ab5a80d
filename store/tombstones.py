"""Tombstones: documents that must not be read any more. Their bytes stay until a purge; readers leave their rows out.

A sequence that holds a token of a removed document goes whole, for what a model made of its other tokens has seen that
one. A tombstone says which parts hold the document, so that the tables of no other part are read because of it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from store import tables
from store.errors import CorruptError, InvalidInputError, NotFoundError, UnsupportedVersionError
from store.layout import MAX_TABLE_BYTES
from store.posix import TEMPORARY
from store.records import sha256
from store.storage import Storage

Array = np.ndarray[Any, np.dtype[Any]]
PREFIX = "tombstones"
_NONE = np.empty(0, np.int64)
_KEY = re.compile(PREFIX + r"/([0-9a-f]{64})\.parquet")


def tombstone_key(tombstone: str) -> str:
    """Return where a tombstone lies; its id is the sha256 of the file."""
    return f"{PREFIX}/{tombstone}.parquet"


def list_tombstones(storage: Storage) -> tuple[str, ...]:
    """Return the ids of all tombstones, sorted.

    Raises
    ------
    UnsupportedVersionError
        Something else lies among them: a newer version may mean rows by it that this one would show.
    """
    found = []
    for key in storage.keys(PREFIX):
        match = _KEY.fullmatch(key)
        if match is not None:
            found.append(match[1])
        elif not key.rpartition("/")[2].startswith(TEMPORARY):
            raise UnsupportedVersionError(
                f"{key} of {storage.url} is no tombstone this version knows. Nothing was read, for it may remove "
                "documents. Delete it where another program left it there; otherwise upgrade actlake.",
                path=key,
            )
    return tuple(sorted(found))


class Tombstones:
    """Which documents some tombstones remove, read when first asked for."""

    def __init__(self, storage: Storage, ids: Sequence[str]) -> None:
        self.ids = tuple(ids)
        self._storage = storage
        self._read: dict[str, Array] | None = None
        self._found: dict[int, Array] = {}

    def documents(self, part: int) -> Array:
        """Return the removed documents (``int64``) that may have rows in a part."""
        if not self.ids:
            return _NONE
        if part not in self._found:
            self._found[part] = np.unique(self.entries["doc_id"][self._here(part)])
        return self._found[part]

    def naming(self, part: int, documents: Array) -> tuple[str, ...]:
        """Return the ids of the tombstones that remove some documents of a part, sorted."""
        here = self._here(part) & np.isin(self.entries["doc_id"], documents)
        return tuple(sorted({self.ids[at] for at in self.entries["tombstone"][here]}))

    def _here(self, part: int) -> Array:
        entries = self.entries
        return np.asarray((entries["part"] == part) | (entries["seen_parts"] <= part))

    @property
    def entries(self) -> dict[str, Array]:
        """``doc_id``, ``part``, ``seen_parts`` of all of them, and which of ``ids`` each is from (``tombstone``)."""
        if self._read is None:
            loaded = [load_tombstone(self._storage, one) for one in self.ids]
            counts = [len(one["doc_id"]) for one in loaded]
            names = ("doc_id", "part", "seen_parts")
            self._read = {
                name: np.concatenate([_NONE, *(one[name] for one in loaded)]) for name in names
            }
            self._read["tombstone"] = np.repeat(np.arange(len(loaded)), counts)
        return self._read


def load_tombstone(storage: Storage, tombstone: str) -> dict[str, Array]:
    """Return ``doc_id``, ``part`` and ``seen_parts`` of a tombstone, one entry for each document and part.

    Raises
    ------
    CorruptError
        ``tombstone-damaged``: it is gone, does not fit its own name or is no such table.
    """
    key = tombstone_key(tombstone)
    try:
        data = storage.get(key, MAX_TABLE_BYTES)
    except (NotFoundError, InvalidInputError):  # its name is none of a tombstone
        data = b""
    if sha256(data) == tombstone:
        with contextlib.suppress(CorruptError):
            found = tables.decode(data, key, tables.SIDE_ROWS, tables.TOMBSTONE)
            if tables.fits(found, tables.TOMBSTONE, may_be_null={"reason"}):
                return {
                    name: np.asarray(tables.column(found, name), np.int64)
                    for name in ("doc_id", "part", "seen_parts")
                }
    raise CorruptError(
        f"{key} of {storage.url} is gone, no such table or does not fit its own name. Which documents it removed is not "
        "known, so nothing was read. Restore it from a copy.",
        kind="tombstone-damaged",
        path=key,
    )


def visible_rows(tokens: Any, removed: Array) -> Array:
    """Return the ids of the rows of a tokens table whose sequence holds no removed document, ``int64``."""
    row, seq_id, doc_id = (tables.column(tokens, name) for name in ("row", "seq_id", "doc_id"))
    gone = np.unique(seq_id[np.isin(doc_id, removed)])
    return np.asarray(row[~np.isin(seq_id, gone)], np.int64)


def visible_table(data: Any, path: str, visible: Array, tokens: Any) -> Any:
    """Return what may be read of a table of a part.

    Parameters
    ----------
    visible
        Ids of the rows that may be read.
    tokens
        The part's tokens table, visible rows alone; read for ``documents.parquet`` only.
    """
    if path == "documents.parquet":
        return _visible_documents(data, tokens)
    key = "seq_id" if path == "sequences.parquet" else "row"
    return tables.masked(data, np.isin(tables.column(data, key), visible))


def _visible_documents(data: Any, tokens: Any) -> Any:
    """Return the documents that have rows left, with the number of those and the first."""
    doc_id, row = tables.column(tokens, "doc_id"), tables.column(tokens, "row")
    held, first, counts = np.unique(doc_id, return_index=True, return_counts=True)
    data = tables.masked(data, np.isin(tables.column(data, "doc_id"), held))
    at = np.searchsorted(held, tables.column(data, "doc_id"))
    for name, values in (("first_row", row[first[at]]), ("rows", counts[at])):
        data = tables.replaced(data, name, values)
    return data
