"""The linear decoder of sparse codes, with its gradient: no dense code is ever formed.

Dimensions: R rows, D width, L latents, N active (row, latent) pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jobs.codes import CodeOps, Pattern


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, w_LD: Tensor, pattern: Pattern, ops: CodeOps) -> Tensor:
        ctx.save_for_backward(value, w_LD)
        ctx.pattern, ctx.ops = pattern, ops
        return ops.gather_sum(pattern, value, w_LD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        value, w_LD = ctx.saved_tensors
        grad_RD = grads[0].contiguous()
        wants_value, wants_w = ctx.needs_input_grad[:2]
        grad_value = ctx.ops.dots(ctx.pattern, grad_RD, w_LD) if wants_value else None
        grad_w = ctx.ops.scatter_sum(ctx.pattern, value, grad_RD) if wants_w else None
        return grad_value, grad_w, None, None


def decode(value: Tensor, w_LD: Tensor, pattern: Pattern, ops: CodeOps) -> Tensor:
    """Return ``x̂_r = Σ value_n · w[latent_n]`` over the pairs n of row r, [R, D], without a bias.

    Differentiable in ``value`` [N] and ``w_LD``; costs 2·N·D operations each way.
    """
    out: Tensor = _Decode.apply(value, w_LD, pattern, ops)  # type: ignore[no-untyped-call]
    return out
