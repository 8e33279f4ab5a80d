"""Decoding: the rows that codes stand for.

Dimensions: R rows, D width, L latents, N active (row, latent) pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from jobs.kernels.codes.contract import OPS, Case, Shape


@OPS.register("sparse_decode")
@dataclass(frozen=True, kw_only=True, slots=True)
class SparseDecode:
    """``x̂_r = Σ value_n · w[latent_n]`` over the pairs n of row r, [R, D]: ``CodeOps.gather_sum``.

    2·N·D operations where the dense product takes 2·R·L·D. A pair reads one row of ``w``; rows that several
    pairs read come from a cache, so what must move is each row of ``w`` that is hit, once.

    Notes
    -----
    Source: Gao et al., "Scaling and Evaluating Sparse Autoencoders" (2406.04093), appendix D.2.
    """

    kind: ClassVar[str]
    product: ClassVar[str] = "gather_sum"

    def reference(self, case: Case) -> Tensor:
        """Return ``z_RL @ w_LD``."""
        return case.dense() @ case.w

    def magnitude(self, case: Case) -> Tensor:
        """Return ``|z_RL| @ |w_LD|``."""
        return case.magnitudes().dense() @ case.w.abs()

    def terms(self, case: Case) -> Tensor:
        """Return the pairs of each row, [R, 1]."""
        return torch.bincount(case.pattern.row, minlength=case.pattern.rows).unsqueeze(1)

    def bytes(self, shape: Shape, *, latents_hit: int) -> int:
        """Return bytes of: pairs (int64 latent, float32 value), rows of ``w`` that are hit, result."""
        return 12 * shape.pairs + 4 * shape.width * (latents_hit + shape.rows)
