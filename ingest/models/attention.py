"""Attention recomputed from q, k and v, block by block, and the one log-sum-exp merge.

Every value is a pair ``(z, lse)``: the softmax-weighted mean over some keys and the log of the
sum of those keys' exponentiated scores. Two pairs over disjoint keys merge into the pair over
both, in any order; the pair over no keys is ``(0, -inf)``. Memory is bounded by the block, at the
price of renormalising each block.

Dimensions: B batch, T queries, S keys, H query heads, G key heads, g = H / G, d head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ingest.errors import ModelError

if TYPE_CHECKING:
    from ingest.models.contract import AttentionSpec, Rotary

Attended = tuple[Tensor, Tensor]
"""``z [B, T, H, d]`` and its ``lse [B, T, H]``, natural log."""


def attend(
    q_BTHd: Tensor,
    k_BSGd: Tensor,
    v_BSGd: Tensor,
    spec: AttentionSpec,
    mask_BS: Tensor | None = None,
    *,
    query_start: int = 0,
    key_start: int = 0,
    block: int = 256,
) -> Attended:
    """Return the attention output before W_O and the log-sum-exp of its scores.

    Parameters
    ----------
    q_BTHd, k_BSGd, v_BSGd
        As attention sees them: after rotation where the model has one (`rotate`).
    spec
        The layer's attention.
    mask_BS
        Nonzero for keys that may be seen; None for all. What hides behind a zero is never read,
        NaN or not.
    query_start, key_start
        Positions of the first query and the first key, where these are slices of a longer sequence.
    block
        Queries and keys per block; scores take ``B * H * block ** 2`` floats at a time.

    Returns
    -------
    tuple
        ``z [B, T, H, d]``, ``lse [B, T, H]``, float32 (float64 for float64 inputs) whatever the
        inputs' dtype; a query that sees no key has zeros and ``-inf``. NaN in a visible score
        stays NaN.

    Raises
    ------
    ModelError
        ``bad-input`` where shapes disagree with ``spec`` or each other.
    """
    _check(q_BTHd, k_BSGd, v_BSGd, spec, mask_BS, block)
    parts = []
    for start in range(0, q_BTHd.shape[1], block):
        q = q_BTHd[:, start : start + block]
        at = query_start + start
        done = _empty(q)
        first, last = _visible_keys(spec, at, at + q.shape[1])
        for low in range(0, k_BSGd.shape[1], block):
            here = slice(low, low + block)
            k = k_BSGd[:, here]
            if key_start + low >= last or key_start + low + k.shape[1] <= first:
                continue
            mask = None if mask_BS is None else mask_BS[:, here]
            part = _one_block(q, k, v_BSGd[:, here], spec, mask, at, key_start + low)
            done = merge(done, part)
        parts.append(done)
    if not parts:
        return _empty(q_BTHd)
    return torch.cat([z for z, _ in parts], 1), torch.cat([lse for _, lse in parts], 1)


def scores(
    q_BTHd: Tensor,
    k_BSGd: Tensor,
    spec: AttentionSpec,
    mask_BS: Tensor | None = None,
    *,
    query_start: int = 0,
    key_start: int = 0,
) -> Tensor:
    """Return the scores of every query with every key given, ``[B, H, T, S]``, ``-inf`` where hidden.

    Arguments are those of `attend`; float32 (float64 for float64 inputs). All of them are in memory at
    once: hand in blocks.

    Raises
    ------
    ModelError
        ``bad-input`` where shapes disagree with ``spec`` or each other.
    """
    _check(q_BTHd, k_BSGd, k_BSGd, spec, mask_BS, block=1)
    return _masked(q_BTHd, k_BSGd, spec, mask_BS, query_start, key_start).flatten(1, 2)


def merge(one: Attended, other: Attended) -> Attended:
    """Return the attention over the keys of both, given the attention over each.

    Commutative to the bit, associative up to rounding; ``(0, -inf)`` is its identity to the bit.
    A learned sink is the pair ``(0, sink logit)``.

    Notes
    -----
    ``lse = log(exp(a) + exp(b))``, ``z = z_a exp(a - lse) + z_b exp(b - lse)``, both shifted by
    the larger of a and b.

    Source: Dao et al., FlashAttention-2 (arXiv 2307.08691), section 2.3.
    """
    (z_a, a), (z_b, b) = one, other
    top = torch.maximum(a, b)
    shift = torch.where(top == -torch.inf, 0.0, top)
    weight_a, weight_b = torch.exp(a - shift), torch.exp(b - shift)
    total = weight_a + weight_b
    empty = total == 0
    safe = torch.where(empty, 1.0, total)
    z = z_a * (weight_a / safe).unsqueeze(-1) + z_b * (weight_b / safe).unsqueeze(-1)
    return z, torch.where(empty, -torch.inf, shift + torch.log(safe))


def rotate(x_BTHd: Tensor, positions_BT: Tensor, rotary: Rotary) -> Tensor:
    """Return q or k turned to their positions, in float32 (float64 for float64 inputs).

    Pairs are (feature i, feature i + n) for the n inverse frequencies; features from 2n on stay.

    Source: Su et al., RoFormer (arXiv 2104.09864), equation 34, in the half-split layout of
    transformers' ``rotate_half``.
    """
    x = x_BTHd.to(_accumulator(x_BTHd))
    frequencies = torch.tensor(rotary.inverse_frequencies, dtype=torch.float32, device=x.device)
    angle = (positions_BT[..., None, None].float() * frequencies).to(x.dtype)
    cos, sin = angle.cos() * rotary.magnitude, angle.sin() * rotary.magnitude
    half = len(rotary.inverse_frequencies)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _empty(q_BTHd: Tensor) -> Attended:
    z = torch.zeros(q_BTHd.shape, dtype=_accumulator(q_BTHd), device=q_BTHd.device)
    return z, torch.full(z.shape[:-1], -torch.inf, dtype=z.dtype, device=z.device)


def _visible_keys(spec: AttentionSpec, start: int, stop: int) -> tuple[float, float]:
    """Return the first key position any of the queries may see, and the one after the last."""
    first, last = -torch.inf, torch.inf
    if spec.window is not None:
        first, last = start - spec.window + 1, stop + spec.window - 1
    return first, min(last, stop) if spec.causal else last


def _one_block(
    q_BTHd: Tensor,
    k_BSGd: Tensor,
    v_BSGd: Tensor,
    spec: AttentionSpec,
    mask_BS: Tensor | None,
    query_start: int,
    key_start: int,
) -> Attended:
    scores_BGgTS = _masked(q_BTHd, k_BSGd, spec, mask_BS, query_start, key_start)
    v_BGSd = v_BSGd.to(scores_BGgTS.dtype).transpose(1, 2)
    if mask_BS is not None:
        v_BGSd = v_BGSd.masked_fill((mask_BS == 0)[:, None, :, None], 0.0)
    return _mean(scores_BGgTS, v_BGSd)


def _masked(
    q_BTHd: Tensor,
    k_BSGd: Tensor,
    spec: AttentionSpec,
    mask_BS: Tensor | None,
    query_start: int,
    key_start: int,
) -> Tensor:
    """Return scores ``[B, G, g, T, S]``, ``-inf`` where the key may not be seen."""
    scores_BGgTS = _scores(q_BTHd, k_BSGd, spec)
    queries, keys = scores_BGgTS.shape[-2:]
    hidden_TS = _hidden(spec, queries, keys, query_start, key_start, q_BTHd.device)
    if hidden_TS is not None:
        scores_BGgTS = scores_BGgTS.masked_fill(hidden_TS, -torch.inf)
    if mask_BS is not None:
        hidden_BS = mask_BS == 0
        scores_BGgTS = scores_BGgTS.masked_fill(hidden_BS[:, None, None, None, :], -torch.inf)
    return scores_BGgTS


def _scores(q_BTHd: Tensor, k_BSGd: Tensor, spec: AttentionSpec) -> Tensor:
    """Return scores before masking, ``[B, G, g, T, S]``; a key head serves g query heads."""
    dtype = _accumulator(q_BTHd)
    batch, queries, _, width = q_BTHd.shape
    q_BGgTd = (
        q_BTHd.to(dtype)
        .view(batch, queries, spec.kv_heads, spec.heads // spec.kv_heads, width)
        .permute(0, 2, 3, 1, 4)
    )
    k_BGdS = k_BSGd.to(dtype).permute(0, 2, 3, 1)
    scores_BGRS = (q_BGgTd.flatten(2, 3) @ k_BGdS) * spec.scale
    if spec.softcap is not None:
        scores_BGRS = spec.softcap * torch.tanh(scores_BGRS / spec.softcap)
    return scores_BGRS.view(*q_BGgTd.shape[:-1], k_BSGd.shape[1])


def _mean(scores_BGgTS: Tensor, v_BGSd: Tensor) -> Attended:
    """Return the softmax-weighted mean of the values over the keys of one block."""
    top = scores_BGgTS.amax(-1, keepdim=True)
    weights = torch.exp(scores_BGgTS - torch.where(top == -torch.inf, 0.0, top))
    total = weights.sum(-1)
    empty = total == 0
    safe = torch.where(empty, 1.0, total)
    z_BGRd = (weights / safe.unsqueeze(-1)).flatten(2, 3) @ v_BGSd
    z = z_BGRd.view(*total.shape, v_BGSd.shape[-1])
    lse = torch.where(empty, -torch.inf, top.squeeze(-1) + torch.log(safe))
    return z.permute(0, 3, 1, 2, 4).flatten(2, 3), lse.permute(0, 3, 1, 2).flatten(2, 3)


def _hidden(
    spec: AttentionSpec,
    queries: int,
    keys: int,
    query_start: int,
    key_start: int,
    device: torch.device,
) -> Tensor | None:
    """Return ``[T, S]``, true where position alone hides the key; None where it hides none."""
    if not spec.causal and spec.window is None:
        return None
    i = torch.arange(query_start, query_start + queries, device=device)[:, None]
    j = torch.arange(key_start, key_start + keys, device=device)[None, :]
    hidden = torch.zeros(queries, keys, dtype=torch.bool, device=device)
    if spec.causal:
        hidden = hidden | (j > i)
    if spec.window is not None:
        hidden = hidden | ((i - j).abs() >= spec.window)
    return hidden


def _check(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, mask: Tensor | None, block: int
) -> None:
    keys = (q.shape[0], *k.shape[1:2])
    fits = (
        q.dim() == 4
        and tuple(q.shape[2:]) == (spec.heads, spec.head_width)
        and tuple(k.shape) == (*keys, spec.kv_heads, spec.head_width)
        and tuple(v.shape[:3]) == (*keys, spec.kv_heads)
        and v.shape[-1] == spec.head_width
        and (mask is None or tuple(mask.shape) == keys)
    )
    if not fits or block < 1:
        raise ModelError(
            f"attention over q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}, mask "
            f"{None if mask is None else list(mask.shape)} in blocks of {block} was asked; the "
            f"layer has {spec.heads} query heads and {spec.kv_heads} key heads of "
            f"{spec.head_width}, q is [B, T, H, d], k and v are [B, S, G, d], the mask is [B, "
            "S]. Nothing was computed.",
            kind="bad-input",
        )
