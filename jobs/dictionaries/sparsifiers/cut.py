"""Exact cuts of positive scores: the largest so many, ties to the earlier pair.

Positive float32 numbers order as their bit patterns do, so a histogram over the top 12 bits below the sign
finds the bin of the cut and a sort of that bin alone finds the cut. Histograms add up, so ranks that
hold different rows can agree on one cut by summing counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 4096
_SHIFT = 31 - 12  # bits below the bin number; the sign bit of a positive number is 0


def float_bits(score: Tensor) -> Tensor:
    """Return the bit patterns of positive scores, int32, in the order of the scores."""
    return score.float().contiguous().view(torch.int32)


def histogram_cut(bits: Tensor, keep: int) -> tuple[int, int]:
    """Return the ``keep``-th largest of int32 bit patterns, and how many equal to it are kept.

    ``1 <= keep <= len(bits)``. One counting pass, then a sort of one bin of the histogram.
    """
    bins = bits >> _SHIFT
    counts = torch.bincount(bins, minlength=BINS)
    at_least = counts.flip(0).cumsum(0).flip(0)
    edge_bin = int((at_least >= keep).sum()) - 1
    above = int(at_least[edge_bin] - counts[edge_bin])
    inside = bits[bins == edge_bin].sort(descending=True).values
    edge = int(inside[keep - above - 1])
    return edge, keep - above - int((inside > edge).sum())


def keep_largest(score: Tensor, keep: int) -> Tensor:
    """Return which of the positive scores [N] are the ``keep`` largest, bool [N].

    Among equal scores the earlier ones are kept. Fewer than ``keep`` scores are all kept.
    """
    if len(score) <= keep:
        return torch.ones_like(score, dtype=torch.bool)
    bits = float_bits(score)
    edge, ties = histogram_cut(bits, keep)
    kept = bits > edge
    kept[(bits == edge).nonzero().squeeze(1)[:ties]] = True
    return kept


def floor_of(dtype: torch.dtype) -> float:
    """Return the smallest score that counts as positive: the smallest normal number."""
    return torch.finfo(dtype).smallest_normal
