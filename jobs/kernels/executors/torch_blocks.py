"""``torch_blocks``: only the listed tiles, gathered and multiplied in batches, with PyTorch alone.

Query tiles with equally many listed key tiles form one batched product over contiguous copies of
their keys and values. The copies cost memory traffic that a fused kernel would not have; they are
made in slices that stay in cache.

Dimensions: B batch, H query heads, G key heads, L list owners (H, or G where lists are shared),
r query heads of one owner, I query tiles, J key tiles, R = B·L·I rows of lists, n tiles of a row,
d head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from jobs.errors import UsageError
from jobs.kernels.contract import EXECUTORS, QKV
from jobs.kernels.plan import BlockPlan
from jobs.kernels.shapes import unflatten

PRECISIONS = ("float32", "bfloat16")
SLICE_FLOATS = 1 << 19
"""Scores and gathered floats in flight, 2 MiB. The best or within 10 % of it among 2**16 to 2**22 by processor time at
512 and 2048 tokens, tiles of 16 and 64, densities .125 and 1 (one core, AVX-512, 2026-11); below 2**18 up to twice slower."""


@EXECUTORS.register("torch_blocks")
@dataclass(frozen=True, kw_only=True, slots=True)
class TorchBlocks:
    """Computes the listed tiles alone: gather, batched products, softmax in float32.

    Any device torch has; written for CPUs. Full tiles are not masked. Where key heads' plans are shared
    the query heads of a key head are stacked, so its keys are gathered once for all of them.
    """

    kind: ClassVar[str]
    precision: str = "float32"
    """Dtype of the product with the values: float32, or bfloat16, which pays where a CPU multiplies
    bfloat16 tiles. Scores and log-sum-exp stay float32: CPU products of bfloat16 round what they
    return, and a log-sum-exp of such scores misses its tolerance."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"torch_blocks computes in {' or '.join(PRECISIONS)}; {self.precision!r} was asked. Nothing was started."
            )

    def run(self, qkv: QKV, plan: BlockPlan) -> tuple[Tensor, Tensor]:
        """Return output ``[B, H, T, d]`` and log-sum-exp ``[B, H, T]``, float32."""
        plan.check_for(qkv.geometry, qkv.heads, qkv.groups)
        low = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        job = _Job(qkv, plan, low)
        for rows, full, partial in job.batches():
            job.compute(rows, full, partial)
        return job.result()


