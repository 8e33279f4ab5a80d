"""``sink_local``: the first keys and the last ones, whatever the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from jobs.kernels.assemble import own_tiles, sink_tiles, tile_plan
from jobs.kernels.contract import PLANNERS, QKV, Budget, Tiles
from jobs.kernels.geometry import layout
from jobs.kernels.plan import BlockPlan


@PLANNERS.register("sink_local")
@dataclass(frozen=True, kw_only=True, slots=True)
class SinkLocal:
    """Keeps the tiles of the first tokens and the nearest ones behind the query; costs nothing to plan.

    What others must beat: a planner that does not beat it at equal density has found nothing. The own
    tile is always kept, the sinks where the budget has room for them, the rest goes to the nearest.

    Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (2309.17453), at the
    granularity of tiles.
    """

    kind: ClassVar[str]
    causal_only: ClassVar[bool] = True
    exactness: ClassVar[str] = "exact-at-full-budget"
    sink: int = 4
    """First tokens that are kept, >= 0."""

    def plan(self, qkv: QKV, tiles: Tiles, budget: Budget) -> BlockPlan:
        """Return the plan."""
        visible = layout(qkv.geometry, tiles.bq, tiles.bk).visible
        near_IJ = torch.arange(visible.shape[1], dtype=torch.float32).expand(visible.shape)
        sinks = sink_tiles(qkv, tiles, self.sink)
        worth_IJ = near_IJ.masked_fill(sinks, float(visible.shape[1]))
        heads = (qkv.q.shape[0], tiles.plan_heads(qkv), -1, -1)
        return tile_plan(
            qkv,
            tiles,
            budget,
            worth_IJ.expand(heads),
            forced_IJ=own_tiles(qkv, tiles),
            stats={"planner": self.kind, "sink": self.sink, "plan_flops": 0.0},
        )
