"""Accumulators against NumPy over everything at once, in any split and order."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jobs.circuits.accumulators import (
    LogHistogram,
    MinMax,
    Moments,
    TopK,
    bin_bounds,
    bin_counts,
    float64_rows,
)

floats = st.floats(-1e6, 1e6, width=32)
rows = hnp.arrays(np.float64, st.tuples(st.integers(1, 30), st.just(3)), elements=floats)


def merged(cls, x, cuts, *shape):
    """Accumulate pieces apart and merge them from the right."""
    pieces = []
    for piece in np.split(x, cuts):
        one = cls.empty(*shape)
        one.update(piece)
        pieces.append(one)
    whole = pieces.pop()
    while pieces:
        whole = pieces.pop().merge(whole)
    return whole


@given(rows, st.data())
def test_moments_of_any_split_are_those_of_the_whole(x, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(x)), max_size=4)))
    found = merged(Moments, x, cuts, (3,))
    assert found.count == len(x)
    scale = np.abs(x).max() + 1e-300
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-12, atol=1e-13 * scale)
    np.testing.assert_allclose(found.variance, x.var(0), rtol=1e-10, atol=1e-13 * scale**2)


def test_moments_of_a_small_spread_on_a_large_mean_keep_their_digits(rng):
    x = 1e8 + rng.normal(size=(5000, 1))
    found = merged(Moments, x, [17, 900, 4000], (1,))
    np.testing.assert_allclose(found.variance, x.var(0), rtol=1e-6)


def test_moments_take_large_blocks_in_pieces(rng, monkeypatch):
    x = rng.normal(size=(100, 7))
    monkeypatch.setattr("jobs.circuits.accumulators._CHUNK_VALUES", 30)
    found = merged(Moments, x, [], (7,))
    np.testing.assert_allclose(found.variance, x.var(0), rtol=1e-12)


@given(rows, st.data())
def test_extremes_are_exact(x, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(x)), max_size=4)))
    found = merged(MinMax, x, cuts, (3,))
    assert np.array_equal(found.low, x.min(0))
    assert np.array_equal(found.high, x.max(0))


@given(
    hnp.arrays(np.float64, st.integers(0, 60), elements=st.sampled_from([0.0, 1.0, 1.5, 2.0, 9.0])),
    st.integers(1, 7),
    st.randoms(),
    st.data(),
)
def test_the_top_is_the_sorted_beginning_whatever_the_order_and_the_ties(values, k, random, data):
    keys = np.stack([np.arange(len(values)) % 4, np.arange(len(values))], axis=1)
    wanted = sorted(zip(-values, *keys.T, strict=True))[:k]
    order = list(range(len(values)))
    random.shuffle(order)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=3)))
    whole = TopK.empty(2, k, 2)
    for piece in np.split(np.array(order, int), cuts):
        one = TopK.empty(2, k, 2)
        one.update(1, values[piece], keys[piece])
        whole = one.merge(whole)
        in_turn = whole
    assert np.array_equal(in_turn.values[1, : len(wanted)], [-value for value, *_ in wanted])
    assert np.array_equal(
        in_turn.keys[1, : len(wanted)], np.array([k for _, *k in wanted]).reshape(-1, 2)
    )
    assert (in_turn.values[1, len(wanted) :] == -np.inf).all()
    assert (in_turn.keys[1, len(wanted) :] == -1).all()
    assert (in_turn.values[0] == -np.inf).all()  # the other lane saw nothing


def test_the_top_never_keeps_what_is_no_number():
    found = TopK.empty(1, 3, 1)
    found.update(0, np.array([np.nan, 1.0, -np.inf, np.nan, 2.0]), np.arange(5)[:, None])
    assert found.keys[0].ravel().tolist() == [4, 1, -1]


def test_a_full_top_asks_keys_of_few(rng):
    values, found = rng.normal(size=10_000), TopK.empty(1, 5, 1)
    found.update(0, values, np.arange(10_000)[:, None])
    assert len(found.candidates(0, rng.normal(size=10_000))) < 50


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e5, 1e30])
@pytest.mark.parametrize("q", [0.01, 0.25, 0.5, 0.9, 0.999])
def test_quantiles_are_within_their_stated_error(rng, scale, q):
    x = (rng.normal(size=20_001) * scale).astype(np.float32)
    found = LogHistogram.empty(1)
    for piece in np.split(x, 7 * [0] + [100, 5000]):
        found.update(0, piece)
    exact = np.sort(np.abs(x))[max(1, int(np.ceil(q * len(x)))) - 1]
    assert abs(found.quantile(q)[0] / exact - 1) <= 1 / 128
    low, high = found.bounds(q)
    assert low[0] <= exact < high[0]


def test_bins_hold_every_bfloat16_and_take_tensors_as_arrays():
    bits = np.arange(1 << 15, dtype=np.uint16)
    bits = bits[bits < 0x7F80]
    x = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    counts = bin_counts(x)
    assert counts.sum() == len(bits)
    assert counts[counts > 0].max() == 2  # 7 bits of mantissa, 6 of them in the bin
    assert np.array_equal(bin_counts(x.float().numpy()), counts)


def test_a_histogram_of_nothing_of_zeros_and_of_infinities():
    found = LogHistogram.empty(3)
    found.update(1, np.zeros(5))
    found.update(2, np.array([1.0, np.inf, np.nan, np.inf]))
    assert np.isnan(found.quantile(0.5)[0])
    assert found.bounds(0.5)[0][1] == 0
    assert found.quantile(0.5)[2] == pytest.approx(1, rel=1 / 128)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8))
def test_the_bin_of_the_median_is_the_lower_middle_one(values):
    x = np.array(values, np.float64)
    low, high = bin_bounds(bin_counts(x), 0.5)
    assert low <= np.sort(x)[(len(x) - 1) // 2] < high


def test_states_come_back(rng):
    x = rng.normal(size=(50, 3))
    for cls in (Moments, MinMax):
        one = cls.empty((3,))
        one.update(x)
        again = cls.restore(one.state("a."), "a.")
        assert all(np.array_equal(v, one.state("")[k]) for k, v in again.state("").items())
    top, histogram = TopK.empty(2, 4, 1), LogHistogram.empty(2)
    top.update(1, x.ravel(), np.arange(150)[:, None])
    histogram.update(1, x)
    assert np.array_equal(TopK.restore(top.state("t"), "t").keys, top.keys)
    assert np.array_equal(LogHistogram.restore(histogram.state("h"), "h").counts, histogram.counts)
    assert len(histogram.state("")["at"]) <= 150


def test_every_stored_dtype_becomes_float64_exactly():
    bits = np.arange(-3, 4, dtype=np.float32) / 4
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        assert np.array_equal(float64_rows(torch.from_numpy(bits).to(dtype)), bits)
