"""``oracle``: the tiles that hold most of the exact attention mass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jobs.kernels.assemble import own_tiles, tile_plan
from jobs.kernels.contract import PLANNERS, QKV, Budget, Tiles, attention_flops
from jobs.kernels.plan import BlockPlan
from jobs.kernels.scores import block_mass


@PLANNERS.register("oracle")
@dataclass(frozen=True, kw_only=True, slots=True)
class Oracle:
    """Keeps the tiles with most exact attention mass: no tile mask of its size recalls more.

    The envelope others are held against, not a method: it computes every score to plan. Best in the mean
    over a tile's queries; a plan that routes single queries may do better. Where tiles have unequal sides
    or a window is narrow the best tiles can leave a query without keys, which is refused; ``own`` forces
    the tiles at its own positions.
    """

    kind: ClassVar[str]
    causal_only: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact-at-full-budget"
    own: bool = False
    """Whether a query tile's own key tiles are forced."""

    def plan(self, qkv: QKV, tiles: Tiles, budget: Budget) -> BlockPlan:
        """Return the plan."""
        flops = 0.5 * attention_flops(qkv.geometry.pairs() * qkv.heads, qkv.q.shape[3])
        return tile_plan(
            qkv,
            tiles,
            budget,
            block_mass(qkv, tiles),
            forced_IJ=own_tiles(qkv, tiles) if self.own else None,
            stats={"planner": self.kind, "plan_flops": flops * qkv.q.shape[0]},
        )
