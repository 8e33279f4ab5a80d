"""What a run of an executor may differ by from the reference; nothing that differs by more is measured or timed."""

from __future__ import annotations

import torch
from torch import Tensor

from jobs.kernels.contract import QKV
from jobs.kernels.executors.reference import Reference
from jobs.kernels.plan import BlockPlan

TOLERANCE = {"float64": (1e-10, 1e-10), "float32": (1e-5, 1e-5), "bfloat16": (1e-2, 1e-3)}
"""Relative error of the output and largest error of the log-sum-exp, by precision (specification of kernels, 1.3)."""


def truth(qkv: QKV, plan: BlockPlan, precision: str) -> tuple[Tensor, Tensor]:
    """Return what a run is held against: the reference, in float64 for a run that is in float64 itself."""
    return Reference(precision="float64" if precision == "float64" else "float32").run(qkv, plan)


def wrong(ours: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], precision: str) -> str:
    """Return what is wrong with a run (output, log-sum-exp), empty where nothing is."""
    allowed_o, allowed_lse = TOLERANCE[precision]
    error = float((ours[0] - held[0]).norm() / held[0].norm())
    seen = held[1] > -torch.inf
    gap = float((ours[1] - held[1])[seen].abs().max()) if bool(seen.any()) else 0.0
    # Written so that NaN is wrong. A log-sum-exp of size 50 has float32 steps of 4e-6.
    scale = max(1.0, float(held[1][seen].abs().max()) / 16) if bool(seen.any()) else 1.0
    if error <= allowed_o and gap <= allowed_lse * scale:
        return ""
    return f"output off by {error:.2g}, log-sum-exp by {gap:.2g} against the reference"
