"""Several sequences side by side in one lane of a batch, none seeing another.

What a model is given beside the ids: positions that begin anew with each sequence, and a mask that is one only between tokens of
one sequence. The mask is made here, from what each block's `AttentionSpec` says it sees, so that it does not depend on how a
version of transformers takes positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ingest.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ingest.models.contract import AttentionSpec, ModelAdapter

FULL, NEAR = "full_attention", "sliding_attention"
"""What transformers calls the two masks of a model whose blocks see differently far."""


def check_lanes(adapter: ModelAdapter, implementation: str) -> None:
    """Raise ``lanes-unsupported`` where sequences side by side would see one another."""
    if adapter.attends and implementation in {"sdpa", "eager"}:
        return
    found = (
        f"computes attention by {implementation!r}, which takes no such mask; use --attn-implementation sdpa"
        if adapter.attends
        else "mixes positions by other means than attention, which no mask stops"
    )
    raise ModelError(
        f"sequences were to share lanes, and the {adapter.family} model {found}. Nothing was run. Leave out --lanes.",
        kind="lanes-unsupported",
    )


def lane_arguments(
    specs: Sequence[AttentionSpec],
    implementation: str,
    positions_BT: Tensor,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Return the ``attention_mask`` and ``position_ids`` of lanes.

    Parameters
    ----------
    specs
        Of all blocks.
    positions_BT
        int64; 0 where a sequence begins, and at padding, each of which is a sequence of its own.
    dtype
        Of the model, in which eager attention adds its mask.
    """
    windows = {spec.window for spec in specs}
    masks = {window: _mask(specs[0], window, positions_BT) for window in windows}
    if implementation == "eager":
        masks = {window: _added(mask, dtype) for window, mask in masks.items()}
    if len(masks) == 1:
        return {"attention_mask": next(iter(masks.values())), "position_ids": positions_BT}
    (near,) = windows - {None}
    return {
        "attention_mask": {FULL: masks[None], NEAR: masks[near]},
        "position_ids": positions_BT,
    }


def _mask(spec: AttentionSpec, window: int | None, positions_BT: Tensor) -> Tensor:
    """Return whether each position sees each, ``bool[B, 1, T, T]``."""
    sequence_BT = (positions_BT == 0).cumsum(1)
    sees_BTS = sequence_BT[:, :, None] == sequence_BT[:, None, :]
    at = torch.arange(positions_BT.shape[1], device=positions_BT.device)
    back_TS = at[:, None] - at[None, :]
    if spec.causal:
        sees_BTS &= back_TS >= 0
    if window is not None:
        sees_BTS &= back_TS.abs() < window
    return sees_BTS[:, None]


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what eager attention adds to scores: 0 where something is seen."""
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill_(~mask, torch.finfo(dtype).min)
