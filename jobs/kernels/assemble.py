"""Selectors and forcers: scores and a budget become a `BlockPlan`.

A tile planner is a scorer plus one call of `tile_plan`; a planner that routes single queries is one
plus `token_plan`. Forced tiles lie inside the budget; where they are more than it allows, they are
kept all the same and the density says so.

Dimensions: B batch, P plan heads, T queries, I query tiles, J key tiles, C listed tiles, W bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from jobs.errors import RefusedError
from jobs.kernels.contract import QKV, Budget, Tiles
from jobs.kernels.geometry import Layout, layout
from jobs.kernels.plan import BlockPlan
from jobs.kernels.shapes import unflatten


def own_tiles(qkv: QKV, tiles: Tiles) -> Tensor:
    """Return ``bool[I, J]``: the key tiles at a query tile's own positions; the diagonal."""
    found = layout(qkv.geometry, tiles.bq, tiles.bk)
    low_I = qkv.query_start + torch.arange(len(found.rows)) * tiles.bq
    low_J = torch.arange(found.visible.shape[1]) * tiles.bk
    meets = (low_J < (low_I + found.rows)[:, None]) & (low_J + tiles.bk > low_I[:, None])
    return meets & found.visible


def sink_tiles(qkv: QKV, tiles: Tiles, sink: int) -> Tensor:
    """Return ``bool[I, J]``: the visible key tiles that hold one of the first ``sink`` keys."""
    visible = layout(qkv.geometry, tiles.bq, tiles.bk).visible
    return visible & (torch.arange(visible.shape[1]) * tiles.bk < sink)


