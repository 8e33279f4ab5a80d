"""Rows of a store as torch batches: shuffled for training, in order for everything else.

Batch i is the same whatever batch one starts at and whatever attempts wrote the store, so a run resumes to the
same next batch and a store that was killed and completed trains the same dictionary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.errors import JobError
from store import Store, Windows, tables
from store.buffers import Pool
from store.conditions import Condition, select
from store.layout import CHUNK_ROWS
from store.records import canonical, sha256
from store.schema import Column, Group
from store.tokens import FLAG_SPECIAL, SPLITS
from store.view import View
from store.windows import default_window_rows, table_of, where_groups

Array = np.ndarray[Any, np.dtype[Any]]
BLOCK_ROWS = 4096


def usual_rows(split: str | None) -> tuple[Condition, ...]:
    """Return the filter of ordinary tokens: no special ones, of one split where one is named.

    Raises
    ------
    JobError
        ``unknown-split``.
    """
    ordinary: tuple[Condition, ...] = (("flags", "lacks", FLAG_SPECIAL),)
    if split is None:
        return ordinary
    if split not in SPLITS:
        raise JobError(
            f"there is no split {split!r}; known: {', '.join(SPLITS)}. Nothing was started.",
            kind="unknown-split",
        )
    return (("split", "==", SPLITS.index(split)), *ordinary)


def tensor_of(values: Array, dtype: str) -> Tensor:
    """Return raw rows ``[R, *shape]`` as a float32 tensor ``[R, D]`` of its own, shapes flattened."""
    flat = np.ascontiguousarray(values).reshape(len(values), math.prod(values.shape[1:]))
    if dtype == "bfloat16":
        return torch.from_numpy(flat.view(np.int16)).view(torch.bfloat16).float()
    return torch.from_numpy(flat.astype(np.float32))


def dense_column(store: Store, address: str) -> tuple[Group, Column]:
    """Return a dense column and its group.

    Raises
    ------
    JobError
        ``column-kind``: the column is not dense.
    """
    group, spec = store.view.resolve(address)
    if spec.kind != "dense":
        raise JobError(
            f"column {address!r} is {spec.kind}; this reads dense columns: "
            f"{', '.join(store.sites) or 'none here'}. Nothing was started. Choose one of them.",
            kind="column-kind",
        )
    return group, spec


@dataclass
class StoreFeed:
    """Shuffled batches of one dense column, epoch after epoch.

    Parameters
    ----------
    store, column
        Where the rows are.
    batch_rows
        Rows of a batch; batches run across the ends of windows and epochs.
    seed
        Of the order.
    where
        Filter; see ``Store.windows``.
    window_rows
        Rows in memory at once; None: see ``Store.windows``. It is part of the order.
    """

    store: Store
    column: str
    batch_rows: int
    seed: int = 0
    where: Sequence[Condition] = ()
    window_rows: int | None = None
    width: int = field(init=False)
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        _, spec = dense_column(self.store, self.column)
        if self.batch_rows <= 0:
            raise JobError(
                f"a batch of {self.batch_rows} rows was asked for; it takes at least one. Nothing was "
                "started. Mend --batch-rows.",
                kind="bad-number",
            )
        self._spec = spec
        self._pool = Pool()
        self.width = math.prod(spec.shape)
        if self.window_rows is None:
            held = np.array([commit.rows for commit in self.store.view.commits("tokens")])
            self.window_rows = default_window_rows(held, spec.row_bytes)
        self.rows = self._windows(0).rows
        if self.rows < self.batch_rows:
            raise JobError(
                f"{self.rows} rows of {self.column!r} meet the filter {list(self.where)}, fewer than one "
                f"batch of {self.batch_rows}. Nothing was started. Use more rows or a smaller batch.",
                kind="too-few-rows",
            )

    def _windows(self, epoch: int, start: int = 0) -> Windows:
        return self.store.windows(
            [self.column],
            seed=self.seed,
            epoch=epoch,
            window_rows=self.window_rows,
            where=self.where,
            start=start,
            raw=True,
            pool=self._pool,
        )

    def batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (row ids int64[B], rows float32[B, D]) from batch ``start`` on, without an end.

        The tensors are the caller's own. One window is held at a time, and less than a batch of the one before.
        """
        epoch, offset = divmod(start * self.batch_rows, self.rows)
        rest_ids = np.empty(0, np.int64)
        rest = np.empty((0, *self._spec.shape), self._spec.stored)
        while True:
            for window in self._windows(epoch, offset):
                ids, rows = window.row_ids, window.columns[self.column]
                del window
                low = -len(rest)
                while low + self.batch_rows <= len(ids):
                    mine = slice(max(low, 0), low + self.batch_rows)
                    yield self._batch([rest_ids, ids[mine]], [rest, rows[mine]])
                    rest_ids, rest = rest_ids[:0], rest[:0]
                    low += self.batch_rows
                rest_ids = np.concatenate([rest_ids, ids[max(low, 0) :]])
                rest = np.concatenate([rest, rows[max(low, 0) :]])
                del ids, rows
            epoch, offset = epoch + 1, 0

    def _batch(self, ids: list[Array], rows: list[Array]) -> tuple[Tensor, Tensor]:
        values = np.concatenate(rows) if len(rows[0]) else rows[1]
        return torch.from_numpy(np.concatenate(ids)), tensor_of(values, self._spec.dtype)

    def state(self) -> dict[str, Any]:
        """Return what decides the batches; equal for stores that are logically identical."""
        return {
            "column": self.column,
            "rows": rows_identity(self.store.view, self.column, self.where),
            "where": [list(condition) for condition in self.where],
            "seed": self.seed,
            "window_rows": self.window_rows,
            "batch_rows": self.batch_rows,
        }


