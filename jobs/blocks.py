"""Rows of a store in its order, filtered, a block at a time: for everything that does not train."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.errors import JobError
from jobs.feed import dense_column, tensor_of
from store import Store, tables
from store.conditions import Condition, select
from store.layout import CHUNK_ROWS
from store.view import View
from store.windows import table_of, where_groups

Array = np.ndarray[Any, np.dtype[Any]]
BLOCK_ROWS = 4096


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


def side_by_side(
    store: Store, columns: Sequence[str], targets: Sequence[str] = (), **options: Any
) -> Iterator[tuple[Block, Tensor | None]]:
    """Yield ``blocks`` of several columns' rows side by side, ``float32[R, D]``, and of targets, ``float32[R, E]``.

    Raises
    ------
    JobError
        ``rows-differ``: the columns do not hold the same rows.
    """
    names = [*columns, *targets]
    for several in zip(*(blocks(store, name, **options) for name in names), strict=True):
        ids = several[0].row_ids
        if any(not np.array_equal(one.row_ids, ids) for one in several):
            raise JobError(
                f"{', '.join(names)} were to be read side by side, but they do not hold the same rows. Nothing was written. "
                "Complete the group that has fewer, or name columns of one group.",
                kind="rows-differ",
            )
        read = torch.cat([one.x for one in several[: len(columns)]], dim=1)
        rebuilt = [one.x for one in several[len(columns) :]]
        yield (
            dataclasses.replace(several[0], x=read),
            torch.cat(rebuilt, dim=1) if rebuilt else None,
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
