"""The figures of an evaluation against NumPy over everything at once, and the laws of merging."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.codebook import Codebook
from jobs.dictionaries.evaluate import EvalPartial, evaluate
from store.errors import InvalidInputError

WIDTH, LATENTS = 6, 20


def make_book(seed=0, **meta):
    generator = torch.Generator().manual_seed(seed)
    w = torch.nn.functional.normalize(torch.randn(LATENTS, WIDTH, generator=generator), dim=1)
    return Codebook(w.t() * 0.6, torch.zeros(LATENTS), w, torch.full((WIDTH,), 0.3), 0.2, meta)


def make_rows(rows=200, seed=1):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, WIDTH)) + 0.5).astype(np.float32)
    return x, rng.integers(0, 9, rows), rng.random(rows) < 0.1


def split(arrays, cuts):
    edges = [0, *cuts, len(arrays[0])]
    return [tuple(array[a:b] for array in arrays) for a, b in itertools.pairwise(edges)]


def partial_of(blocks, book, **options):
    partial = EvalPartial.empty(LATENTS, WIDTH)
    for block in blocks:
        partial.update(book, block, **options)
    return partial


def test_every_figure_is_what_its_definition_says():
    book = make_book()
    x, position, special = make_rows()
    x[11] *= 100
    special[11] = False
    result = evaluate(book, split((x, position, special), [60, 61, 150]), massive_norm=30)
    keep = ~special & (np.arange(200) != 11)
    code = book.encode_dense(x).double().numpy()
    x64, hat = x.astype(np.float64), book.reconstruct(x).double().numpy()
    xk, hk, mean = x64[keep], hat[keep], x64[keep].mean(axis=0)
    error = np.square(xk - hk).sum(axis=1)
    norm, hat_norm = np.linalg.norm(xk, axis=1), np.linalg.norm(hk, axis=1)
    assert result.rows == keep.sum()
    assert result.fvu == pytest.approx(error.sum() / np.square(xk - mean).sum(), rel=1e-12)
    whole = np.square(x64 - hat).sum() / np.square(x64 - x64.mean(axis=0)).sum()
    assert result.fvu_all_rows == pytest.approx(whole, rel=1e-12)
    active = (code > 0)[keep]
    assert result.l0 == pytest.approx(active.sum(axis=1).mean())
    assert result.fired.tolist() == active.sum(axis=0).tolist()
    assert result.dead == (active.sum(axis=0) == 0).sum()
    assert result.dense == (active.mean(axis=0) > 0.1).sum()
    assert result.cosine == pytest.approx(((xk * hk).sum(axis=1) / norm / hat_norm).mean())
    assert result.shrinkage == pytest.approx((hat_norm / norm).mean())
    best = (xk * hk).sum() / np.square(hk).sum()
    assert result.relative_bias == pytest.approx(best)
    assert result.special_share == pytest.approx(special.mean())
    assert result.massive_share == pytest.approx(1 / 200)
    percentiles = np.percentile(active.sum(axis=1), [5, 50, 95], method="inverted_cdf")
    assert list(result.l0_percentiles.values()) == percentiles.tolist()
    for t in range(9):
        here = position[keep] == t
        spread = np.square(xk[here] - mean).sum()
        assert result.position_error[t] == pytest.approx(error[here].sum() / spread)
        assert result.position_rows[t] == here.sum()


def test_a_perfect_dictionary_has_nothing_unexplained():
    eye = torch.eye(WIDTH)
    book = Codebook(
        torch.cat([eye, -eye], 1), torch.zeros(12), torch.cat([eye, -eye]), torch.zeros(WIDTH), 0.0
    )
    x, position, _ = make_rows()
    result = evaluate(book, [(x, position)])
    assert result.fvu < 1e-12
    assert result.l0 == WIDTH
    assert result.shrinkage == pytest.approx(1)
    assert result.relative_bias == pytest.approx(1)


def test_the_mean_of_the_rows_scores_one():
    x, position, _ = make_rows()
    w = torch.nn.functional.normalize(torch.ones(1, WIDTH), dim=1)
    silent = Codebook(w.t(), torch.tensor([-1e6]), w, torch.from_numpy(x.mean(axis=0)), 0.0)
    result = evaluate(silent, [(x, position)])
    assert result.fvu == pytest.approx(1, rel=1e-6)
    assert (result.dead, result.l0) == (1, 0)
    assert result.l0_percentiles == {"p5": 0, "p50": 0, "p95": 0}


def test_a_given_mean_replaces_the_rows_own():
    book = make_book()
    x, position, _ = make_rows()
    zero = evaluate(book, [(x, position)], np.zeros(WIDTH))
    error = np.square(x.astype(np.float64) - book.reconstruct(x).double().numpy()).sum()
    assert zero.fvu == pytest.approx(error / np.square(x.astype(np.float64)).sum())


def test_a_large_mean_costs_no_digits():
    """Σ‖x‖² − N‖μ‖² cancels; float64 keeps six digits at a mean a thousand times the spread."""
    book = make_book()
    x, position, _ = make_rows()
    far = dataclasses.replace(
        book, b_dec_D=book.b_dec_D + 1000, b_enc_L=book.b_enc_L - 1000 * book.W_enc_DL.sum(0)
    )
    moved = x + np.float32(1000)
    result = evaluate(far, [(moved, position)], massive_norm=np.inf)
    x64, hat = moved.astype(np.float64), far.reconstruct(moved).double().numpy()
    expected = np.square(x64 - hat).sum() / np.square(x64 - x64.mean(axis=0)).sum()
    assert result.fvu == pytest.approx(expected, rel=1e-6)


def test_massive_rows_are_ten_times_the_median_norm_of_training():
    x, position, _ = make_rows()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x[:3] *= np.float32(12)
    assert evaluate(make_book(median_norm=1.0), [(x, position)]).massive_share == 3 / 200
    assert evaluate(make_book(median_norm=2.0), [(x, position)]).massive_share == 0
    assert evaluate(make_book(), [(x, position)]).massive_share == 3 / 200


def test_no_ordinary_row_is_an_error():
    x, position, _ = make_rows(5)
    for blocks in ([], [(x, position, np.ones(5, bool))]):
        with pytest.raises(InvalidInputError, match="no-rows"):
            evaluate(make_book(), blocks)


def test_progress_counts_all_rows():
    told = []
    evaluate(make_book(), split(make_rows(), [50, 120]), progress=told.append)
    assert told == [50, 120, 200]


def counts_equal(one, other):
    assert one.kept.rows == other.kept.rows
    for name in ("fired", "l0_rows", "position_rows", "special_rows", "massive_rows"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


def sums_close(one, other):
    a, b = one.finalize(), other.finalize()
    for name in ("fvu", "fvu_all_rows", "cosine", "shrinkage", "relative_bias", "l0"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-11, nan_ok=True), name
    assert np.allclose(a.position_error, b.position_error, rtol=1e-9, equal_nan=True)


@given(st.lists(st.integers(0, 80), max_size=5), st.randoms())
def test_any_split_in_any_order_merges_to_the_whole(cuts, random):
    book, arrays = make_book(), make_rows(80)
    blocks = split(arrays, sorted(cuts))
    whole = partial_of(blocks, book, massive_norm=4)
    parts = [partial_of([block], book, massive_norm=4) for block in blocks]
    random.shuffle(parts)
    merged = functools.reduce(EvalPartial.merge, parts, EvalPartial.empty(LATENTS, WIDTH))
    counts_equal(merged, whole)
    sums_close(merged, whole)
    # Codes are float32 products, whose rounding depends on how many rows are multiplied at once.
    undivided = partial_of([arrays], book, massive_norm=4).finalize()
    assert merged.finalize().fvu == pytest.approx(undivided.fvu, rel=1e-6)


def test_merging_changes_neither_part_and_repeats_bit_for_bit():
    book, blocks = make_book(), split(make_rows(), [70])
    one, other = (partial_of([block], book) for block in blocks)
    before = one.finalize().fvu
    results = [one.merge(other).finalize() for _ in range(2)]
    assert one.finalize().fvu == before
    assert results[0].to_json() == results[1].to_json()


def test_an_empty_partial_is_the_identity():
    book, arrays = make_book(), make_rows()
    whole, empty = partial_of([arrays], book), EvalPartial.empty(LATENTS, WIDTH)
    for merged in (whole.merge(empty), empty.merge(whole)):
        counts_equal(merged, whole)
        assert merged.finalize().to_json() == whole.finalize().to_json()