def rows_identity(view: View, column: str, where: Sequence[Condition] = ()) -> str:
    """Return the hash of (group, recipe, part, rows) of a column, its tokens and what filters it.

    Attempts play no part. Of parts that lost documents, which rows are left does.
    """
    group, spec = view.resolve(column)
    names = ["tokens", group.name]
    names += [name for name in where_groups(view, where) if name not in names]
    lines = [
        [name, view.group(name).recipe_hash, part, view.commit(name, part).rows, *_left(view, part)]
        for name in names
        for part in view.parts(name)
    ]
    return sha256(canonical([spec.name, lines]))


def _left(view: View, part: int) -> list[str]:
    """Return the hash of the rows that removed documents left in a part; nothing where none was removed."""
    visible = view.visible(part)
    return [] if visible is None else [sha256(visible.tobytes())]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Consecutive rows of one part: ids ``int64[R]``, values ``float32[R, D]``, and tokens' columns."""

    row_ids: np.ndarray[Any, np.dtype[np.int64]]
    x: Tensor
    tokens: dict[str, np.ndarray[Any, np.dtype[Any]]]


def blocks(
    store: Store,
    column: str,
    *,
    where: Sequence[Condition] = (),
    extra: Sequence[str] = (),
    block_rows: int = BLOCK_ROWS,
    parts: Sequence[int] | None = None,
) -> Iterator[Block]:
    """Yield a dense column's rows in store order, filtered, at most ``block_rows`` at a time.

    Parameters
    ----------
    where
        Filter; see ``Store.windows``.
    extra
        Columns of the tokens table to carry along.
    parts
        Parts to read; default all the column covers.

    Raises
    ------
    JobError
        ``column-kind``: the column is not dense.
    """
    assert block_rows % CHUNK_ROWS == 0
    group, spec = dense_column(store, column)
    where_groups(store.view, where)
    for part in store.view.parts(group.name) if parts is None else parts:
        commit = store.view.commit(group.name, part)
        tokens = store.view.table(store.view.commit("tokens", part), "tokens.parquet")
        keep, ids = survivors(store.view, part, where), tables.column(tokens, "row")
        values = {name: tables.column(tokens, name) for name in extra}
        held = store.view.kept(commit)
        if group.masked and held is not None:
            at = np.searchsorted(ids, held)
            keep, ids = keep[at], ids[at]
            values = {name: v[at] for name, v in values.items()}
        buffer = np.empty((min(block_rows, commit.rows), *spec.shape), spec.stored)
        for low in range(0, commit.rows, block_rows):
            high = min(low + block_rows, commit.rows)
            mine = keep[low:high]
            if mine.any():
                raw = buffer[: high - low]
                store.view.shard(commit, spec).read(low, high, raw)
                yield Block(
                    row_ids=ids[low:high][mine],
                    x=tensor_of(raw[mine], spec.dtype),
                    tokens={name: v[low:high][mine] for name, v in values.items()},
                )


def survivors(view: View, part: int, where: Sequence[Condition]) -> Array:
    """Return which rows of a part meet a filter, ``bool[rows]``; none where a filter's column has no part."""
    keep = np.ones(view.commit("tokens", part).rows, bool)
    for name, operator, value in where:
        group, path = table_of(view, name)
        if part not in view.parts(group):
            return np.zeros_like(keep)
        data = view.table(view.commit(group, part), path)
        keep &= select(data, [(name.rpartition(":")[2], operator, value)])
    return keep