def top(scores: Tensor, counts: Tensor) -> Tensor:
    """Return which scores of each row are among its largest ``counts``; the first of equal ones.

    Parameters
    ----------
    scores
        ``[…, J]``; ``-inf`` is never taken.
    counts
        int64, broadcast against ``scores[…, 0]``.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(scores.shape[-1]).expand_as(order)
    )
    return (rank < counts[..., None]) & (scores > -torch.inf)


def tile_plan(
    qkv: QKV,
    tiles: Tiles,
    budget: Budget,
    scores_BPIJ: Tensor,
    *,
    forced_IJ: Tensor | None = None,
    stats: Mapping[str, Any],
) -> BlockPlan:
    """Return the plan that keeps each query tile's best key tiles.

    Parameters
    ----------
    scores_BPIJ
        Worth of a tile, finite.
    forced_IJ
        Kept whatever their scores.
    stats
        Planner, parameters, ``plan_flops``.

    Raises
    ------
    RefusedError
        ``empty-row``.
    """
    found = layout(qkv.geometry, tiles.bq, tiles.bk)
    forced = torch.zeros_like(found.visible) if forced_IJ is None else forced_IJ
    counts_I = torch.maximum(budget.counts(found.visible.sum(1)), forced.sum(1))
    worth = scores_BPIJ.masked_fill(forced, torch.inf).masked_fill(~found.visible, -torch.inf)
    kept = top(worth, counts_I)
    _refuse_empty(qkv, tiles, found, kept, stats)
    return plan_of(qkv, tiles, kept, forced_IJ=forced, stats=stats)


def token_plan(
    qkv: QKV,
    tiles: Tiles,
    budget: Budget,
    scores_BPTJ: Tensor,
    *,
    stats: Mapping[str, Any],
) -> BlockPlan:
    """Return the plan that keeps each query's own key tile and its best others.

    A query's own tile is counted inside its budget. The listed tiles of a query tile are the union over
    its queries, with a bit for each that is routed there.

    Raises
    ------
    RefusedError
        ``empty-row``.
    """
    found = layout(qkv.geometry, tiles.bq, tiles.bk)
    position_T = qkv.query_start + torch.arange(qkv.geometry.queries)
    tile_J = torch.arange(found.visible.shape[1])
    own_TJ = tile_J == (position_T // tiles.bk)[:, None]
    seen_TJ = found.seen > 0
    worth = scores_BPTJ.masked_fill(own_TJ, torch.inf).masked_fill(~seen_TJ, -torch.inf)
    routed_BPTJ = top(worth, budget.counts(seen_TJ.sum(1)))
    rows = torch.nn.functional.pad(routed_BPTJ, (0, 0, 0, -routed_BPTJ.shape[2] % tiles.bq))
    routed_BPIrJ = unflatten(rows, 2, (-1, tiles.bq))
    kept = routed_BPIrJ.any(3)
    _refuse_empty(qkv, tiles, found, kept, stats)
    own = own_tiles(qkv, tiles)
    return plan_of(qkv, tiles, kept, forced_IJ=own, routed_BPIrJ=routed_BPIrJ, stats=stats)


def _refuse_empty(
    qkv: QKV, tiles: Tiles, found: Layout, kept: Tensor, stats: Mapping[str, Any]
) -> None:
    covered_BPI = (kept & found.covering).any(-1) | ~found.visible.any(-1)
    if bool(covered_BPI.all()):
        return
    seen_TJ = found.seen > 0
    tile_T = torch.arange(len(seen_TJ)) // tiles.bq
    empty = seen_TJ.any(-1) & ~(kept[:, :, tile_T] & seen_TJ).any(-1)
    if not bool(empty.any()):
        return
    batch, head, row = (int(x) for x in empty.nonzero()[0])
    raise RefusedError(
        f"planner {stats.get('planner')!r} left {int(empty.sum())} of {empty.numel()} query rows without any key, the "
        f"first at query {row} of plan head {head}, batch {batch} (tiles of {tiles.bq} queries and {tiles.bk} keys"
        f"{'' if qkv.window is None else f', window {qkv.window}'}). Nothing was computed. Keep more, use tiles of equal "
        "sides, or force the row's own tile.",
        kind="empty-row",
    )


def plan_of(
    qkv: QKV,
    tiles: Tiles,
    kept_BPIJ: Tensor,
    *,
    forced_IJ: Tensor | None = None,
    routed_BPIrJ: Tensor | None = None,
    stats: Mapping[str, Any],
) -> BlockPlan:
    """Return the plan that lists some tiles, as they are: rows may be empty.

    Parameters
    ----------
    kept_BPIJ
        Tiles to list; invisible ones are left out.
    forced_IJ
        Which of them were forced.
    routed_BPIrJ
        Tiles that each query of a tile attends to, where not all of them attend to all.
    """
    found = layout(qkv.geometry, tiles.bq, tiles.bk)
    kept_BPIJ = kept_BPIJ & found.visible
    forced = torch.zeros_like(found.visible) if forced_IJ is None else forced_IJ
    full = kept_BPIJ & found.full
    if routed_BPIrJ is not None:
        full &= routed_BPIrJ.all(3)
    partial = kept_BPIJ & ~full
    kv_num, kv_idx, kv_forced = _lists(partial, forced)
    full_num, full_idx, full_forced = _lists(full, forced)
    return BlockPlan(
        geometry=qkv.geometry,
        bq=tiles.bq,
        bk=tiles.bk,
        heads=qkv.heads,
        kv_num=kv_num,
        kv_idx=kv_idx,
        full_num=full_num,
        full_idx=full_idx,
        kv_forced=kv_forced,
        full_forced=full_forced,
        token_bits=None if routed_BPIrJ is None else _bits(routed_BPIrJ, kv_idx),
        stats=stats,
    )


def _lists(kept_BPIJ: Tensor, forced_IJ: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the number, the ascending indices and the forced flags of kept tiles."""
    num = kept_BPIJ.sum(-1)
    cap = max(1, int(num.max())) if num.numel() else 1
    order = (~kept_BPIJ).to(torch.int8).argsort(dim=-1, stable=True)[..., :cap]
    held = torch.arange(order.shape[-1]) < num[..., None]
    idx = torch.where(held, order, 0)
    forced = forced_IJ.expand_as(kept_BPIJ).gather(-1, idx) & held
    return num.int(), idx.int().contiguous(), forced


def _bits(routed_BPIrJ: Tensor, kv_idx: Tensor) -> Tensor:
    """Return the row masks of listed tiles, ``uint8[B, P, I, C, W]``."""
    rows = routed_BPIrJ.shape[3]
    at = kv_idx.long()[:, :, :, None].expand(-1, -1, -1, rows, -1)
    bits_BPICr = routed_BPIrJ.gather(-1, at).transpose(3, 4)
    padded = unflatten(torch.nn.functional.pad(bits_BPICr, (0, -rows % 8)), -1, (-1, 8))
    words = padded.to(torch.uint8) << torch.arange(8, dtype=torch.uint8)
    return words.sum(-1, dtype=torch.uint8)
