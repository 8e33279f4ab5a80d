"""Reshapes that the type checker can follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def unflatten(x: Tensor, dim: int, sizes: tuple[int, int]) -> Tensor:
    """Return ``x`` with one dimension cut in two, one of the sizes given as -1."""
    at = dim % x.dim()
    return x.reshape(*x.shape[:at], *sizes, *x.shape[at + 1 :])
