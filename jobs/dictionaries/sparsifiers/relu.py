"""ReLU: every positive pre-activation is active; how many there are is left to a penalty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.codes import Pattern
from jobs.dictionaries.contract import Frozen, Moment, Scores
from jobs.dictionaries.sparsifiers.cut import at_least, lowest_bits, score_bits
from jobs.dictionaries.sparsifiers.plain import positive_part


@dataclass(frozen=True)
class Relu:
    """Keeps every positive score."""

    def choose(self, scores: Scores, _when: Moment) -> Pattern:
        """Return all pairs with a positive score."""
        return above(scores, None)

    def value(self, pre_N: Tensor, _pattern: Pattern, _bias_L: Tensor) -> Tensor:
        """Return ``ReLU(π)``."""
        return positive_part(pre_N)

    def frozen(self, bias_L: Tensor) -> Frozen:
        """Return the pre-activations as they are, with thresholds of 0."""
        return Frozen(torch.ones_like(bias_L), bias_L, torch.zeros_like(bias_L))


def above(scores: Scores, floor_L: Tensor | None) -> Pattern:
    """Return the pairs whose score is positive and not below a floor of their latent's."""
    flat, bits = [], None
    for start, block_rL in scores.blocks():
        if bits is None:
            bits = lowest_bits(block_rL.dtype)
            if floor_L is not None:
                bits = score_bits(floor_L.detach().to(block_rL.dtype)).clamp(min=int(bits))
        flat.append(at_least(score_bits(block_rL), bits) + start * scores.latents)
    pairs = torch.cat(flat)
    row = pairs // scores.latents
    return Pattern(row, pairs - row * scores.latents, scores.rows, scores.latents)
