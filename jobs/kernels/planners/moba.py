"""``moba``: each query goes to the key tiles whose mean key answers it best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jobs.kernels.assemble import token_plan
from jobs.kernels.contract import PLANNERS, QKV, Budget, Tiles
from jobs.kernels.plan import BlockPlan
from jobs.kernels.scores import mean_key_gate


@PLANNERS.register("moba")
@dataclass(frozen=True, kw_only=True, slots=True)
class MoBA:
    """Routes every query of every head to the k key blocks with the largest ``q · mean(keys)``.

    Own block always, and counted inside k; blocks behind the query never; attention within the own block
    is causal. Keys are those after rotation. Routing is by single query, so the tiles that must be
    computed are a union and more than the budget: ``tile_inflation`` says how many times.

    Notes
    -----
    Made for models trained with it. On others this measures how far their attention lets itself be
    routed, not the method's quality.

    Source: "MoBA: Mixture of Block Attention for Long-Context LLMs", section 2.2; the gate in float32 as
    in its code. Where query heads share a plan we route by the mean gate, which the paper does not.
    """

    kind: ClassVar[str]
    causal_only: ClassVar[bool] = True
    exactness: ClassVar[str] = "different-model"

    def plan(self, qkv: QKV, tiles: Tiles, budget: Budget) -> BlockPlan:
        """Return the plan."""
        batch, heads, queries, width = qkv.q.shape
        gate = tiles.pooled(mean_key_gate(qkv, tiles), qkv)
        flops = 2.0 * batch * heads * queries * gate.shape[-1] * width
        return token_plan(
            qkv, tiles, budget, gate, stats={"planner": self.kind, "plan_flops": flops}
        )
