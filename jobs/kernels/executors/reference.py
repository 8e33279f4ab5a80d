"""``reference``: a dense mask, and every score; slow and obviously right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from jobs.errors import UsageError
from jobs.kernels.contract import EXECUTORS, QKV
from jobs.kernels.plan import BlockPlan

ROWS = 256
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@EXECUTORS.register("reference")
@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """Computes every score, hides what the plan does not keep, and takes the softmax of the rest.

    ``o_i = Σ_{j kept} exp(s_ij − L_i) v_j``, ``L_i = ln Σ_{j kept} exp(s_ij)``. Keys that no query of a
    block keeps are never read, NaN or not.
    """

    kind: ClassVar[str]
    precision: str = "float32"
    """Dtype of everything: float32 or float64."""

    def __post_init__(self) -> None:
        if self.precision not in DTYPES:
            raise UsageError(
                f"the reference computes in {' or '.join(DTYPES)}; {self.precision!r} was asked. Nothing was started."
            )

    def run(self, qkv: QKV, plan: BlockPlan) -> tuple[Tensor, Tensor]:
        """Return output ``[B, H, T, d]`` and log-sum-exp ``[B, H, T]``."""
        plan.check_for(qkv.geometry, qkv.heads, qkv.groups)
        dtype, share = DTYPES[self.precision], qkv.heads // qkv.groups
        q = qkv.q.to(dtype)
        k = qkv.k.to(dtype).repeat_interleave(share, 1)
        v = qkv.v.to(dtype).repeat_interleave(share, 1)
        parts = [
            _rows(q[:, :, low : low + ROWS], k, v, qkv, plan, low)
            for low in range(0, q.shape[2], ROWS)
        ]
        return torch.cat([o for o, _ in parts], 2), torch.cat([lse for _, lse in parts], 2)


def _rows(
    q: Tensor, k: Tensor, v: Tensor, qkv: QKV, plan: BlockPlan, low: int
) -> tuple[Tensor, Tensor]:
    kept = plan.to_mask(slice(low, low + q.shape[2]))
    kept = kept.repeat_interleave(qkv.heads // plan.plan_heads, 1)
    scores = q @ k.transpose(2, 3) * qkv.scale
    if qkv.softcap is not None:
        scores = qkv.softcap * torch.tanh(scores / qkv.softcap)
    scores = scores.masked_fill(~kept, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - torch.where(lse == -torch.inf, 0.0, lse)[..., None])
    read = kept.any(2)[..., None]
    return weights @ v.masked_fill(~read, 0.0), lse
