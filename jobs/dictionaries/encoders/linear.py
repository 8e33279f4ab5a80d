"""The linear encoder: cheap scores of every pair for selection, exact values of the chosen pairs.

Scores may be bfloat16 products, several times as fast where the CPU multiplies bfloat16; they only choose
pairs. Values and gradients are computed at the chosen pairs alone, in the dtype of the weights.

Dimensions: R rows, D width, L latents, N active (row, latent) pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jobs.codes import CodeOps, Pattern
from jobs.dictionaries.ranks import WHOLE, Share

BLOCK_SCORES = 1 << 21
"""Scores of one block: 4 MiB in bfloat16 stay in cache between product and selection."""


class Section(NamedTuple):
    """Some of the latents, and the columns of a row that they read."""

    latents: slice
    columns: slice


class LinearScores:
    """``x_RD @ w_LD.T + b_L`` in blocks of rows, without gradients, in float32 or a 2-byte float.

    Where latents read different columns, ``sections`` says which; a section's weights are ``w_LD[latents]``.
    """

    def __init__(
        self,
        x_RD: Tensor,
        w_LD: Tensor,
        b_L: Tensor,
        dtype: torch.dtype,
        sections: Sequence[Section] = (),
        share: Share = WHOLE,
    ) -> None:
        self.rows, self.latents = x_RD.shape[0], w_LD.shape[0]
        self._x_RD, self._w_LD, self._b_L = (t.detach().to(dtype) for t in (x_RD, w_LD, b_L))
        self._sections = sections if len(sections) > 1 else ()
        self.share = share

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, scores [r, L]); every block reuses the memory of the one before."""
        step = max(1, min(self.rows, max(64, BLOCK_SCORES // self.latents)))
        buffer_RL = self._x_RD.new_empty(step, self.latents)
        for start in range(0, self.rows, step):
            x_rD = self._x_RD[start : start + step]
            out_rL = buffer_RL[: len(x_rD)]
            with torch.no_grad():
                if not self._sections:
                    torch.addmm(self._b_L, x_rD, self._w_LD.t(), out=out_rL)
                for latents, columns in self._sections:
                    out_rL[:, latents] = torch.addmm(
                        self._b_L[latents], x_rD[:, columns], self._w_LD[latents].t()
                    )
            yield start, out_rL


class _PreActivations(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_RD: Tensor,
        _origin_D: Tensor | None,
        w_LD: Tensor,
        b_L: Tensor,
        pattern: Pattern,
        ops: CodeOps,
    ) -> Tensor:
        ctx.save_for_backward(x_RD, w_LD)
        ctx.pattern, ctx.ops = pattern, ops
        return ops.dots(pattern, x_RD, w_LD) + b_L[pattern.latent]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_RD, w_LD = ctx.saved_tensors
        grad, pattern, ops = grads[0].contiguous(), ctx.pattern, ctx.ops
        wants_x, wants_origin, wants_w, wants_b = ctx.needs_input_grad[:4]
        grad_x = ops.gather_sum(pattern, grad, w_LD) if wants_x else None
        grad_w = ops.scatter_sum(pattern, grad, x_RD) if wants_w else None
        grad_b = _sum_by_latent(pattern, grad, ops) if wants_b or wants_origin else None
        grad_origin = -(grad_b @ w_LD) if wants_origin and grad_b is not None else None
        return grad_x, grad_origin, grad_w, grad_b if wants_b else None, None, None


def _sum_by_latent(pattern: Pattern, grad: Tensor, ops: CodeOps) -> Tensor:
    return ops.scatter_sum(pattern, grad, grad.new_ones(pattern.rows, 1)).squeeze(1)


def pre_activations(
    x_RD: Tensor,
    w_LD: Tensor,
    b_L: Tensor,
    pattern: Pattern,
    ops: CodeOps,
    *,
    origin_D: Tensor | None = None,
) -> Tensor:
    """Return ``π_n = x[row_n] · w[latent_n] + b[latent_n]`` at the pairs n of a pattern, [N].

    Differentiable in ``x_RD``, ``w_LD`` and ``b_L``; costs 2·N·D operations each way. Where the rows were centred,
    ``origin_D`` is what was taken from each of them. The gradient it gets, ``−Σ_n grad_n · w[latent_n]``, is one
    product of the summed gradients with the weights, so rows that need no gradient of their own are best given
    detached.
    """
    out: Tensor = _PreActivations.apply(x_RD, origin_D, w_LD, b_L, pattern, ops)  # type: ignore[no-untyped-call]
    return out


def sectioned_pre_activations(
    x_RD: Tensor,
    w_LD: Tensor,
    b_L: Tensor,
    pattern: Pattern,
    ops: CodeOps,
    sections: Sequence[Section],
) -> Tensor:
    """Return ``pre_activations`` where latents read the columns of their section only, [N]."""
    parts, places = [], []
    for latents, columns in sections:
        at = ((pattern.latent >= latents.start) & (pattern.latent < latents.stop)).nonzero()[:, 0]
        size = latents.stop - latents.start
        mine = Pattern(pattern.row[at], pattern.latent[at] - latents.start, pattern.rows, size)
        x_rows = x_RD[:, columns].contiguous()
        parts.append(pre_activations(x_rows, w_LD[latents], b_L[latents], mine, ops))
        places.append(at)
    order = torch.cat(places).argsort()
    return torch.cat(parts)[order]
