"""Exact cuts and the sparsifiers made of them, against sorting everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.dictionaries.encoders.linear import LinearScores
from jobs.dictionaries.ranks import WHOLE
from jobs.dictionaries.sparsifiers import batch_topk as batch_module
from jobs.dictionaries.sparsifiers.batch_topk import batch_topk
from jobs.dictionaries.sparsifiers.cut import float_bits, histogram_cut, keep_largest
from jobs.dictionaries.sparsifiers.row_topk import row_topk


class BlockScores:
    """Scores given outright, in blocks of so many rows."""

    share = WHOLE

    def __init__(self, scores_RL, block_rows):
        self.rows, self.latents = scores_RL.shape
        self._scores, self._step = scores_RL, block_rows

    def blocks(self):
        for start in range(0, self.rows, self._step):
            yield start, self._scores[start : start + self._step].clone()


def by_sorting(scores_RL, keep, rows):
    """Return the pairs of the ``keep`` largest positive scores in each group of ``rows`` rows."""
    chosen = []
    for start in range(0, len(scores_RL), rows):
        part = scores_RL[start : start + rows]
        best = sorted(
            (-float(part[r, c]), r, c) for r, c in np.ndindex(*part.shape) if float(part[r, c]) > 0
        )
        chosen += sorted((start + r, c) for _, r, c in best[:keep])
    return chosen


def pairs(pattern):
    return list(zip(pattern.row.tolist(), pattern.latent.tolist(), strict=True))


# Few distinct values make ties; wide exponents cross many bins; negatives and zeros are never chosen.
SCORES = {
    "ties": lambda g, shape: torch.randint(-2, 4, shape, generator=g).float(),
    "all equal": lambda g, shape: torch.ones(shape),
    "none positive": lambda g, shape: -torch.rand(shape, generator=g),
    "zeros": lambda g, shape: torch.zeros(shape),
    "normal": lambda g, shape: torch.randn(shape, generator=g),
    "wide": lambda g, shape: torch.exp(20 * torch.randn(shape, generator=g)),
    "one bin": lambda g, shape: 1 + torch.rand(shape, generator=g) / 64,
    "first rows low": lambda g, shape: (
        torch.rand(shape, generator=g) + torch.arange(shape[0])[:, None]
    ),
    "first rows high": lambda g, shape: (
        torch.rand(shape, generator=g) - torch.arange(shape[0])[:, None] / 4
    ),
}

each_kind = pytest.mark.parametrize("draw", SCORES.values(), ids=list(SCORES))


@each_kind
@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 12), latents=st.integers(1, 70), data=st.data()
)
def test_both_sparsifiers_equal_sorting_everything(draw, seed, rows, latents, data):
    scores = draw(torch.Generator().manual_seed(seed), (rows, latents))
    k = data.draw(st.integers(1, latents))
    block = data.draw(st.integers(1, rows))
    assert pairs(batch_topk(BlockScores(scores, block), k)) == by_sorting(scores, rows * k, rows)
    assert pairs(row_topk(BlockScores(scores, block), k)) == by_sorting(scores, k, 1)


@each_kind
def test_bfloat16_scores_are_cut_as_exactly(draw):
    scores = draw(torch.Generator().manual_seed(1), (20, 64)).bfloat16()
    assert pairs(batch_topk(BlockScores(scores, 6), 5)) == by_sorting(scores, 100, 20)
    assert pairs(row_topk(BlockScores(scores, 6), 5)) == by_sorting(scores, 5, 1)


def test_a_batch_of_one_row_is_cut_like_a_row():
    """E1."""
    scores = torch.randn(1, 300, generator=torch.Generator().manual_seed(2))
    assert pairs(batch_topk(BlockScores(scores, 1), 9)) == pairs(
        row_topk(BlockScores(scores, 1), 9)
    )


@pytest.mark.parametrize("choose", [batch_topk, row_topk])
def test_a_budget_of_all_latents_keeps_all_positives(choose):
    """E2."""
    scores = torch.randn(13, 30, generator=torch.Generator().manual_seed(2))
    expected = [tuple(pair) for pair in (scores > 0).nonzero().tolist()]
    assert pairs(choose(BlockScores(scores, 4), 30)) == expected


def test_the_whole_budget_is_spent_where_there_are_positives():
    scores = torch.randn(500, 96, generator=torch.Generator().manual_seed(2))
    assert len(batch_topk(BlockScores(scores, 64), 7).row) == 3500
    assert torch.bincount(row_topk(BlockScores(scores, 64), 7).row).tolist() == [7] * 500


def test_a_wrong_guess_costs_another_pass_and_no_answer(monkeypatch):
    scores = SCORES["first rows high"](torch.Generator().manual_seed(0), (40, 50))
    monkeypatch.setattr(batch_module, "SAMPLE_ROWS", 2)
    calls = []
    given_scores = BlockScores(scores, 8)
    blocks = given_scores.blocks
    given_scores.blocks = lambda: (calls.append(1), blocks())[1]
    assert pairs(batch_topk(given_scores, 3)) == by_sorting(scores, 120, 40)
    assert len(calls) > 1


@given(st.lists(st.floats(2.0**-100, 2.0**100, width=32), min_size=1, max_size=200), st.data())
def test_the_histogram_cut_is_the_kth_largest(values, data):
    score = torch.tensor(values, dtype=torch.float32)
    keep = data.draw(st.integers(1, len(values)))
    edge, ties = histogram_cut(float_bits(score), keep)
    ordered = float_bits(score).sort(descending=True).values
    assert edge == int(ordered[keep - 1])
    assert ties == int((ordered[:keep] == edge).sum())


@given(st.lists(st.sampled_from([1.0, 1.5, 2.0, 3.0]), max_size=60), st.integers(1, 70))
def test_ties_are_kept_from_the_front(values, keep):
    kept = keep_largest(torch.tensor(values, dtype=torch.float32), keep)
    best = sorted(range(len(values)), key=lambda i: (-values[i], i))[:keep]
    assert kept.tolist() == sorted(best)


def test_histograms_of_shares_add_up_to_the_cut_of_the_whole():
    """What lets ranks agree on one cut: the counts are sums."""
    bits = float_bits(torch.rand(1000, generator=torch.Generator().manual_seed(4)))
    counts = [torch.bincount(part >> 19, minlength=4096) for part in bits.split([300, 450, 250])]
    assert torch.equal(sum(counts), torch.bincount(bits >> 19, minlength=4096))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_in_blocks_are_the_product(dtype):
    generator = torch.Generator().manual_seed(0)
    x, w, b = (
        torch.randn(*shape, generator=generator) for shape in [(200, 16), (30_000, 16), (30_000,)]
    )
    scores = LinearScores(x, w, b, dtype)
    starts, blocks = zip(
        *((start, block.float().clone()) for start, block in scores.blocks()), strict=True
    )
    assert len(starts) > 1
    truth = x.double() @ w.double().t() + b.double()
    scale = (x.double().abs() @ w.double().abs().t() + b.double().abs()).max()
    bound = 3 * torch.finfo(dtype).eps * scale
    assert (torch.cat(blocks).double() - truth).abs().max() < bound
