"""Products of rows and latents at the pairs of a pattern: values in encoding, their gradient in decoding.

Dimensions: R rows, D width, L latents, N active (row, latent) pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from jobs.kernels.codes.contract import OPS, Case, Shape


@OPS.register("sparse_values")
@dataclass(frozen=True, kw_only=True, slots=True)
class SparseValues:
    """``y_n = x[row_n] · w[latent_n]``, [N]: ``CodeOps.dots``.

    A sampled dense-dense product (SDDMM). With x the gradient of the reconstruction and ``w = W_dec`` it is
    decoding's gradient by the values; with x the rows and ``w = W_enc`` it is encoding at chosen pairs.

    Notes
    -----
    Source: Gao et al. (2406.04093), appendix D.2.
    """

    kind: ClassVar[str]
    product: ClassVar[str] = "dots"

    def reference(self, case: Case) -> Tensor:
        """Return ``(x_RD @ w_LD.T)[row, latent]``."""
        return (case.x @ case.w.t())[case.pattern.row, case.pattern.latent]

    def magnitude(self, case: Case) -> Tensor:
        """Return ``(|x_RD| @ |w_LD|.T)[row, latent]``."""
        return self.reference(case.magnitudes())

    def terms(self, case: Case) -> Tensor:
        """Return the width, []."""
        return torch.tensor(case.shape.width)

    def bytes(self, shape: Shape, *, latents_hit: int) -> int:
        """Return bytes of: pairs (int64 latent, float32 result), rows of ``w`` that are hit, x."""
        return 12 * shape.pairs + 4 * shape.width * (latents_hit + shape.rows)
