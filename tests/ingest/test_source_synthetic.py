"""Planted rows: what is planted is what is there, the same for whoever makes a part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from ingest.errors import SourceError
from ingest.sources import SOURCES
from ingest.sources.synthetic import Synthetic
from store.records import canonical
from store.registry import to_json

SMALL = {"width": 12, "features": 20, "active": 3.0}


def dense(codes, rows, features):
    row, feature, value = codes
    out = np.zeros((rows, features))
    out[row, feature] = value
    return out


@pytest.mark.parametrize("rows", [1, 1024, 1025, 3000])
def test_rows_are_the_codes_times_the_dictionary(rows):
    source = Synthetic(**SMALL, seed=4)
    row, feature, value = codes = source.truth_codes(2, rows)
    x_RD = source.block(2, rows)["x"]
    expected = dense(codes, rows, 20) @ source.dictionary.astype(np.float64)
    np.testing.assert_allclose(x_RD, expected, atol=1e-5)
    assert (x_RD.dtype, feature.dtype, value.dtype) == (np.float32, np.uint32, np.float32)
    order = np.lexsort((feature, row))
    assert (order == np.arange(len(row))).all()


def test_parts_are_functions_of_the_seed_and_their_number():
    one, two = Synthetic(**SMALL, noise=0.1), Synthetic(**SMALL, noise=0.1)
    two.block(0, 100)
    for part in (1, 0):
        np.testing.assert_array_equal(one.block(part, 300)["x"], two.block(part, 300)["x"])
    assert (one.block(0, 300)["x"] != one.block(1, 300)["x"]).any()
    assert (
        one.block(0, 300)["x"] != Synthetic(**SMALL, noise=0.1, seed=1).block(0, 300)["x"]
    ).any()


def test_the_dictionary_is_unit_and_stored_as_truth():
    source = Synthetic(**SMALL)
    np.testing.assert_allclose(np.linalg.norm(source.dictionary, axis=1), 1, atol=1e-6)
    truth = load(source.truth()["truth.safetensors"])
    np.testing.assert_array_equal(truth["features"], source.dictionary)
    np.testing.assert_array_equal(truth["rates"], source.rates)


@given(
    features=st.integers(2, 300),
    share=st.floats(0.01, 0.95),
    zipf=st.sampled_from([0, 0.5, 1, 2.0, 10]),
)
def test_rates_sum_to_the_mean_number_active(features, share, zipf):
    source = Synthetic(features=features, active=share * features, zipf=zipf)
    assert source.rates.sum() == pytest.approx(share * features, rel=1e-9)
    assert 0 < source.rates.max() <= 0.95 + 1e-12
    assert (np.diff(source.rates) <= 1e-12).all()


def test_features_fire_at_their_rates_with_magnitudes_around_one():
    rows = 20_000
    source = Synthetic(width=4, features=30, active=5, zipf=0.7, spread=0.2)
    row, feature, value = source.truth_codes(0, rows)
    fired = np.bincount(feature, minlength=30) / rows
    assert (np.abs(fired - source.rates) < 5 * np.sqrt(source.rates / rows)).all()
    assert len(row) / rows == pytest.approx(5, abs=0.1)
    assert value.mean() == pytest.approx(1, abs=0.01)
    assert value.std() == pytest.approx(0.2, abs=0.01)
    assert (value >= 0).all()


def test_noise_has_its_spread():
    quiet, noisy = Synthetic(width=64, seed=2), Synthetic(width=64, seed=2, noise=0.3)
    difference = noisy.block(0, 2000)["x"] - quiet.block(0, 2000)["x"]
    assert difference.std() == pytest.approx(0.3, abs=0.005)
    assert abs(difference.mean()) < 0.005


def test_whole_and_real_numbers_make_one_recipe():
    whole, real = Synthetic(active=4, zipf=1, noise=0), Synthetic(active=4.0, zipf=1.0)
    assert whole == real
    assert canonical(to_json(whole)) == canonical(to_json(real))
    assert SOURCES.parse(to_json(whole)) == real


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0}, {"active": 0}, {"active": -1}, {"active": 127.5}, {"features": 4}, {"noise": -0.1},
        {"noise": float("inf")}, {"spread": -1}, {"spread": float("nan")}, {"active": float("nan")},
        {"zipf": -1}, {"zipf": 1000},
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_planted_is_refused(wrong):
    with pytest.raises(SourceError, match="bad-source"):
        Synthetic(**wrong)
