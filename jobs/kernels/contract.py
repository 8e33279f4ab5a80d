"""What planners and executors of attention agree on.

A planner says what to keep (`BlockPlan`), an executor computes it, and neither knows the other: any
plan runs on any executor. What a plan keeps is compared at equal budgets only.

Dimensions: B batch, H query heads, G key heads, T queries, S keys, d head width, I query tiles,
J key tiles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from ingest.models import AttentionSpec
from jobs.errors import JobError, RefusedError, UsageError
from jobs.kernels.geometry import Geometry
from jobs.kernels.plan import BlockPlan
from jobs.kernels.shapes import unflatten
from store.registry import Registry

if TYPE_CHECKING:
    from ingest.models import Rotary

PLANNERS: Registry = Registry("planner", "jobs.kernels.planners")
EXECUTORS: Registry = Registry("attention executor", "jobs.kernels.executors")

TILE_HEADS = ("query", "kv")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QKV:
    """One attention problem: what attention of one layer saw.

    Raises
    ------
    JobError
        ``heads-differ`` where the key heads do not divide the query heads, ``bad-shape`` where the
        tensors do not fit one another.
    """

    q: Tensor
    """``[B, H, T, d]``, after rotation."""
    k: Tensor
    """``[B, G, S, d]``, after rotation."""
    v: Tensor
    """``[B, G, S, d]``"""
    scale: float
    """Factor on ``q · k``."""
    causal: bool
    """Whether a query sees no key behind its own position."""
    window: int | None = None
    """Where set, position i sees only positions j with ``|i - j| < window``."""
    softcap: float | None = None
    """Where set, scores become ``softcap * tanh(score / softcap)`` before masking."""
    query_start: int = 0
    """Position of the first query; keys start at position 0."""
    rotary: Rotary | None = None
    """How q and k were turned; only ``perm_tok`` asks."""
    positions: Tensor | None = None
    """int64[B, S] positions the keys were turned to; 0…S-1 where None."""
    key: int = 0
    """Names the problem among others (a sequence id): what is drawn for it depends on it alone."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Layer, sequence, document: for tables."""

    def __post_init__(self) -> None:
        q, k, v = tuple(self.q.shape), tuple(self.k.shape), tuple(self.v.shape)
        if len(q) != 4 or len(k) != 4 or v != k or q[0] != k[0] or q[3] != k[3]:
            raise JobError(
                f"attention over q {list(q)}, k {list(k)}, v {list(v)} was asked; q is [B, H, T, d], k and v are "
                "[B, G, S, d]. Nothing was computed. Mend the shapes.",
                kind="bad-shape",
            )
        if k[1] == 0 or q[1] % k[1]:
            raise JobError(
                f"attention with {q[1]} query heads and {k[1]} key heads was asked; each key head serves the same "
                "number of query heads, so the second must divide the first. Nothing was computed. Check which "
                "columns were read.",
                kind="heads-differ",
            )

    @property
    def heads(self) -> int:
        """Query heads H."""
        return self.q.shape[1]

    @property
    def groups(self) -> int:
        """Key heads G."""
        return self.k.shape[1]

    @property
    def geometry(self) -> Geometry:
        """Shape and position rules."""
        return Geometry(
            queries=self.q.shape[2],
            keys=self.k.shape[2],
            causal=self.causal,
            window=self.window,
            query_start=self.query_start,
        )

    @property
    def spec(self) -> AttentionSpec:
        """The same rules as `ingest.models.attend` reads them."""
        return AttentionSpec(
            heads=self.heads,
            kv_heads=self.groups,
            head_width=self.q.shape[3],
            scale=self.scale,
            causal=self.causal,
            softcap=self.softcap,
            window=self.window,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiles:
    """How attention is cut into tiles, and whose plan a plan head is."""

    bq: int = 16
    """Queries of a tile."""
    bk: int = 16
    """Keys of a tile."""
    heads: str = "query"
    """``query``: each query head has its own plan; ``kv``: those of one key head share one, so that its
    keys are fetched once for all of them."""

    def __post_init__(self) -> None:
        if self.bq < 1 or self.bk < 1 or self.heads not in TILE_HEADS:
            raise UsageError(
                f"tiles of {self.bq} queries and {self.bk} keys with plans per {self.heads!r} head were asked; tiles "
                f"have at least one of each, plan heads are {' or '.join(TILE_HEADS)}. Nothing was started.",
                kind="bad-tiles",
            )

    def plan_heads(self, qkv: QKV) -> int:
        """Return P."""
        return qkv.heads if self.heads == "query" else qkv.groups

    def pooled(self, values_BH: Tensor, qkv: QKV) -> Tensor:
        """Return values per query head ``[B, H, …]`` as means per plan head ``[B, P, …]``."""
        plan_heads = self.plan_heads(qkv)
        if plan_heads == values_BH.shape[1]:
            return values_BH
        return unflatten(values_BH, 1, (plan_heads, -1)).mean(2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How many key tiles a row may keep, forced ones and its own counted inside.

    Exactly one of the two; equal budgets give every planner equal counts in every row.
    """

    density: float | None = None
    """Share of the row's visible tiles, above 0 and at most 1, rounded half up, at least one."""
    count: int | None = None
    """Tiles, at least one."""

    def __post_init__(self) -> None:
        good = (
            (self.density is None) != (self.count is None)
            and (self.density is None or 0 < self.density <= 1)
            and (self.count is None or self.count >= 1)
        )
        if not good:
            raise UsageError(
                f"a budget of density {self.density} and count {self.count} was asked; it is either a density above "
                "0 and at most 1 or a count of at least 1. Nothing was started.",
                kind="bad-budget",
            )

    @property
    def kind(self) -> str:
        """``density`` or ``count``."""
        return "density" if self.density is not None else "count"

    @property
    def value(self) -> float:
        """The number."""
        return float(self.density if self.density is not None else self.count or 0)

    def counts(self, visible: Tensor) -> Tensor:
        """Return the tiles to keep, int64, of rows with so many visible ones; none where none is."""
        if self.count is not None:
            return visible.clamp(max=self.count)
        assert self.density is not None
        share = (visible.double() * self.density + 0.5).floor().long()
        return torch.minimum(share.clamp(min=1), visible)


class Planner(Protocol):
    """A frozen config that says what attention keeps."""

    kind: ClassVar[str]
    causal_only: ClassVar[bool]
    """Whether the method means nothing where queries see later keys."""
    exactness: ClassVar[str]
    """``exact-at-full-budget``, ``approximate-always`` or ``different-model`` (made for models trained
    with it: on others it measures transfer, not the method)."""

    def plan(self, qkv: QKV, tiles: Tiles, budget: Budget) -> BlockPlan:
        """Return what to keep within the budget, one answer for equal arguments."""


class Executor(Protocol):
    """A frozen config that computes attention over what a plan keeps."""

    kind: ClassVar[str]

    def run(self, qkv: QKV, plan: BlockPlan) -> tuple[Tensor, Tensor]:
        """Return the output before W_O ``[B, H, T, d]`` and its log-sum-exp ``[B, H, T]``, float32 or wider.

        A query that keeps no key has zeros and ``-inf``. The log-sum-exp is natural, of scaled scores, so
        `merge` joins runs over disjoint plans.
        """


def plan(planner: Planner, qkv: QKV, tiles: Tiles, budget: Budget) -> BlockPlan:
    """Return a planner's plan; the door through which all of them are asked.

    Raises
    ------
    RefusedError
        ``causal-planner``: it plans causal attention, the model is bidirectional. ``empty-row``: the plan
        would leave a query that sees keys without any.
    """
    refuse_bidirectional(planner, causal=qkv.causal)
    return planner.plan(qkv, tiles, budget)


def refuse_bidirectional(planner: Planner, *, causal: bool) -> None:
    """Raise ``causal-planner`` where a planner of causal attention meets a bidirectional model."""
    if causal or not planner.causal_only:
        return
    others = [name for name in PLANNERS.names() if not PLANNERS.get(name).causal_only]
    raise RefusedError(
        f"planner {planner.kind!r} chooses among the keys before a query; this model's attention is bidirectional. "
        f"Nothing was planned. Take others: --planners {','.join(others)}",
        kind="causal-planner",
    )


def seeded(root: int, purpose: str, key: int) -> torch.Generator:
    """Return the generator of one purpose for one problem; equal arguments draw equal numbers."""
    digest = hashlib.sha256(f"{root}/{purpose}/{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def attention_flops(pairs: float, width: int) -> float:
    """Return the FLOPs of scores and weighted means over so many (query, key) pairs of one head."""
    return 4.0 * pairs * width
