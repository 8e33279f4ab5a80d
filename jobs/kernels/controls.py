"""Controls: tensors that keep some of what real ones have and lack the rest.

A figure on real tensors says something about structure only next to the same figure on these. Every
control is a problem of the same shape and rules; its dense attention is computed anew, so each is
compared with itself.

Dimensions: B batch, H heads, S keys, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from jobs.errors import UsageError
from jobs.kernels.contract import QKV, Tiles, seeded
from jobs.kernels.inputs import turned

WINDOW_TILES = 8
"""Tiles of a permutation window where attention is causal (specification of kernels, 11.2: 8 to 16)."""

Control = Callable[[QKV, Tiles, torch.Generator], QKV]


def real(qkv: QKV, tiles: Tiles, generator: torch.Generator) -> QKV:
    """Return the stored tensors: destroys nothing."""
    del tiles, generator
    return qkv


def perm_tok(qkv: QKV, tiles: Tiles, generator: torch.Generator) -> QKV:
    """Return the problem with its keys and values permuted together: destroys which keys lie in one tile.

    Each query keeps the multiset of scores it would have without positions, up to what its position
    hides. Where attention is causal, permutations stay within windows of 8 tiles, so that most of what a
    query sees stays what it saw; else one permutation takes all. Keys are turned back from their
    positions, permuted, and turned to their new ones: positions keep their meaning, tokens change place.
    One permutation serves all heads.
    """
    order = _order(qkv, tiles, generator)
    return replace(qkv, k=_moved(qkv, order), v=qkv.v[:, :, order])


def perm_rot(qkv: QKV, tiles: Tiles, generator: torch.Generator) -> QKV:
    """Return the problem with its rotated keys and its values permuted: destroys locality of any kind.

    As `perm_tok`, but each key carries the rotation of the place it came from, so that what attends by
    distance is scattered too. The gap between the two tells structure of position from that of content;
    where a model has no rotation they differ by the draw alone.
    """
    order = _order(qkv, tiles, generator)
    return replace(qkv, k=qkv.k[:, :, order], v=qkv.v[:, :, order], rotary=None)


def _order(qkv: QKV, tiles: Tiles, generator: torch.Generator) -> Tensor:
    """Return one permutation of the keys, within windows where attention is causal, ``int64[S]``."""
    keys = qkv.k.shape[2]
    window = WINDOW_TILES * tiles.bk if qkv.causal else keys
    return torch.cat(
        [
            low + torch.randperm(min(window, keys - low), generator=generator)
            for low in range(0, keys, window)
        ]
    )


def _moved(qkv: QKV, order_S: Tensor) -> Tensor:
    """Return the keys in a new order, each turned to its new position."""
    if qkv.rotary is None:
        return qkv.k[:, :, order_S]
    at = torch.arange(len(order_S))[None] if qkv.positions is None else qkv.positions
    before = turned(qkv.k, at, qkv.rotary, back=True)
    return turned(before[:, :, order_S], at, qkv.rotary)


def gauss_cov(qkv: QKV, tiles: Tiles, generator: torch.Generator) -> QKV:
    """Return Gaussian tensors of each head's mean and covariance: destroys sinks, tokens, heavy tails.

    Keeps second moments and so the directions q and k prefer. Moments are those of the sequence's own
    rows, after rotation; q, k and v are drawn independently of one another.
    """
    del tiles
    return _drawn(qkv, generator, _like_covariance)


def gauss_iid(qkv: QKV, tiles: Tiles, generator: torch.Generator) -> QKV:
    """Return normal tensors of each head's root mean square: destroys all but the scale.

    The setting of most kernel papers.
    """
    del tiles
    return _drawn(qkv, generator, _like_scale)


CONTROLS: Mapping[str, Control] = {
    "gauss_cov": gauss_cov,
    "gauss_iid": gauss_iid,
    "perm_rot": perm_rot,
    "perm_tok": perm_tok,
    "real": real,
}


def controlled(qkv: QKV, name: str, tiles: Tiles, *, seed: int) -> QKV:
    """Return a problem under a control; what is drawn follows from the seed, the control and the problem.

    Raises
    ------
    UsageError
        ``unknown-name``.
    """
    if name not in CONTROLS:
        raise UsageError(
            f"there is no control {name!r}; known: {', '.join(CONTROLS)}. Nothing was started.",
            kind="unknown-name",
        )
    return CONTROLS[name](qkv, tiles, seeded(seed, f"control/{name}", qkv.key))


def _drawn(
    qkv: QKV, generator: torch.Generator, like: Callable[[Tensor, torch.Generator], Tensor]
) -> QKV:
    q, k, v = (like(x, generator) for x in (qkv.q, qkv.k, qkv.v))
    return replace(qkv, q=q, k=k, v=v, rotary=None)


def _like_scale(x_BHSd: Tensor, generator: torch.Generator) -> Tensor:
    scale = x_BHSd.square().mean((2, 3), keepdim=True).sqrt()
    return torch.randn(x_BHSd.shape, generator=generator, dtype=x_BHSd.dtype) * scale


def _like_covariance(x_BHSd: Tensor, generator: torch.Generator) -> Tensor:
    x = x_BHSd.double()
    mean = x.mean(2, keepdim=True)
    centred = x - mean
    covariance = centred.transpose(2, 3) @ centred / max(1, x.shape[2] - 1)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    drawn: Tensor = mean + noise @ root.transpose(2, 3)
    return drawn.to(x_BHSd.dtype)
