"""Sparse codes: which latents are active in which rows, and the products a dictionary is made of.

Dimensions: R rows, D width, L latents, N active (row, latent) pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

if TYPE_CHECKING:
    from numpy.typing import NDArray


def positions(mask: Tensor) -> Tensor:
    """Return the flat row-major positions of the true entries, int64, ascending.

    On a CPU NumPy's scan is five times as fast as torch's (25 M entries, two cores: 9 and 50 ms).
    """
    if mask.device.type != "cpu":
        return mask.flatten().nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


@dataclass(frozen=True, slots=True)
class Codes:
    """Active latents of a block of rows, sorted by (row, latent).

    ``row_index`` int64[N] counts from the block's first row; ``latent`` is uint32[N]; ``value`` is
    float32[N] in the units of the rows. Arrays are read-only.
    """

    row_index: NDArray[np.int64]
    latent: NDArray[np.uint32]
    value: NDArray[np.float32]

    def __post_init__(self) -> None:
        for array in (self.row_index, self.latent, self.value):
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.value)


@dataclass(frozen=True)
class Pattern:
    """Which latents are active in which rows: pairs sorted by (row, latent), without their values.

    ``row`` and ``latent`` are int64[N] on one device. What the operations derive from a pattern is
    kept, so that forward and backward sort once.
    """

    row: Tensor
    latent: Tensor
    rows: int
    latents: int

    @cached_property
    def flat(self) -> Tensor:
        """Places of the pairs in the matrix [R, L], int64[N]."""
        return self.row * self.latents + self.latent

    @cached_property
    def row_starts(self) -> Tensor:
        """First pair of each row, int64[R]."""
        return _starts(self.row, self.rows)

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs in (latent, row) order, their rows in it, and the first pair of each latent."""
        order = torch.sort(self.latent.int(), stable=True).indices
        return order, self.row[order], _starts(self.latent, self.latents)


def _starts(index_N: Tensor, groups: int) -> Tensor:
    counts = torch.bincount(index_N, minlength=groups)
    return counts.cumsum(0) - counts


class CodeOps(Protocol):
    """The three products of a sparse code, each linear in its values; each is the others' gradient.

    ``z_RL`` stands for the dense matrix with ``value_N`` at the pairs of the pattern and zero
    elsewhere. Results have the dtype of the input and repeat bit for bit on one machine.
    """

    def gather_sum(self, pattern: Pattern, value_N: Tensor, w_LD: Tensor) -> Tensor:
        """Return ``z_RL @ w_LD``: decoding, [R, D]."""
        ...

    def scatter_sum(self, pattern: Pattern, value_N: Tensor, x_RD: Tensor) -> Tensor:
        """Return ``z_RL.T @ x_RD``: the gradient of a weight matrix, [L, D]."""
        ...

    def dots(self, pattern: Pattern, x_RD: Tensor, w_LD: Tensor) -> Tensor:
        """Return the entries of ``x_RD @ w_LD.T`` at the pairs of the pattern: encoding, [N]."""
        ...


class PlainCodeOps:
    """``CodeOps`` by embedding bags: one gather per pair, no dense code, deterministic.

    At D 384, L 6144, 4096 rows and 32 pairs a row each takes 2 to 4 ms on two cores, where the
    dense bfloat16 product takes 55 ms.
    """

    def gather_sum(self, pattern: Pattern, value_N: Tensor, w_LD: Tensor) -> Tensor:
        """Return ``z_RL @ w_LD``, [R, D]."""
        return _bags(pattern.latent, value_N, pattern.row_starts, w_LD)

    def scatter_sum(self, pattern: Pattern, value_N: Tensor, x_RD: Tensor) -> Tensor:
        """Return ``z_RL.T @ x_RD``, [L, D]."""
        order, row_N, starts = pattern.by_latent
        return _bags(row_N, value_N[order], starts, x_RD)

    def dots(self, pattern: Pattern, x_RD: Tensor, w_LD: Tensor) -> Tensor:
        """Return ``(x_RD @ w_LD.T)[row, latent]``, [N]: decoding's gradient by its values."""
        with torch.enable_grad():
            value_N = torch.zeros(len(pattern.row), dtype=w_LD.dtype, device=w_LD.device)
            value_N.requires_grad_()
            sums_RD = _bags(pattern.latent, value_N, pattern.row_starts, w_LD.detach())
            return torch.autograd.grad(sums_RD, value_N, x_RD.detach().contiguous())[0]


def _bags(index_N: Tensor, value_N: Tensor, starts_G: Tensor, table: Tensor) -> Tensor:
    return embedding_bag(index_N, table, starts_G, mode="sum", per_sample_weights=value_N)


FULL = 8
"""Latents per active pair below which a code is multiplied as a whole matrix. Measured on two cores with AVX-512 and
bfloat16 (4096 x 384 x 6144): at 4 the whole bfloat16 matrix is 1.9 times as fast in ``scatter_sum`` and 1.5 times in
``dots``, at 8 about as fast, at 16 half as fast."""


class CodeOpsByShare:
    """``CodeOps`` that take another form where a code is nearly full: what dictionaries are before a penalty bites.

    Parameters
    ----------
    sparse
        For codes of few pairs.
    dtype
        In which whole matrices are multiplied; the result has the dtype of the input.
    """

    def __init__(self, sparse: CodeOps, dtype: torch.dtype) -> None:
        self.sparse, self.dtype = sparse, dtype

    def gather_sum(self, pattern: Pattern, value_N: Tensor, w_LD: Tensor) -> Tensor:
        """Return ``z_RL @ w_LD``, [R, D]."""
        if not _is_full(pattern):
            return self.sparse.gather_sum(pattern, value_N, w_LD)
        return (self._whole(pattern, value_N) @ w_LD.to(self.dtype)).to(w_LD.dtype)

    def scatter_sum(self, pattern: Pattern, value_N: Tensor, x_RD: Tensor) -> Tensor:
        """Return ``z_RL.T @ x_RD``, [L, D]."""
        if not _is_full(pattern):
            return self.sparse.scatter_sum(pattern, value_N, x_RD)
        return (self._whole(pattern, value_N).t() @ x_RD.to(self.dtype)).to(x_RD.dtype)

    def dots(self, pattern: Pattern, x_RD: Tensor, w_LD: Tensor) -> Tensor:
        """Return the entries of ``x_RD @ w_LD.T`` at the pairs, [N]."""
        if not _is_full(pattern):
            return self.sparse.dots(pattern, x_RD, w_LD)
        whole_RL = x_RD.to(self.dtype) @ w_LD.to(self.dtype).t()
        return whole_RL.view(-1)[pattern.flat].to(x_RD.dtype)

    def _whole(self, pattern: Pattern, value_N: Tensor) -> Tensor:
        z = torch.zeros(pattern.rows * pattern.latents, dtype=self.dtype, device=value_N.device)
        z[pattern.flat] = value_N.to(self.dtype)
        return z.view(pattern.rows, pattern.latents)


def _is_full(pattern: Pattern) -> bool:
    return pattern.rows * pattern.latents < FULL * len(pattern.row)
