"""Code products over the whole matrix of codes: what sparse forms have to beat.

Dimensions: R rows, D width, L latents, N active (row, latent) pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from jobs.codes import Pattern
from jobs.kernels.codes.contract import FORMS, PRODUCTS


@FORMS.register("dense")
@dataclass(frozen=True, kw_only=True, slots=True)
class Dense:
    """The code written out as [R, L] and multiplied, in the dtype of the input.

    Weights that are not finite spread to rows that do not use them, as 0 · NaN is NaN.
    """

    kind: ClassVar[str]
    dense: ClassVar[bool] = True
    rounding: ClassVar[str] = "input"
    products: ClassVar[tuple[str, ...]] = PRODUCTS
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def gather_sum(self, pattern: Pattern, value_N: Tensor, w_LD: Tensor) -> Tensor:
        """Return ``z_RL @ w_LD``, [R, D]."""
        return _written_out(pattern, value_N, w_LD.dtype) @ w_LD

    def scatter_sum(self, pattern: Pattern, value_N: Tensor, x_RD: Tensor) -> Tensor:
        """Return ``z_RL.T @ x_RD``, [L, D]."""
        return _written_out_by_latent(pattern, value_N, x_RD.dtype) @ x_RD

    def dots(self, pattern: Pattern, x_RD: Tensor, w_LD: Tensor) -> Tensor:
        """Return ``(x_RD @ w_LD.T)[row, latent]``, [N]."""
        return (x_RD @ w_LD.t()).view(-1)[_flat(pattern)]


@FORMS.register("dense_bfloat16")
@dataclass(frozen=True, kw_only=True, slots=True)
class DenseBfloat16:
    """As ``Dense``, with both factors rounded to bfloat16 first and the result rounded to it: 3 digits.

    What a dictionary trained under automatic mixed precision computes; the result is returned in the dtype of
    the input.
    """

    kind: ClassVar[str]
    dense: ClassVar[bool] = True
    rounding: ClassVar[str] = "bfloat16"
    products: ClassVar[tuple[str, ...]] = PRODUCTS
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def gather_sum(self, pattern: Pattern, value_N: Tensor, w_LD: Tensor) -> Tensor:
        """Return ``z_RL @ w_LD``, [R, D]."""
        out_RD = _written_out(pattern, value_N, torch.bfloat16) @ w_LD.bfloat16()
        return out_RD.to(w_LD.dtype)

    def scatter_sum(self, pattern: Pattern, value_N: Tensor, x_RD: Tensor) -> Tensor:
        """Return ``z_RL.T @ x_RD``, [L, D]."""
        out_LD = _written_out_by_latent(pattern, value_N, torch.bfloat16) @ x_RD.bfloat16()
        return out_LD.to(x_RD.dtype)

    def dots(self, pattern: Pattern, x_RD: Tensor, w_LD: Tensor) -> Tensor:
        """Return ``(x_RD @ w_LD.T)[row, latent]``, [N]."""
        scores_RL = x_RD.bfloat16() @ w_LD.bfloat16().t()
        return scores_RL.view(-1)[_flat(pattern)].to(x_RD.dtype)


def _flat(pattern: Pattern) -> Tensor:
    return pattern.row * pattern.latents + pattern.latent


def _written_out(pattern: Pattern, value_N: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the matrix [R, L] of a code; neighbouring pairs that repeat add up, in the dtype of the values."""
    flat_N = _flat(pattern)
    repeated = bool((flat_N[1:] == flat_N[:-1]).any())
    z = _filled(flat_N, value_N, pattern.rows * pattern.latents, dtype, repeated=repeated)
    return z.view(pattern.rows, pattern.latents)


def _written_out_by_latent(pattern: Pattern, value_N: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the matrix [L, R] of a code: multiplied as it lies it is half as fast again as a transposed view."""
    flat_N = _flat(pattern)
    repeated = bool((flat_N[1:] == flat_N[:-1]).any())
    turned_N = pattern.latent * pattern.rows + pattern.row
    z = _filled(turned_N, value_N, pattern.rows * pattern.latents, dtype, repeated=repeated)
    return z.view(pattern.latents, pattern.rows)


def _filled(
    at_N: Tensor, value_N: Tensor, size: int, dtype: torch.dtype, *, repeated: bool
) -> Tensor:
    """Return zeros with values at some places."""
    if repeated:
        return value_N.new_zeros(size).scatter_add_(0, at_N, value_N).to(dtype)
    z = value_N.new_zeros(
        size, dtype=dtype
    )  # several times as fast, and half the memory in bfloat16
    z[at_N] = value_N.to(dtype)
    return z
