"""BatchTopK: the R·k largest scores of a whole batch, exactly, without holding all scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.codes import Pattern
from jobs.dictionaries.contract import Frozen, Moment, Scores
from jobs.dictionaries.ranks import Share
from jobs.dictionaries.sparsifiers.cut import (
    at_least,
    float_bits,
    histogram_cut,
    keep_largest,
    lowest_bits,
    score_bits,
)
from jobs.dictionaries.sparsifiers.plain import one_threshold, positive_part

SAMPLE_ROWS = 64
"""Rows whose own cut guesses the batch's. A wrong guess costs another pass, never a wrong answer."""
SLACKS = (1.3, 4.0, math.inf)
"""How many times the budget the guess lets through, pass after pass; infinity lets all positives in."""


@dataclass(frozen=True)
class BatchTopK:
    """Keeps the ``R·k`` largest positive scores of a batch of R rows."""

    k: int

    def choose(self, scores: Scores, _when: Moment) -> Pattern:
        """Return ``batch_topk`` of the scores."""
        return batch_topk(scores, self.k)

    def value(self, pre_N: Tensor, _pattern: Pattern, _bias_L: Tensor) -> Tensor:
        """Return ``ReLU(π)``."""
        return positive_part(pre_N)

    def frozen(self, bias_L: Tensor) -> Frozen:
        """Return the pre-activations as they are; the threshold is to be set."""
        return one_threshold(bias_L)


def batch_topk(scores: Scores, k: int) -> Pattern:
    """Return the ``rows·k`` largest positive scores of the batch, or all of them where there are fewer.

    Ties go to the smaller (row, latent). At 4096 x 6144 the product and this cut take 57 ms together
    on two cores where a flat ``topk`` alone takes 345 ms.

    Notes
    -----
    Source: Bussmann, Leask, Nanda, "BatchTopK Sparse Autoencoders" (2412.06410), equation 3.
    """
    flat = largest_pairs(scores, k)
    row = flat // scores.latents
    return Pattern(row, flat - row * scores.latents, scores.rows, scores.latents)


def largest_pairs(scores: Scores, k: int) -> Tensor:
    """Return the flat positions, int64, ascending, of the pairs ``batch_topk`` keeps of this rank's part."""
    share = scores.share
    keep = share.rows(scores.rows) * k
    for slack in SLACKS:
        flat, score = _candidates(scores, k * slack)
        if int(share.ranks.sum(torch.tensor([len(flat)], device=flat.device))) >= keep:
            break
    return flat[keep_largest(score, keep, flat, scores.latents, share)]


def _candidates(scores: Scores, per_row: float) -> tuple[Tensor, Tensor]:
    """Return flat positions and values of all scores not below a floor guessed from the first rows."""
    flat, kept, floor = [], [], None
    for start, block_rL in scores.blocks():
        if floor is None:
            floor = _agreed(_guess(block_rL[:SAMPLE_ROWS], per_row), scores.share)
        found = at_least(score_bits(block_rL), floor)
        kept.append(block_rL.flatten().index_select(0, found).float())
        flat.append(found + start * scores.latents)
    return torch.cat(flat), torch.cat(kept)


def _agreed(floor: Tensor, share: Share) -> Tensor:
    """Return the lowest of the ranks' floors, so that what lies above it is complete."""
    return -share.ranks.largest(-floor.int()).to(floor.dtype)


def _guess(sample_rL: Tensor, per_row: float) -> Tensor:
    """Return the bits of the score that lets through ``per_row`` pairs a row of the sample."""
    lowest = lowest_bits(sample_rL.dtype)
    found = at_least(score_bits(sample_rL), lowest)
    keep = len(sample_rL) * per_row
    if keep >= len(found):
        return lowest
    edge, _ = histogram_cut(float_bits(sample_rL.flatten()[found]), math.ceil(keep))
    value = torch.tensor(edge, dtype=torch.int32).view(torch.float32)
    return score_bits(value.to(sample_rL.dtype))
