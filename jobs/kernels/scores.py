"""Scorers: what a key tile is worth to a query tile, or to a query.

Dimensions: B batch, H query heads, G key heads, P plan heads, T queries, S keys, I query tiles,
J key tiles, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ingest.models import attend, scores
from jobs.kernels.contract import QKV, Tiles
from jobs.kernels.shapes import unflatten

ROWS = 256
"""Queries whose scores are in memory at once."""


def dense(qkv: QKV) -> tuple[Tensor, Tensor]:
    """Return exact attention ``[B, H, T, d]`` and its log-sum-exp ``[B, H, T]``, float32 or wider."""
    z_BTHd, lse_BTH = attend(
        qkv.q.transpose(1, 2),
        qkv.k.transpose(1, 2),
        qkv.v.transpose(1, 2),
        qkv.spec,
        query_start=qkv.query_start,
    )
    return z_BTHd.transpose(1, 2), lse_BTH.transpose(1, 2)


def weights(qkv: QKV, low: int, high: int) -> Tensor:
    """Return exact attention weights of queries ``low`` to ``high``, ``[B, H, t, S]``.

    A row sums to 1, or to 0 where its query sees no key.
    """
    q_BTHd = qkv.q[:, :, low:high].transpose(1, 2)
    found = scores(q_BTHd, qkv.k.transpose(1, 2), qkv.spec, query_start=qkv.query_start + low)
    return found.softmax(-1).masked_fill(found == -torch.inf, 0.0)


def block_mass(qkv: QKV, tiles: Tiles) -> Tensor:
    """Return the exact attention mass of tiles, ``[B, P, I, J]``: a mean over the tile's queries.

    ``A_IJ = Σ_{i∈I, j∈J} P_ij / |I|``; where query heads share a plan, the mean over them. A row of tiles
    sums to 1. Whole rows of scores are in memory for some queries at a time, so one pass gives both the
    softmax and the sums; a kernel that streams over keys needs a first pass for the log-sum-exp.

    Source: the search of AdaSpa (whose listing prints a logarithm where the exponential is meant), here
    over the real number of queries of the last tile.
    """
    step = max(1, ROWS // tiles.bq) * tiles.bq
    parts = []
    for low in range(0, qkv.q.shape[2], step):
        mass = tile_sums(weights(qkv, low, low + step), tiles.bk)
        pad = (0, 0, 0, -mass.shape[2] % tiles.bq)
        rows = unflatten(torch.nn.functional.pad(mass, pad), 2, (-1, tiles.bq)).sum(3)
        parts.append(rows)
    sums = torch.cat(parts, 2)
    last = qkv.q.shape[2] - (sums.shape[2] - 1) * tiles.bq
    count = torch.full((sums.shape[2], 1), float(tiles.bq), dtype=sums.dtype)
    count[-1] = last
    return tiles.pooled(sums / count, qkv)


def tile_sums(values_S: Tensor, bk: int) -> Tensor:
    """Return sums over tiles of the last dimension, ``[…, S] → […, J]``."""
    padded = torch.nn.functional.pad(values_S, (0, -values_S.shape[-1] % bk))
    return unflatten(padded, -1, (-1, bk)).sum(-1)


def mean_key_gate(qkv: QKV, tiles: Tiles) -> Tensor:
    """Return ``q_i · mean_{j∈J} k_j`` of every query and key tile, ``[B, H, T, J]``, float32.

    Keys are those attention sees (after rotation); the mean is over keys that are there, so a short
    last tile is not diluted.

    Source: "MoBA: Mixture of Block Attention for Long-Context LLMs", equation 6.
    """
    keys = qkv.k.shape[2]
    sums_BGdJ = tile_sums(qkv.k.float().transpose(2, 3), tiles.bk)
    count_J = tile_sums(torch.ones(keys), tiles.bk)
    mean_BGdJ = sums_BGdJ / count_J
    q_BGgTd = unflatten(qkv.q.float(), 1, (qkv.groups, -1))
    return (q_BGgTd @ mean_BGdJ.unsqueeze(2)).flatten(1, 2)
