"""The gradient of a weight matrix that a code multiplies.

Dimensions: R rows, D width, L latents, N active (row, latent) pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from jobs.kernels.codes.contract import OPS, Case, Shape


@OPS.register("sparse_backward")
@dataclass(frozen=True, kw_only=True, slots=True)
class SparseBackward:
    """``dw_l = Σ value_n · x[row_n]`` over the pairs n of latent l, [L, D]: ``CodeOps.scatter_sum``.

    With x the gradient of the reconstruction and the codes as values it is decoding's gradient by ``W_dec``; with x
    the rows and the gradient of the codes as values it is encoding's gradient by ``W_enc``. Both walk the pairs in
    the order of their latents, which is found once (one stable sort): sums have a fixed order, so results repeat
    bit for bit, where atomic additions would not.

    Notes
    -----
    Source: Gao et al. (2406.04093), appendix D.2; the sorted form instead of atomics is ours.
    """

    kind: ClassVar[str]
    product: ClassVar[str] = "scatter_sum"

    def reference(self, case: Case) -> Tensor:
        """Return ``z_RL.T @ x_RD``."""
        return case.dense().t() @ case.x

    def magnitude(self, case: Case) -> Tensor:
        """Return ``|z_RL|.T @ |x_RD|``."""
        return case.magnitudes().dense().t() @ case.x.abs()

    def terms(self, case: Case) -> Tensor:
        """Return the pairs of each latent, [L, 1]."""
        return torch.bincount(case.pattern.latent, minlength=case.pattern.latents).unsqueeze(1)

    def bytes(self, shape: Shape, *, latents_hit: int) -> int:
        """Return bytes of: pairs (int64 row, float32 value), x, the whole result (zero where not hit)."""
        assert latents_hit <= shape.latents
        return 12 * shape.pairs + 4 * shape.width * (shape.rows + shape.latents)
