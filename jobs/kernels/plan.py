"""`BlockPlan`: the one contract between those who choose what attention keeps and those who compute it.

Dimensions: B batch, P plan heads, H query heads, T queries, S keys, I query tiles, J key tiles,
C listed tiles at most, W bytes of a tile's row mask.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.errors import JobError
from jobs.kernels.geometry import Geometry, Layout, layout
from store.errors import CorruptError

PLAN_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Density:
    """How much of dense attention a plan keeps. 1 is all of it, at any length and tile size."""

    rho_token: float
    """Kept (query, key) pairs over visible ones."""
    rho_tile: float
    """Listed tiles over the tiles that dense attention must multiply at this tile size."""
    forced_share: float
    """Listed tiles that were forced, of all listed."""

    @property
    def tile_inflation(self) -> float:
        """``rho_tile / rho_token``: above 1 where tiles are computed for some of their pairs only."""
        return self.rho_tile / self.rho_token if self.rho_token else float("nan")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BlockPlan:
    """Which key tiles each query tile attends to.

    The four list fields are those of FlexAttention's ``BlockMask.from_kv_blocks``: int32, contiguous,
    the first ``num`` entries of each ``idx`` row ascending and distinct, the rest 0. A tile is in at
    most one list. Positions hidden by the geometry stay hidden whatever a plan lists.
    """

    geometry: Geometry
    bq: int
    """Queries of a tile."""
    bk: int
    """Keys of a tile."""
    heads: int
    """Query heads H that the plan is for; it has P of its own, H or the key heads or 1, and plan head p
    serves query heads ``p * H / P`` to ``(p + 1) * H / P - 1``."""
    kv_num: Tensor
    """int32[B, P, I]: partial tiles, whose pairs are masked."""
    kv_idx: Tensor
    """int32[B, P, I, C]"""
    full_num: Tensor
    """int32[B, P, I]: full tiles, which need no mask."""
    full_idx: Tensor
    """int32[B, P, I, C']"""
    kv_forced: Tensor
    """bool[B, P, I, C]: listed because it had to be, not because it was chosen."""
    full_forced: Tensor
    """bool[B, P, I, C']"""
    token_bits: Tensor | None = None
    """uint8[B, P, I, C, W]: query r of the tile attends to the partial tile only where bit ``r % 8`` of
    byte ``r // 8`` is set; None: every query does."""
    stats: Mapping[str, Any] = field(default_factory=dict)
    """Planner, its parameters, ``plan_flops``; JSON values."""

    @property
    def plan_heads(self) -> int:
        """Plan heads P."""
        return self.kv_num.shape[1]

    @property
    def layout(self) -> Layout:
        """The geometry's tiles."""
        return layout(self.geometry, self.bq, self.bk)

    def listed(self) -> Tensor:
        """Return ``bool[B, P, I, J]``: tiles that are computed."""
        return self._spread(self.kv_idx, self.kv_num) | self._spread(self.full_idx, self.full_num)

    def forced(self) -> Tensor:
        """Return ``bool[B, P, I, J]``: listed tiles that were forced."""
        partial = self._spread(self.kv_idx, self.kv_num, self.kv_forced)
        return partial | self._spread(self.full_idx, self.full_num, self.full_forced)

    def _spread(self, idx: Tensor, num: Tensor, values: Tensor | None = None) -> Tensor:
        """Return list entries in their places among all key tiles, ``bool[B, P, I, J]``."""
        tiles = self.layout.visible.shape[1]
        held = torch.arange(idx.shape[-1], device=idx.device) < num[..., None]
        if values is not None:
            held &= values
        out = torch.zeros((*num.shape, tiles), dtype=torch.int32, device=idx.device)
        return out.scatter_add_(-1, idx.long(), held.int()) > 0

    def to_mask(self, rows: slice = slice(None)) -> Tensor:
        """Return ``bool[B, P, t, S]``: the kept pairs of some queries. For tests and metrics."""
        picked = torch.arange(self.geometry.queries)[rows]
        tile = picked // self.bq
        kept = self.listed()[:, :, tile]
        if self.token_bits is not None:
            full = self._spread(self.full_idx, self.full_num)[:, :, tile]
            kept = full | self._routed(picked)
        wide = kept.repeat_interleave(self.bk, -1)[..., : self.geometry.keys]
        return wide & self.geometry.visible(rows)

    def _routed(self, picked_t: Tensor) -> Tensor:
        """Return ``bool[B, P, t, J]``: partial tiles each query is routed to."""
        assert self.token_bits is not None
        tile, row = picked_t // self.bq, picked_t % self.bq
        byte = self.token_bits[:, :, tile].gather(
            -1,
            (row // 8)[:, None, None].expand(
                *self.kv_num.shape[:2], len(row), self.kv_idx.shape[-1], 1
            ),
        )
        bit = (byte[..., 0] >> (row % 8)[:, None].to(torch.uint8)) & 1
        idx, num = self.kv_idx[:, :, tile], self.kv_num[:, :, tile]
        return self._spread(idx, num, bit.bool())

    def density(self) -> Density:
        """Return the plan's densities over the visible pairs and tiles, means over batch and heads."""
        listed, layout = self.listed(), self.layout
        problems = listed.shape[0] * listed.shape[1]
        if self.token_bits is None:
            kept = int((listed * layout.pairs).sum())
        else:
            rows = range(0, self.geometry.queries, 1024)
            kept = sum(int(self.to_mask(slice(row, row + 1024)).sum()) for row in rows)
        tiles = int(listed.sum())
        return Density(
            rho_token=kept / max(1, problems * self.geometry.pairs()),
            rho_tile=tiles / max(1, problems * layout.tiles),
            forced_share=int(self.forced().sum()) / max(1, tiles),
        )

    def serialise(self) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """Return the plan as arrays that Arrow and safetensors take; speed tests replay it from them."""
        geometry = {f.name: getattr(self.geometry, f.name) for f in fields(Geometry)}
        head = {"v": PLAN_VERSION, "bq": self.bq, "bk": self.bk, "heads": self.heads}
        text = json.dumps({**head, "geometry": geometry, "stats": dict(self.stats)}, sort_keys=True)
        arrays = {"plan": np.frombuffer(text.encode(), np.uint8).copy()}
        for name in _TENSORS:
            value = getattr(self, name)
            if value is not None:
                arrays[name] = value.cpu().numpy().copy()
        return arrays

    @classmethod
    def deserialise(cls, arrays: Mapping[str, np.ndarray[Any, np.dtype[Any]]]) -> BlockPlan:
        """Return the plan that ``serialise`` described.

        Raises
        ------
        CorruptError
            ``bad-plan``: the arrays describe no plan of this version.
        """
        try:
            head = json.loads(arrays["plan"].tobytes())
            version = head.pop("v")
            geometry = Geometry(**head.pop("geometry"))
            tensors: dict[str, Any] = {
                n: torch.from_numpy(arrays[n].copy()) for n in _TENSORS if n in arrays
            }
            if version == PLAN_VERSION:
                return cls(geometry=geometry, **head, **tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"these arrays are no plan: {error!r}.", kind="bad-plan") from error
        raise CorruptError(
            f"a plan of version {PLAN_VERSION} was expected, found {version}. Make the plan again.",
            kind="bad-plan",
        )

    def check_for(self, geometry: Geometry, heads: int, groups: int) -> None:
        """Raise `JobError` ``plan-differs`` unless the plan is of this geometry and head count."""
        if (
            self.geometry == geometry
            and heads == self.heads
            and self.plan_heads in {heads, groups, 1}
        ):
            return
        raise JobError(
            f"a plan for {self.heads} heads ({self.plan_heads} of its own) over {self.geometry} was to be run on "
            f"{heads} query and {groups} key heads over {geometry}. Nothing was computed. Plan on the tensors that "
            "are run, or on others of their shape.",
            kind="plan-differs",
        )


_TENSORS = ("kv_num", "kv_idx", "full_num", "full_idx", "kv_forced", "full_forced", "token_bits")
