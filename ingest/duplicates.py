"""Documents of equal text: how many there are, and which of them came first.

Equal means equal sha256. What is kept of a document is 16 bytes, the first 8 of its hash and its number, so that corpora of
any size can be asked about; by chance two of a hundred million texts share those 8 bytes once in four thousand corpora.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from store import Store
from store.tables import column

_WAITING = 1 << 16


class Seen:
    """The first document of every text, in arrays that grow by merging."""

    def __init__(self) -> None:
        self._hashes = np.empty(0, np.uint64)
        self._numbers = np.empty(0, np.int64)
        self._new: dict[int, int] = {}

    def first(self, sha256: str, number: int) -> int:
        """Return the number of the first document of a text, which is ``number`` where none came before."""
        key = int(sha256[:16], 16)
        at = int(np.searchsorted(self._hashes, np.uint64(key)))
        if at < len(self._hashes) and int(self._hashes[at]) == key:
            return int(self._numbers[at])
        found = self._new.setdefault(key, number)
        if len(self._new) >= _WAITING:
            self._merge()
        return found

    def __len__(self) -> int:
        return len(self._hashes) + len(self._new)

    def _merge(self) -> None:
        hashes = np.concatenate([self._hashes, np.fromiter(self._new, np.uint64, len(self._new))])
        numbers = np.fromiter(self._new.values(), np.int64, len(self._new))
        order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[order]
        self._numbers = np.concatenate([self._numbers, numbers])[order]
        self._new = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeats:
    """How much of a store's documents is there more than once."""

    documents: int
    repeated: int
    """Documents whose text an earlier one has."""
    repeated_rows: int
    """Their rows."""

    def to_json(self) -> dict[str, int]:
        """Return the counts by name."""
        return {name: getattr(self, name) for name in self.__slots__}


def repeats(store: Store) -> Repeats:
    """Count the documents of a store whose text an earlier one has."""
    seen = Seen()
    rows = 0
    repeated = array("q")
    for data in _documents(store):
        for number, digest, count in zip(
            column(data, "doc_id").tolist(),
            data.column("sha256").to_pylist(),
            column(data, "rows").tolist(),
            strict=True,
        ):
            if seen.first(digest, number) != number:
                rows += count
                repeated.append(number)
    again = len(
        np.unique(np.frombuffer(repeated, np.int64))
    )  # a document may have pieces in several parts
    return Repeats(documents=len(seen) + again, repeated=again, repeated_rows=rows)


def seen_in(store: Store) -> Seen:
    """Return the first document of every text in a store, those since removed among them."""
    seen = Seen()
    for data in _documents(store):
        for number, digest in zip(
            column(data, "doc_id").tolist(), data.column("sha256").to_pylist(), strict=True
        ):
            seen.first(digest, number)
    return seen


def _documents(store: Store) -> Iterator[Any]:
    view = store.view
    if "tokens" not in store.groups:
        return
    for part in view.parts("tokens"):
        yield view.objects.stored_table(view.stored_commit("tokens", part), "documents.parquet")
