"""What a plan misses, head by head, against dense attention on the same tensors.

Dimensions: B batch, H query heads, P plan heads, T queries, S keys, I query tiles, J key tiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.kernels.assemble import own_tiles, top
from jobs.kernels.contract import QKV, Tiles
from jobs.kernels.plan import BlockPlan
from jobs.kernels.scores import ROWS, block_mass, dense, weights
from jobs.kernels.shapes import unflatten

SINK = 4
"""First tokens whose mass is told (specification of kernels, 1.1)."""

KEPT_FLOATS = 1 << 24
"""Weights of one problem that are kept in memory: 64 MiB in float32."""

METRICS = (
    "out_rel_err",
    "out_cos",
    "mass_recall",
    "mass_recall_p05",
    "block_recall",
    "regret",
    "lse_err",
    "head_kl",
)
"""Names of what `fidelity` returns, each ``[H]``."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Exact:
    """Dense attention of one problem, and what it shows without any plan."""

    o: Tensor
    """``[B, H, T, d]``"""
    lse: Tensor
    """``[B, H, T]``"""
    weights: Tensor | None
    """``[B, H, T, S]`` where that is small enough to keep: every plan is held against it."""
    mass: Tensor
    """``[B, H, I, J]``: exact mass of tiles, a mean over the tile's queries."""
    sink_mass: Tensor
    """``[H]``: mass on the first four tokens; trivially free recall."""
    own_mass: Tensor
    """``[H]``: mass on the query tile's own key tiles; likewise."""


def exact(qkv: QKV, tiles: Tiles) -> Exact:
    """Return dense attention of a problem and its masses."""
    o, lse = dense(qkv)
    mass = block_mass(qkv, Tiles(bq=tiles.bq, bk=tiles.bk))
    small = lse.numel() * qkv.k.shape[2] <= KEPT_FLOATS
    kept = weights(qkv, 0, qkv.q.shape[2]) if small else None
    sink = torch.zeros(qkv.q.shape[:2])
    for low in range(0, qkv.q.shape[2], ROWS):
        sink += _weights(qkv, kept, low)[..., :SINK].sum((2, 3))
    rows = _row_share(qkv, tiles)
    own = (mass * own_tiles(qkv, tiles)).sum(-1) @ rows
    return Exact(
        o=o,
        lse=lse,
        weights=kept,
        mass=mass,
        sink_mass=(sink / qkv.q.shape[2]).mean(0),
        own_mass=own.mean(0),
    )


