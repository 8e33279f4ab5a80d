"""Rows of a store as torch batches: shuffled for training, in order for everything else.

Batch i is the same whatever batch one starts at and whatever attempts wrote the store, so a run resumes to the
same next batch and a store that was killed and completed trains the same dictionary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.batches import Batch, Widths
from jobs.errors import JobError
from store import Store, Windows
from store.buffers import Pool
from store.conditions import Condition
from store.records import canonical, sha256
from store.schema import Column, Group
from store.tokens import FLAG_SPECIAL, SPLITS
from store.view import View
from store.windows import default_window_rows, where_groups

Array = np.ndarray[Any, np.dtype[Any]]


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
    """Shuffled batches of dense columns, epoch after epoch.

    Parameters
    ----------
    store, columns
        Where the rows are: one column, or several whose rows lie side by side.
    batch_rows
        Rows of a batch, over all ranks; batches run across the ends of windows and epochs.
    seed
        Of the order.
    where
        Filter; see ``Store.windows``.
    window_rows
        Rows in memory at once; None: see ``Store.windows``. It is part of the order.
    targets
        Columns to rebuild; none: those that are read.
    gradient
        Column of gradients by the rows that are read.
    rank, world
        Rank r of w gets every w-th row of each batch, from the r-th on; ``batch_rows`` is a multiple of w.
    """

    store: Store
    columns: str | Sequence[str]
    batch_rows: int
    seed: int = 0
    where: Sequence[Condition] = ()
    window_rows: int | None = None
    targets: Sequence[str] = ()
    gradient: str | None = None
    rank: int = 0
    world: int = 1
    widths: Widths = field(init=False)
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.columns = (self.columns,) if isinstance(self.columns, str) else tuple(self.columns)
        self.targets = tuple(self.targets)
        self._specs = {name: dense_column(self.store, name)[1] for name in self.names}
        if self.batch_rows <= 0 or self.batch_rows % self.world:
            raise JobError(
                f"a batch of {self.batch_rows} rows was asked for; it takes at least one for each of {self.world} "
                "ranks, and as many for each. Nothing was started. Mend --batch-rows.",
                kind="bad-number",
            )
        wide = {name: math.prod(spec.shape) for name, spec in self._specs.items()}
        self.widths = Widths(
            tuple(wide[name] for name in self.columns),
            tuple(wide[name] for name in self.targets or self.columns),
        )
        if self.gradient is not None and wide[self.gradient] != self.widths.width:
            raise JobError(
                f"gradients {self.gradient!r} have width {wide[self.gradient]}, the rows {', '.join(self.columns)} have "
                f"{self.widths.width}. Nothing was started. Name the gradients of the same site.",
                kind="width-mismatch",
            )
        self._pool = Pool()
        if self.window_rows is None:
            held = np.array([commit.rows for commit in self.store.view.commits("tokens")])
            row_bytes = sum(spec.row_bytes for spec in self._specs.values())
            self.window_rows = default_window_rows(held, row_bytes)
        self.rows = self._windows(0).rows
        if self.rows < self.batch_rows:
            raise JobError(
                f"{self.rows} rows of {', '.join(map(repr, self.names))} meet the filter {list(self.where)}, fewer than one "
                f"batch of {self.batch_rows}. Nothing was started. Use more rows or a smaller batch.",
                kind="too-few-rows",
            )

    @property
    def names(self) -> list[str]:
        """Every column that is read from the store, each once."""
        more = [] if self.gradient is None else [self.gradient]
        return list(dict.fromkeys([*self.columns, *self.targets, *more]))

    def _windows(self, epoch: int, start: int = 0, names: Sequence[str] = ()) -> Windows:
        before = (
            epoch * self.rows if epoch else 0
        )  # rows of earlier epochs, which shift whose turn it is
        return self.store.windows(
            names or self.names,
            seed=self.seed,
            epoch=epoch,
            window_rows=self.window_rows,
            where=self.where,
            start=start,
            rank=(self.rank - before) % self.world,
            world=self.world,
            raw=True,
            pool=self._pool,
        )

    def batches(self, start: int) -> Iterator[Batch]:
        """Yield batches from batch ``start`` on, without an end.

        The tensors are the caller's own. One window is held at a time, and less than a batch of the one before.
        """
        for (batch,) in read_once([self], start):
            yield batch

    def for_rank(self, rank: int, world: int) -> StoreFeed:
        """Return the feed of one of several ranks: every ``world``-th row of each batch, from the ``rank``-th on."""
        return self if world == 1 else dataclasses.replace(self, rank=rank, world=world)

    def batch_of(self, ids: Array, rows: Mapping[str, Tensor]) -> Batch:
        """Return a batch made of columns that were read."""

        def side_by_side(names: Sequence[str]) -> Tensor:
            return rows[names[0]] if len(names) == 1 else torch.cat([rows[n] for n in names], dim=1)

        return Batch(
            torch.from_numpy(ids),
            side_by_side(self.columns),
            side_by_side(self.targets) if self.targets else None,
            None if self.gradient is None else rows[self.gradient],
        )

    def state(self) -> dict[str, Any]:
        """Return what decides the batches; equal for stores that are logically identical."""
        one = len(self.names) == 1
        identities = {name: rows_identity(self.store.view, name, self.where) for name in self.names}
        return {
            "column": self.columns[0] if one else list(self.columns),
            **({} if one else {"targets": list(self.targets), "gradient": self.gradient}),
            "rows": identities[self.columns[0]] if one else identities,
            "where": [list(condition) for condition in self.where],
            "seed": self.seed,
            "window_rows": self.window_rows,
            "batch_rows": self.batch_rows,
        }


def read_once(feeds: Sequence[StoreFeed], start: int) -> Iterator[tuple[Batch, ...]]:
    """Yield the batches of several feeds from batch ``start`` on, every column read once.

    Each feed's batches are those it would give alone.

    Raises
    ------
    JobError
        ``feeds-differ``: they are not of the same rows in the same order.
    """
    first = feeds[0]
    names = list(dict.fromkeys(name for feed in feeds for name in feed.names))
    for feed in feeds[1:]:
        _same_order(first, feed)
    share = first.batch_rows // first.world
    epoch, offset = divmod(start * first.batch_rows, first.rows)
    specs = {name: spec for feed in feeds for name, spec in feed._specs.items()}
    rest_ids = np.empty(0, np.int64)
    rest = {name: np.empty((0, *specs[name].shape), specs[name].stored) for name in names}

    def cut(ids: Array, rows: Mapping[str, Array], low: int) -> tuple[Batch, ...]:
        mine = slice(max(low, 0), low + share)
        whole = {
            name: np.concatenate([rest[name], rows[name][mine]])
            if len(rest_ids)
            else rows[name][mine]
            for name in names
        }
        tensors = {name: tensor_of(whole[name], specs[name].dtype) for name in names}
        taken = np.concatenate([rest_ids, ids[mine]])
        return tuple(feed.batch_of(taken, tensors) for feed in feeds)

    while True:
        for window in first._windows(epoch, offset, names):
            ids, rows = window.row_ids, window.columns
            del window
            low = -len(rest_ids)
            while low + share <= len(ids):
                yield cut(ids, rows, low)
                rest_ids, rest = rest_ids[:0], {name: rest[name][:0] for name in names}
                low += share
            left = slice(max(low, 0), None)
            rest_ids = np.concatenate([rest_ids, ids[left]])
            rest = {name: np.concatenate([rest[name], rows[name][left]]) for name in names}
            del ids, rows
        epoch, offset = epoch + 1, 0


def _same_order(one: StoreFeed, other: StoreFeed) -> None:
    """Refuse feeds whose batches would not be of the same rows."""
    names = ("batch_rows", "seed", "where", "window_rows", "rank", "world", "rows")
    mine, theirs = (
        {name: getattr(feed, name) for name in names} | {"parts": _parts(feed)}
        for feed in (one, other)
    )
    differ = [name for name in mine if mine[name] != theirs[name]]
    if one.store.id != other.store.id or differ:
        told = "; ".join(
            f"{name}: {mine[name]} and {theirs[name]}" for name in differ if name != "parts"
        )
        raise JobError(
            f"{', '.join(one.names)} and {', '.join(other.names)} were to be read at once, but they are not of the same "
            f"rows in the same order ({told or 'they cover other parts, or lie in other stores'}). Nothing was "
            "started. Train them apart, or complete the group that has fewer rows.",
            kind="feeds-differ",
        )


def _parts(feed: StoreFeed) -> list[int]:
    return [int(part) for part in feed._windows(0).order.parts]


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