class _Job:
    """One run: tensors cut into tiles, lists as rows, and the outputs that batches write."""

    def __init__(self, qkv: QKV, plan: BlockPlan, low: torch.dtype) -> None:
        self.qkv, self.plan, self.low = qkv, plan, low
        owners = qkv.heads if plan.plan_heads == qkv.heads else qkv.groups
        self.shared = qkv.heads // owners
        self.q_R = _query_rows(qkv, plan.bq, owners)
        self.k_tiles = _tiles(qkv.k.float(), plan.bk)
        self.v_tiles = _tiles(qkv.v.to(low), plan.bk)
        self.key_tiles = self.k_tiles.shape[0] // (qkv.k.shape[0] * qkv.groups)
        self.lists = [
            _owned(x, owners)
            for x in (plan.full_num, plan.full_idx, plan.kv_num, plan.kv_idx, plan.token_bits)
        ]
        count = self.q_R.shape[0]
        tiles = count // (qkv.q.shape[0] * owners)
        row = torch.arange(count)
        head = row // tiles % owners // (owners // qkv.groups)
        self.tile_R = row % tiles
        self.base_R = (row // (tiles * owners) * qkv.groups + head) * self.key_tiles
        shape = self.q_R.shape
        self.o_R = torch.empty(shape, dtype=torch.float32)
        self.lse_R = torch.empty(shape[:2], dtype=torch.float32)

    def batches(self) -> Iterator[tuple[Tensor, int, int]]:
        """Yield rows of lists that have equally many full and partial tiles, a slice at a time."""
        full_R, partial_R = self.lists[0], self.lists[2]
        assert full_R is not None
        assert partial_R is not None
        kinds, member = torch.unique(
            torch.stack([full_R, partial_R], 1), dim=0, return_inverse=True
        )
        order = member.argsort(dim=0, stable=True)
        for kind, rows in zip(kinds.tolist(), order.split(member.bincount().tolist()), strict=True):
            keys = max(1, sum(kind)) * self.plan.bk
            floats = keys * (self.q_R.shape[1] + 2 * self.q_R.shape[2])
            for some in rows.split(max(1, SLICE_FLOATS // floats)):
                yield some, kind[0], kind[1]

    def compute(self, rows: Tensor, full: int, partial: int) -> None:
        """Write output and log-sum-exp of some rows."""
        if full + partial == 0:
            self.o_R[rows], self.lse_R[rows] = 0.0, -torch.inf
            return
        _, full_idx, _, kv_idx, _ = self.lists
        assert full_idx is not None
        assert kv_idx is not None
        tiles = torch.cat([full_idx[rows, :full], kv_idx[rows, :partial]], 1).long()
        at = (tiles + self.base_R[rows, None]).flatten()
        k = self.k_tiles.index_select(0, at).view(len(rows), -1, self.k_tiles.shape[2])
        v = self.v_tiles.index_select(0, at).view(len(rows), -1, self.v_tiles.shape[2])
        scores = self.q_R.index_select(0, rows) @ k.transpose(1, 2)
        if self.qkv.softcap is not None:
            scores = self.qkv.softcap * torch.tanh(scores / self.qkv.softcap)
        if partial:
            hidden = self._hidden(rows, tiles[:, full:], partial)
            masked = unflatten(scores, 1, (self.shared, -1))[..., full * self.plan.bk :]
            masked.masked_fill_(hidden[:, None], -torch.inf)
        top = scores.amax(-1, keepdim=True)
        top.masked_fill_(top == -torch.inf, 0.0)
        weights = scores.sub_(top).exp_()
        total = weights.sum(-1)
        o = (weights.to(self.low) @ v).float()
        self.o_R[rows] = o / torch.where(total == 0, 1.0, total)[..., None]
        self.lse_R[rows] = total.log() + top[..., 0]

    def _hidden(self, rows: Tensor, tiles_Rn: Tensor, partial: int) -> Tensor:
        """Return ``bool[R, bq, n·bk]``: pairs of partial tiles that are not attended to."""
        geometry, plan = self.plan.geometry, self.plan
        at = torch.arange(plan.bq)
        i = (geometry.query_start + self.tile_R[rows, None] * plan.bq + at)[:, :, None]
        j = (tiles_Rn[..., None] * plan.bk + torch.arange(plan.bk)).flatten(1)[:, None]
        hidden = (j >= geometry.keys).expand(-1, plan.bq, -1)
        if geometry.causal:
            hidden = hidden | (j > i)
        if geometry.window is not None:
            hidden = hidden | ((i - j).abs() >= geometry.window)
        bits = self.lists[4]
        if bits is not None:
            words = bits[rows, :partial][..., at // 8]  # [R, n, bq]
            routed = ((words >> (at % 8).to(torch.uint8)) & 1).bool().transpose(1, 2)
            hidden = hidden | ~routed.repeat_interleave(plan.bk, -1)
        return hidden

    def result(self) -> tuple[Tensor, Tensor]:
        """Return the outputs in the order of the queries."""
        batch, heads, queries, width = self.qkv.q.shape
        tiles = len(self.tile_R) * self.shared // (batch * heads)
        shape = (batch, heads // self.shared, tiles, self.shared, self.plan.bq)
        o = self.o_R.view(*shape, width).transpose(2, 3).reshape(batch, heads, -1, width)
        lse = self.lse_R.view(shape).transpose(2, 3).reshape(batch, heads, -1)
        return o[:, :, :queries], lse[:, :, :queries]


def _query_rows(qkv: QKV, bq: int, owners: int) -> Tensor:
    """Return scaled queries by list row, ``[R, r·bq, d]``."""
    q = qkv.q.float() * qkv.scale
    padded = torch.nn.functional.pad(q, (0, 0, 0, -q.shape[2] % bq))
    cut = unflatten(unflatten(padded, 2, (-1, bq)), 1, (owners, -1))  # [B, L, r, I, bq, d]
    return cut.transpose(2, 3).flatten(3, 4).flatten(0, 2).contiguous()


def _tiles(x_BGSd: Tensor, bk: int) -> Tensor:
    """Return keys or values by tile, ``[B·G·J, bk, d]``, zeros behind the last key."""
    padded = torch.nn.functional.pad(x_BGSd, (0, 0, 0, -x_BGSd.shape[2] % bk))
    return unflatten(padded, 2, (-1, bk)).flatten(0, 2).contiguous()


def _owned(x: Tensor | None, owners: int) -> Tensor | None:
    """Return a plan's field by list row, ``[R, …]``; lists of fewer heads are repeated."""
    if x is None:
        return None
    return x.repeat_interleave(owners // x.shape[1], 1).flatten(0, 2)
