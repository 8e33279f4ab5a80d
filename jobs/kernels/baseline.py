"""The dense baseline: what one gets without any of this, called the way that is fast."""

from __future__ import annotations

import torch
from torch import Tensor

from jobs.kernels.contract import QKV
from jobs.kernels.scores import dense


def backend(qkv: QKV) -> str:
    """Return which dense path a problem takes: PyTorch's fused attention, or our own blockwise one.

    The fused one knows neither soft caps nor, without giving up its fast kernel, windows; there ours is
    the baseline, and rows say so.
    """
    plain = qkv.softcap is None and qkv.window is None and qkv.query_start == 0
    square = qkv.q.shape[2] == qkv.k.shape[2]
    return "sdpa" if plain and (square or not qkv.causal) else "blockwise"


def run(qkv: QKV) -> Tensor:
    """Return dense attention ``[B, H, T, d]`` by the path `backend` names, grouped heads not expanded."""
    if backend(qkv) == "blockwise":
        return dense(qkv)[0]
    return torch.nn.functional.scaled_dot_product_attention(
        qkv.q,
        qkv.k,
        qkv.v,
        is_causal=qkv.causal,
        scale=qkv.scale,
        enable_gqa=qkv.groups != qkv.heads,
    )
