"""``random``: tiles drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from jobs.kernels.assemble import own_tiles, tile_plan
from jobs.kernels.contract import PLANNERS, QKV, Budget, Tiles, seeded
from jobs.kernels.geometry import layout
from jobs.kernels.plan import BlockPlan


@PLANNERS.register("random")
@dataclass(frozen=True, kw_only=True, slots=True)
class Random:
    """Keeps the own tile and others drawn at random, each head its own: the floor.

    A draw depends on the seed and the problem's key alone, so it is the same for any tensors of one
    sequence.
    """

    kind: ClassVar[str]
    causal_only: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact-at-full-budget"
    seed: int = 0
    """Root of the draws."""

    def plan(self, qkv: QKV, tiles: Tiles, budget: Budget) -> BlockPlan:
        """Return the plan."""
        shape = layout(qkv.geometry, tiles.bq, tiles.bk).visible.shape
        drawn = torch.rand(
            (qkv.q.shape[0], tiles.plan_heads(qkv), *shape),
            generator=seeded(self.seed, "planner/random", qkv.key),
        )
        return tile_plan(
            qkv,
            tiles,
            budget,
            drawn,
            forced_IJ=own_tiles(qkv, tiles),
            stats={"planner": self.kind, "seed": self.seed, "plan_flops": 0.0},
        )
