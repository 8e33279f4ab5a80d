"""Sparse kernels: what attention may leave out, computed and measured on stored tensors."""

from jobs.kernels.contract import EXECUTORS, PLANNERS, QKV, Budget, Tiles
from jobs.kernels.plan import BlockPlan

__all__ = [
    "EXECUTORS",
    "PLANNERS",
    "QKV",
    "BlockPlan",
    "Budget",
    "Tiles",
]
