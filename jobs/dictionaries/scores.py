"""What selection compares: pre-activations as they are, by what they write, or by what they do to the loss.

Dimensions: R rows, D width, L latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jobs.dictionaries.encoders.linear import LinearScores
from jobs.errors import JobError

if TYPE_CHECKING:
    from jobs.dictionaries.contract import Scores, Weights


class Raw:
    """The pre-activations themselves."""

    def __call__(self, dictionary: Weights, x_RD: Tensor, _g_RD: Tensor | None) -> Scores:
        """Return the scores of rows."""
        return dictionary.linear_scores(x_RD)

    def norms(self, _dictionary: Weights) -> Tensor | None:
        """Return what pre-activations are multiplied by where no gradient is at hand, [L]; None: nothing."""
        return None


class BySourceNorms:
    """``π_i · Σ_s ‖d_i^s‖`` over the outputs s: what a latent would write in all of them."""

    def __call__(self, dictionary: Weights, x_RD: Tensor, _g_RD: Tensor | None) -> Scores:
        """Return the scores of rows."""
        return dictionary.linear_scores(x_RD, self.norms(dictionary))

    def norms(self, dictionary: Weights) -> Tensor:
        """Return the norms, [L]."""
        return dictionary.source_norms().detach().sum(dim=1)


@dataclass(frozen=True)
class ByGradient:
    """``z + β z|g·d|`` with ``z = ReLU(π)``: size, and the first-order effect on the model's loss.

    ``β = weight · E[z] / E[z|g·d|]`` over the first block of rows, so both parts weigh alike at weight 1 and nothing
    depends on how the loss was reduced. Weight 0 gives the pre-activations themselves, bit for bit.
    """

    weight: float

    def norms(self, _dictionary: Weights) -> Tensor | None:
        """Return None: without gradients, pre-activations are compared as they are."""
        return None

    def __call__(self, dictionary: Weights, x_RD: Tensor, g_RD: Tensor | None) -> Scores:
        """Return the scores of rows with their gradients."""
        if g_RD is None:
            raise JobError(
                "a dictionary that selects by gradients was given rows without any. Nothing was changed. Name the "
                "column of gradients (--gradient), or train another variant.",
                kind="no-gradient",
            )
        none_L = torch.zeros_like(dictionary.b_enc_L)
        dtype = dictionary.compute_dtype
        effect = LinearScores(
            g_RD, dictionary.w_dec_LD.detach(), none_L, dtype, (), dictionary.share
        )
        return _Weighted(dictionary.linear_scores(x_RD), effect, self.weight)


class _Weighted:
    """Scores times one plus β times the size of others."""

    def __init__(self, own: Scores, effect: Scores, weight: float) -> None:
        self.rows, self.latents, self.share = own.rows, own.latents, own.share
        self._own, self._effect, self._weight = own, effect, weight

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        beta: float | None = None
        for (start, score_rL), (_, effect_rL) in zip(
            self._own.blocks(), self._effect.blocks(), strict=True
        ):
            effect_rL.abs_()
            if beta is None:
                code_rL = torch.relu(score_rL).float()
                sums = torch.stack([code_rL.sum(), (code_rL * effect_rL).sum()])
                codes, both = self.share.ranks.sum(sums).tolist()
                beta = self._weight * codes / both if both > 0 else 0.0
            score_rL.mul_(effect_rL.mul_(beta).add_(1))
            yield start, score_rL
