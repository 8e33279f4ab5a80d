"""The part a writer is at: what has come, what comes next, and what it is written as when it is whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from store import tables
from store.attempts import Attempt
from store.commits import Commit
from store.summary import Summary
from store.values import Codes

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(kw_only=True)
class OpenPart:
    """What a writer has of the part it is at; dense columns are on their way to their shards, the rest waits here."""

    attempt: Attempt
    tokens: Commit
    base: int
    due: Array | None
    """Ids of the rows that may come, where documents were removed; the slots of the others stay empty."""
    without: tuple[str, ...]
    """The tombstones that removed them."""
    ids: list[Array] = field(default_factory=list)
    rows: int = 0
    scalars: dict[str, list[Array]] = field(default_factory=dict)
    codes: list[Codes] = field(default_factory=list)
    summary: dict[str, Summary] = field(default_factory=dict)

    @property
    def next_slot(self) -> int:
        """Where the row behind the last one lies."""
        return int(self.ids[-1][-1]) - self.base + 1 if self.ids else 0

    @property
    def last(self) -> int:
        """Id of the part's last slot."""
        return self.base + self.tokens.slots - 1

    def expects(self, ids: Array) -> bool:
        """Return whether some rows are exactly those that come next; of a sample: may come next."""
        if self.attempt.group.masked:
            inside = self.next_slot <= ids[0] - self.base and ids[-1] <= self.last
            return bool(inside and (self.due is None or np.isin(ids, self.due).all()))
        if self.due is None:
            return bool(
                ids[0] == self.base + self.rows
                and ids[-1] - ids[0] == len(ids) - 1
                and ids[-1] <= self.last
            )
        return np.array_equal(ids, self.due[self.rows : self.rows + len(ids)])

    def spread(self, rows: Array, ids: Array) -> Array:
        """Return rows with zeros in the slots of those that were removed before them."""
        if self.due is None or self.attempt.group.masked:
            return rows
        slots = ids - self.base - self.next_slot
        out = np.zeros((int(slots[-1]) + 1, *rows.shape[1:]), rows.dtype)
        out[slots] = rows
        return out

    def complete(self) -> None:
        """Write what a part holds beside its dense columns, and fill those up, when its last row has come."""
        ids = np.concatenate(self.ids)
        group = self.attempt.group
        if self.due is not None and not group.masked:
            self._fill_up()
        if group.masked:
            data = tables.encode(tables.table({"row": ids}, tables.ROWS))
            self.attempt.put("rows.parquet", data, self.rows)
        if self.scalars:
            # Sorted as in group.json: whoever joins the group later must write the same order.
            columns = {name: np.concatenate(self.scalars[name]) for name in sorted(self.scalars)}
            data = tables.encode(tables.table({"row": ids, **columns}))
            self.attempt.put("scalars.parquet", data, self.rows)
        if any(column.kind == "codes" for column in group.columns.values()):
            self._put_codes()

    def _fill_up(self) -> None:
        """Put zeros into the slots of the rows that were removed behind the last one."""
        for column in self.attempt.group.columns.values():
            if column.kind == "dense":
                empty = np.zeros((self.tokens.slots - self.next_slot, *column.shape), column.stored)
                self.attempt.shard(column).append(empty)

    def _put_codes(self) -> None:
        row = np.concatenate([np.asarray(b.row, np.int64) for b in self.codes])
        latent = np.concatenate([np.asarray(b.latent, np.uint32) for b in self.codes])
        value = np.concatenate([np.asarray(b.value, np.float32) for b in self.codes])
        by_row = np.lexsort((latent, row))
        by_latent = np.lexsort((row, -value, latent))
        for path, order in {"codes.parquet": by_row, "by_latent.parquet": by_latent}.items():
            columns = {"row": row[order], "latent": latent[order], "value": value[order]}
            self.attempt.put(path, tables.encode(tables.table(columns, tables.CODES)), len(row))
