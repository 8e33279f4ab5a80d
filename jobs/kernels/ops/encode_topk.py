"""Encoding with the k largest latents of each row.

Dimensions: R rows, D width, L latents, N active (row, latent) pairs, K kept a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from jobs.codes import Pattern
from jobs.kernels.codes.contract import OPS


@OPS.register("encode_topk")
@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeTopK:
    """The pairs of the k largest positive ``π = x w.T + b`` of each row, fewer where fewer are positive.

    2·R·D·L operations; the scores, R·L of them, need never leave the cache. Which pairs are chosen may differ
    between forms where scores are closer than they are exact, so forms are compared by the scores they choose.

    Notes
    -----
    Source: Gao et al., "Scaling and Evaluating Sparse Autoencoders" (2406.04093), section 2.3.
    """

    kind: ClassVar[str]

    def reference(self, x_RD: Tensor, w_LD: Tensor, b_L: Tensor, k: int) -> Pattern:
        """Return the pairs by ``torch.topk`` over the whole matrix of scores, in the inputs' dtype."""
        scores_RL = torch.addmm(b_L, x_RD, w_LD.t())
        top = scores_RL.topk(min(k, len(w_LD)), dim=1)
        kept_RL = torch.zeros_like(scores_RL, dtype=torch.bool)
        kept_RL.scatter_(1, top.indices, top.values > 0)
        row, latent = kept_RL.nonzero(as_tuple=True)
        return Pattern(row, latent, len(x_RD), len(w_LD))

    def shortfall(self, found: Pattern, x_RD: Tensor, w_LD: Tensor, b_L: Tensor, k: int) -> Tensor:
        """Return by how much the scores chosen lag the best ones, rank by rank in each row, [R, K]."""
        scores_RL = torch.addmm(b_L, x_RD, w_LD.t())
        best_RK = torch.relu(scores_RL.topk(min(k, len(w_LD)), dim=1).values)
        chosen_RL = torch.zeros_like(scores_RL)
        chosen_RL[found.row, found.latent] = scores_RL[found.row, found.latent]
        chosen_RK = torch.relu(chosen_RL.topk(best_RK.shape[1], dim=1).values)
        return best_RK - chosen_RK

    def flops(self, rows: int, width: int, latents: int) -> int:
        """Return the operations of the scores, 2·R·D·L."""
        return 2 * rows * width * latents