def _row_share(qkv: QKV, tiles: Tiles) -> Tensor:
    """Return the share of the queries that lie in each query tile, ``[I]``."""
    queries = qkv.q.shape[2]
    count = torch.full((-(-queries // tiles.bq),), float(tiles.bq))
    count[-1] = queries - (len(count) - 1) * tiles.bq
    return count / queries


def fidelity(
    qkv: QKV, plan: BlockPlan, run: tuple[Tensor, Tensor], truth: Exact
) -> dict[str, Tensor]:
    """Return the metrics of one run, ``[H]`` each, means over the batch.

    Parameters
    ----------
    run
        Output and log-sum-exp of an executor on this plan.

    Notes
    -----
    ``out_rel_err`` ``‖Ô − O‖ / ‖O‖``; ``out_cos`` mean cosine of output rows; ``mass_recall`` mean over rows
    of the exact mass the plan keeps, from the plan's mask and not from the run; ``mass_recall_p05`` its
    5th percentile; ``block_recall`` share of the best tiles by exact mass that were chosen, forced ones in
    neither set, NaN where nothing was chosen freely; ``regret`` mass recall of the best tiles at the plan's
    own count in every row, less that of the plan; ``lse_err`` mean ``|L̂ − L|``; ``head_kl`` mean
    ``KL(P̂ ‖ P)``, which for a mask is ``L − L̂``.

    ``self_check`` is the largest ``|exp(L̂ − L) − recall|`` of any row: the run and the plan's mask must
    agree, because masking and renormalising makes ``KL = −ln recall`` exactly. In units of the float32
    steps of L where ``|L|`` is above 64.
    """
    o, lse = run
    recall_BHT = row_recall(qkv, plan, truth.weights)
    gap = (truth.lse - lse).float()
    best = envelope(plan, plan_mass(plan, truth))
    mean = recall_BHT.mean(2)
    pooled = unflatten(mean, 1, (plan.plan_heads, -1)).mean(2)
    found = {
        "out_rel_err": (o - truth.o).norm(dim=(2, 3)) / truth.o.norm(dim=(2, 3)),
        "out_cos": torch.nn.functional.cosine_similarity(o, truth.o, dim=3).mean(2),
        "mass_recall": mean,
        "mass_recall_p05": recall_BHT.quantile(0.05, dim=2),
        "block_recall": _per_head(block_recall(plan, truth), qkv),
        "regret": _per_head(best - pooled, qkv),
        "lse_err": gap.abs().mean(2),
        "head_kl": gap.mean(2),
        "self_check": ((torch.exp(-gap) - recall_BHT).abs() / _steps(truth.lse)).amax(2),
    }
    return {name: value.mean(0) for name, value in found.items()}


def _steps(lse: Tensor) -> Tensor:
    """Return how coarse float32 is at a log-sum-exp, against 64."""
    return (lse.abs().nan_to_num(0.0, 0.0, 0.0) / 64).clamp(min=1.0)


def row_recall(qkv: QKV, plan: BlockPlan, weights_BHTS: Tensor | None = None) -> Tensor:
    """Return the exact mass each query keeps, ``[B, H, T]``; weights are made anew where not given.

    A share of the row's own sum, so a plan that keeps all of it has 1 to the bit; NaN where a query sees
    nothing.
    """
    parts = []
    for low in range(0, qkv.q.shape[2], ROWS):
        mask = plan.to_mask(slice(low, low + ROWS))
        mass = _weights(qkv, weights_BHTS, low)
        kept = (mass * mask.repeat_interleave(qkv.heads // mask.shape[1], 1)).sum(-1)
        parts.append(kept / mass.sum(-1))
    return torch.cat(parts, 2)


def _weights(qkv: QKV, kept: Tensor | None, low: int) -> Tensor:
    """Return the exact weights of a block of queries, ``[B, H, t, S]``."""
    return weights(qkv, low, low + ROWS) if kept is None else kept[:, :, low : low + ROWS]


def plan_mass(plan: BlockPlan, truth: Exact) -> Tensor:
    """Return exact tile mass as a plan's heads see it, ``[B, P, I, J]``."""
    return unflatten(truth.mass, 1, (plan.plan_heads, -1)).mean(2)


def envelope(plan: BlockPlan, mass_BPIJ: Tensor) -> Tensor:
    """Return the mass recall of the best tiles at the plan's counts, ``[B, P]``: no tile mask beats it."""
    visible = plan.layout.visible
    best = top(mass_BPIJ.masked_fill(~visible, -torch.inf), plan.listed().sum(-1))
    rows = plan.layout.rows / plan.geometry.queries
    return (mass_BPIJ * best).sum(-1) @ rows.to(mass_BPIJ.dtype)


def block_recall(plan: BlockPlan, truth: Exact) -> Tensor:
    """Return the share of the best freely chosen tiles that the plan chose, ``[B, P]``."""
    forced, visible = plan.forced(), plan.layout.visible
    chosen = plan.listed() & ~forced
    mass = plan_mass(plan, truth).masked_fill(forced | ~visible, -torch.inf)
    best = top(mass, chosen.sum(-1))
    hits, wanted = (chosen & best).sum((2, 3)), best.sum((2, 3))
    return torch.where(wanted > 0, hits / wanted.clamp(min=1), torch.nan)


def _per_head(values_BP: Tensor, qkv: QKV) -> Tensor:
    return values_BP.repeat_interleave(qkv.heads // values_BP.shape[1], 1)


def over_heads(found: Mapping[str, Tensor]) -> dict[str, float]:
    """Return metrics over heads: the median, 95th percentile and largest error, means of the rest."""
    error = found["out_rel_err"].double().numpy()
    summary = {
        "out_rel_err": float(np.median(error)),
        "out_rel_err_p95": float(np.quantile(error, 0.95)),
        "out_rel_err_max": float(error.max()),
    }
    rest = {n: _mean(found[n].double().numpy()) for n in found if n not in summary}
    rest["self_check"] = float(found["self_check"].max())
    return {**summary, **rest}


def _mean(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Return the mean of what is a number; NaN where nothing is."""
    held = values[~np.isnan(values)]
    return float(held.mean()) if len(held) else float("nan")
