"""TopK: the k largest scores of each row, exactly, without sorting rows."""

from __future__ import annotations

import torch
from torch import Tensor

from jobs.codebook import Pattern, positions
from jobs.dictionaries.contract import Scores
from jobs.dictionaries.sparsifiers.cut import float_bits, floor_of

GROUPS_PER_KEPT = 4
LARGEST_GROUP = 16
"""With 16 latents a group and four groups per kept latent, few more than k candidates remain."""


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
        found = positions(block_rL >= _row_floors(block_rL, k))
        kept.append(block_rL.flatten()[found])
        flat.append(found + start * scores.latents)
    pairs = torch.cat(flat)
    row = pairs // scores.latents
    chosen = _first_k(row, torch.cat(kept), k, scores.rows)
    row, pairs = row[chosen], pairs[chosen]
    return Pattern(row, pairs - row * scores.latents, scores.rows, scores.latents)


def _row_floors(block_rL: Tensor, k: int) -> Tensor:
    """Return [r, 1]: at least k scores of a row are not below its floor, unless it is the lowest."""
    latents, lowest = block_rL.shape[1], floor_of(block_rL.dtype)
    if k >= latents:
        return torch.full_like(block_rL[:, :1], lowest)
    size = max(1, min(LARGEST_GROUP, latents // (GROUPS_PER_KEPT * k)))
    groups = latents // size
    maxima_rG = block_rL[:, : groups * size].view(-1, size, groups).amax(dim=1)
    return maxima_rG.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True).clamp_(min=lowest)


def _first_k(row: Tensor, score: Tensor, k: int, rows: int) -> Tensor:
    """Return the positions, ascending, of the k best candidates of each row."""
    falling = torch.iinfo(torch.int32).max - float_bits(score).long()
    order = torch.sort((row << 31) | falling, stable=True).indices
    counts = torch.bincount(row, minlength=rows)
    rank = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    return order[rank < k].sort().values
