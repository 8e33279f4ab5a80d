"""TopK: the k largest scores of each row, exactly, without sorting rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jobs.codes import Pattern
from jobs.dictionaries.contract import Frozen, Moment, Scores
from jobs.dictionaries.sparsifiers.cut import at_least, float_bits, lowest_bits, score_bits
from jobs.dictionaries.sparsifiers.plain import one_threshold, positive_part

GROUPS_PER_KEPT = 4
LARGEST_GROUP = 16
"""With 16 latents a group and four groups per kept latent, few more than k candidates remain."""


@dataclass(frozen=True)
class RowTopK:
    """Keeps the ``k`` largest positive scores of each row."""

    k: int

    def choose(self, scores: Scores, _when: Moment) -> Pattern:
        """Return ``row_topk`` of the scores."""
        return row_topk(scores, self.k)

    def value(self, pre_N: Tensor, _pattern: Pattern, _bias_L: Tensor) -> Tensor:
        """Return ``ReLU(π)``."""
        return positive_part(pre_N)

    def frozen(self, bias_L: Tensor) -> Frozen:
        """Return the pre-activations as they are; the threshold is to be set."""
        return one_threshold(bias_L)


def row_topk(scores: Scores, k: int) -> Pattern:
    """Return the ``k`` largest positive scores of each row, or all of them where there are fewer.

    Ties go to the smaller latent. A row's k-th largest group maximum bounds its k-th largest score
    from below, so only scores above that bound are ordered.

    Notes
    -----
    Source: Gao et al., "Scaling and Evaluating Sparse Autoencoders" (2406.04093), section 2.3.
    """
    flat, kept = [], []
    for start, block_rL in scores.blocks():
        bits_rL = score_bits(block_rL)
        found = at_least(bits_rL, _row_floors(bits_rL, k, lowest_bits(block_rL.dtype)))
        kept.append(block_rL.flatten().index_select(0, found))
        flat.append(found + start * scores.latents)
    pairs = torch.cat(flat)
    row = pairs // scores.latents
    chosen = _first_k(row, torch.cat(kept), k, scores.rows)
    if scores.share.latents is not None:
        best = torch.cat(kept)[chosen].float()
        chosen = chosen[_among_ranks(row[chosen], best, k, scores)]
    row, pairs = row[chosen], pairs[chosen]
    return Pattern(row, pairs - row * scores.latents, scores.rows, scores.latents)


def _among_ranks(row: Tensor, score: Tensor, k: int, scores: Scores) -> Tensor:
    """Return the positions of a rank's candidates, ordered by row, that are among the k best of all ranks' candidates."""
    ranks = scores.share.ranks
    counts = torch.bincount(row, minlength=scores.rows)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    table_RK = score.new_zeros(scores.rows, k)
    table_RK[row, place] = score
    every = torch.cat(
        ranks.collect(table_RK.t().contiguous())
    ).t()  # [R, world·k], ranks in order of latents
    order = torch.sort(every, dim=1, descending=True, stable=True).indices[:, :k]
    mine = torch.zeros_like(every, dtype=torch.bool).scatter_(1, order, value=True)
    mine_RK = mine[:, ranks.rank * k : (ranks.rank + 1) * k]
    return mine_RK[row, place].nonzero().squeeze(1)


def _row_floors(bits_rL: Tensor, k: int, lowest: Tensor) -> Tensor:
    """Return bits [r, 1]: at least k scores of a row are not below its floor, unless it is the lowest."""
    latents = bits_rL.shape[1]
    if k >= latents:
        return lowest
    size = max(1, min(LARGEST_GROUP, latents // (GROUPS_PER_KEPT * k)))
    groups = latents // size
    maxima_rG = bits_rL[:, : groups * size].view(-1, size, groups).amax(dim=1)
    return _kth_largest(maxima_rG, k).clamp(min=int(lowest))


def _kth_largest(values_rG: Tensor, k: int) -> Tensor:
    """Return the k-th largest of each row, [r, 1]. On a CPU NumPy's selection is 4 times as fast."""
    if values_rG.device.type != "cpu":
        return values_rG.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    place = values_rG.shape[1] - k
    return torch.from_numpy(np.partition(values_rG.numpy(), place, axis=1)[:, place : place + 1])


def _first_k(row: Tensor, score: Tensor, k: int, rows: int) -> Tensor:
    """Return the positions, ascending, of the k best candidates of each row."""
    falling = torch.iinfo(torch.int32).max - float_bits(score).long()
    order = torch.sort((row << 31) | falling, stable=True).indices
    counts = torch.bincount(row, minlength=rows)
    rank = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    return order[rank < k].sort().values
