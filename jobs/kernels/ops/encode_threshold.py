"""Encoding with one threshold for a whole batch, set so that k latents a row are kept on average.

Dimensions: R rows, D width, L latents, N active (row, latent) pairs, K kept a row on average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from jobs.codes import Pattern
from jobs.kernels.codes.contract import OPS


@OPS.register("encode_threshold")
@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeThreshold:
    """The pairs of the R·k largest positive ``π = x w.T + b`` of a batch, fewer where fewer are positive.

    2·R·D·L operations and one cut through R·L scores. Forms are compared by the scores they choose, as ties and
    near-ties may fall either way.

    Notes
    -----
    Source: Bussmann, Leask, Nanda, "BatchTopK Sparse Autoencoders" (2412.06410), equation 3.
    """

    kind: ClassVar[str]

    def reference(self, x_RD: Tensor, w_LD: Tensor, b_L: Tensor, k: int) -> Pattern:
        """Return the pairs by one flat ``torch.topk`` over all scores, in the inputs' dtype."""
        scores = torch.addmm(b_L, x_RD, w_LD.t()).flatten()
        top = scores.topk(min(k * len(x_RD), len(scores)))
        flat = top.indices[top.values > 0].sort().values
        row = flat // len(w_LD)
        return Pattern(row, flat - row * len(w_LD), len(x_RD), len(w_LD))

    def shortfall(self, found: Pattern, x_RD: Tensor, w_LD: Tensor, b_L: Tensor, k: int) -> Tensor:
        """Return by how much the scores chosen lag the best ones, rank by rank, [R·K]."""
        scores_RL = torch.addmm(b_L, x_RD, w_LD.t())
        keep = min(k * len(x_RD), scores_RL.numel())
        best = torch.relu(scores_RL.flatten().topk(keep).values)
        chosen_RL = torch.zeros_like(scores_RL)
        chosen_RL[found.row, found.latent] = scores_RL[found.row, found.latent]
        return best - torch.relu(chosen_RL.flatten().topk(keep).values)

    def flops(self, rows: int, width: int, latents: int) -> int:
        """Return the operations of the scores, 2·R·D·L."""
        return 2 * rows * width * latents
