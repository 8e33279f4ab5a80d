"""MinFire: BatchTopK in which every latent gets its turn to fire.

Dimensions: R rows, L latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.codes import Pattern
from jobs.dictionaries.contract import Frozen, Moment, Scores
from jobs.dictionaries.sparsifiers.batch_topk import largest_pairs
from jobs.dictionaries.sparsifiers.cut import keep_largest
from jobs.dictionaries.sparsifiers.plain import one_threshold, positive_part

FORCED_SHARE = 0.7
"""Largest share of a batch's budget that guaranteed pairs may take."""
FREE_SHARE = 0.1
"""Last share of a run, in which nothing is guaranteed, so that the threshold fits what is exported."""


@dataclass(frozen=True)
class MinFire:
    """Guarantees one latent in ``period`` its strongest row; the rest of ``R·k`` goes to the largest scores.

    Parameters
    ----------
    k
        Mean active latents of a row.
    period
        Steps after which every latent had its turn; None: the fewest for which guarantees take 70 % of the budget; 0: no
        guarantees.
    """

    k: int
    period: int | None

    def choose(self, scores: Scores, when: Moment) -> Pattern:
        """Return the guaranteed pairs and, up to the budget, the largest others."""
        budget, latents = scores.share.rows(scores.rows) * self.k, scores.latents
        period = self.period
        if period is None:
            period = math.ceil(_everything(scores) / (FORCED_SHARE * budget))
        flat = largest_pairs(scores, self.k)
        if period > 0 and when.share < 1 - FREE_SHARE:
            forced = _strongest(scores, torch.arange(when.step % period, latents, period))
            flat = _with(scores, flat, forced, budget)
        row = flat // latents
        return Pattern(row, flat - row * latents, scores.rows, latents)

    def value(self, pre_N: Tensor, _pattern: Pattern, _bias_L: Tensor) -> Tensor:
        """Return ``ReLU(π)``."""
        return positive_part(pre_N)

    def frozen(self, bias_L: Tensor) -> Frozen:
        """Return the pre-activations as they are; the threshold is to be set."""
        return one_threshold(bias_L)


def _everything(scores: Scores) -> int:
    """Return the latents of all ranks."""
    return scores.latents if scores.share.latents is None else scores.share.latents[1]


def _strongest(scores: Scores, turn_A: Tensor) -> Tensor:
    """Return the flat position of the largest positive score of each latent that has its turn, ascending.

    Of all ranks only the one that holds it names it; among equal ones the first row's.
    """
    best_A, at_A = None, None
    for start, block_rL in scores.blocks():
        turn_A = turn_A.to(block_rL.device)
        top = block_rL[:, turn_A].float().max(dim=0)
        if best_A is None or at_A is None:
            best_A, at_A = top.values, top.indices
        else:
            better = top.values > best_A  # an equal one later in the batch does not count
            best_A = torch.where(better, top.values, best_A)
            at_A = torch.where(better, top.indices + start, at_A)
    assert best_A is not None
    assert at_A is not None
    flat = at_A * scores.latents + turn_A
    mine_A = best_A > 0
    if scores.share.latents is None:
        ranks = scores.share.ranks
        mine_A &= best_A == ranks.largest(best_A)
        keys = scores.share.keys(flat, scores.latents)
        last = torch.iinfo(torch.int64).max
        mine_A &= keys == -ranks.largest(torch.where(mine_A, -keys, -last))
    return flat[mine_A].sort().values


def _with(scores: Scores, largest: Tensor, forced: Tensor, budget: int) -> Tensor:
    """Return the forced pairs and the largest of the others, ``budget`` in all, ascending."""
    others = largest[~torch.isin(largest, forced)]
    share = scores.share
    taken = int(share.ranks.sum(torch.tensor([len(forced)], device=forced.device)))
    if budget > taken:
        value = _values_at(scores, others)
        others = others[keep_largest(value, budget - taken, others, scores.latents, share)]
    else:
        others = others[:0]
    return torch.cat([others, forced]).sort().values


def _values_at(scores: Scores, flat: Tensor) -> Tensor:
    """Return the scores at flat positions, float32."""
    found = torch.empty(len(flat), device=flat.device)
    for start, block_rL in scores.blocks():
        low, high = start * scores.latents, (start + len(block_rL)) * scores.latents
        mine = (flat >= low) & (flat < high)
        found[mine] = block_rL.flatten()[flat[mine] - low].float()
    return found
