"""Rows of a store as torch batches: shuffled for training, in order for everything else.

Batch i is the same whatever batch one starts at and whatever attempts wrote the store, so a run resumes to the
same next batch and a store that was killed and completed trains the same dictionary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.errors import JobError
from store import Store, Windows
from store.layout import CHUNK_ROWS
from store.schema import canonical, sha256
from store.tokens import FLAG_SPECIAL, SPLITS
from store.view import View
from store.windows import default_window_rows

Condition = tuple[str, str, Any]
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


def tensor_of(values: np.ndarray[Any, np.dtype[Any]], dtype: str) -> Tensor:
    """Return raw rows ``[R, *shape]`` as a float32 tensor ``[R, D]``, shapes flattened."""
    flat = (
        torch.from_numpy(values.reshape(len(values), -1).view(np.int16))
        if dtype == "bfloat16"
        else None
    )
    if flat is not None:
        return flat.view(torch.bfloat16).float()
    return torch.from_numpy(np.ascontiguousarray(values.reshape(len(values), -1), np.float32))


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
        spec = self.store.column(self.column)
        if spec.kind != "dense":
            raise JobError(
                f"column {self.column!r} is {spec.kind}; training reads dense columns: "
                f"{', '.join(self.store.sites) or 'none here'}. Nothing was started.",
                kind="column-kind",
            )
        self._dtype = spec.dtype
        self.width = int(np.prod(spec.shape))
        if self.window_rows is None:
            held = self.store.view.coverage("tokens").rows
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
        )

    def batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (row ids int64[B], rows float32[B, D]) from batch ``start`` on, without an end."""
        epoch, offset = divmod(start * self.batch_rows, self.rows)
        ids, rows = np.empty(0, np.int64), np.empty(0)
        while True:
            for window in self._windows(epoch, offset):
                values = window.columns[self.column]
                ids = np.concatenate([ids, window.row_ids])
                rows = np.concatenate([rows, values]) if len(rows) else values
                whole = len(ids) // self.batch_rows * self.batch_rows
                for low in range(0, whole, self.batch_rows):
                    mine = slice(low, low + self.batch_rows)
                    yield torch.from_numpy(ids[mine]), tensor_of(rows[mine], self._dtype)
                ids, rows = ids[whole:], rows[whole:]
            epoch, offset = epoch + 1, 0

    def state(self) -> dict[str, Any]:
        """Return what decides the batches; equal for stores that are logically identical."""
        return {
            "column": self.column,
            "rows": rows_identity(self.store.view, self.column),
            "where": [list(condition) for condition in self.where],
            "seed": self.seed,
            "window_rows": self.window_rows,
            "batch_rows": self.batch_rows,
        }


def rows_identity(view: View, column: str) -> str:
    """Return the hash of (group, recipe, part, rows) of a column and of its tokens: attempts play no part."""
    group, spec = view.resolve(column)
    lines = [
        [name, view.group(name).recipe_hash, part, view.commit(name, part).rows]
        for name in ("tokens", group.name)
        for part in view.parts(name)
    ]
    return sha256(canonical([spec.name, lines]))


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
    extra
        Columns of the tokens table to carry along.
    parts
        Parts to read; default all the column covers.
    """
    from store import tables

    group, spec = store.view.resolve(column)
    assert block_rows % CHUNK_ROWS == 0
    for part in store.view.parts(group.name) if parts is None else parts:
        commit = store.view.commit(group.name, part)
        tokens = store.view.table(store.view.commit("tokens", part), "tokens.parquet")
        keep = tables.select(tokens, where)
        ids = tables.column(tokens, "row")
        held = store.view.kept(commit)
        if held is not None:
            at = held - part * store.part_stride
            keep, ids = keep[at], ids[at]
            tokens = tokens.take(at)
        values = {name: tables.column(tokens, name) for name in extra}
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
