"""Heads taken out: what a head adds to the residual stream is replaced before W_O, head by head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.errors import JobError
from jobs.interventions.contract import Intervention, operation
from jobs.interventions.runner import Runner, site_means

if TYPE_CHECKING:
    from torch import Tensor

    from ingest.models import LoadedModel
    from ingest.models.metrics import Examples, Metric

Head = tuple[int, int]
"""Layer and head, both from 0."""


def head_ablations(
    heads: Sequence[Head], op: str = "zero", means: Mapping[str, Tensor] | None = None
) -> list[Intervention]:
    """Return the interventions that take heads out, one per layer.

    Parameters
    ----------
    heads
        Which, in any order.
    op
        ``zero``, or ``mean`` with ``means`` of every ``blocks.{l}.attn.z`` concerned (`site_means`).
    """
    if op not in ("zero", "mean") or (op == "mean" and means is None):
        raise JobError(
            f"ablation by {op!r}{' without means' if op == 'mean' else ''} was asked for; heads are "
            "ablated by zero, or by mean given the means. Nothing was run.",
            kind="bad-intervention",
        )
    by_layer: dict[int, list[int]] = {}
    for layer, head in sorted(set(heads)):
        by_layer.setdefault(layer, []).append(head)
    sites = {f"blocks.{layer}.attn.z": tuple(found) for layer, found in by_layer.items()}
    return [
        Intervention(
            site=site,
            op=operation(op),
            heads=found,
            values=means[site] if op == "mean" and means is not None else None,
        )
        for site, found in sites.items()
    ]


def ablate_heads(
    model: LoadedModel,
    batches: Sequence[Examples],
    heads: Sequence[Head],
    metrics: Sequence[Metric],
    *,
    op: str = "zero",
) -> dict[str, Any]:
    """Return the table (example, metric, base, intervened) of a run without some heads.

    ``op="mean"`` puts each head's mean over these examples in its place.
    """
    runner = Runner(model, batches, metrics)
    sites = sorted({f"blocks.{layer}.attn.z" for layer, _ in heads})
    means = site_means(model, batches, sites) if op == "mean" else None
    return runner.run(head_ablations(heads, op, means))
