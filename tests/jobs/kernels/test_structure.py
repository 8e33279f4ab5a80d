"""Gains and their intervals: documents are the units."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jobs.kernels.structure import by_document, structure_gain


def test_a_planted_gain_lies_in_its_interval_about_as_often_as_it_says(rng):
    inside = 0
    for trial in range(200):
        real = dict(enumerate(rng.normal(0.5, 0.1, 30)))
        control = {d: v - 0.2 + rng.normal(0, 0.05) for d, v in real.items()}
        found = structure_gain(real, control, seed=trial)
        inside += found.low <= 0.2 <= found.high
        assert found.documents == 30
    assert 0.88 <= inside / 200 <= 1.0


def test_the_interval_is_over_documents_not_over_samples(rng):
    documents = np.repeat(np.arange(8), 50)
    level = rng.normal(0, 1, 8)
    values = level[documents] + rng.normal(0, 0.01, 400)
    found = structure_gain(by_document(documents, values), dict.fromkeys(range(8), 0.0), seed=0)
    assert found.gain == pytest.approx(level.mean(), abs=0.01)
    assert found.high - found.low > 2 * level.std() / math.sqrt(8)
    assert found.high - found.low > 10 * values.std() / math.sqrt(400)


def test_only_documents_with_both_figures_count():
    found = structure_gain({1: 1.0, 2: 2.0, 3: 9.0}, {1: 0.0, 2: 1.0}, seed=0)
    assert (found.gain, found.low, found.high, found.documents) == (1.0, 1.0, 1.0, 2)


@pytest.mark.parametrize(("real", "gain"), [({}, math.nan), ({4: 0.5}, 0.25)], ids=["none", "one"])
def test_below_two_documents_there_is_no_interval(real, gain):
    found = structure_gain(real, {4: 0.25}, seed=0)
    assert found.gain == pytest.approx(gain, nan_ok=True)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_what_is_no_number_is_left_out_of_a_documents_mean():
    found = by_document(np.array([1, 1, 2, 3]), np.array([1.0, np.nan, np.nan, 3.0]))
    assert found == {1: 1.0, 3: 3.0}


def test_equal_seeds_draw_equal_intervals():
    real, control = ({d: float(d % 5) for d in range(9)}, dict.fromkeys(range(9), 1.0))
    assert structure_gain(real, control, seed=3) == structure_gain(real, control, seed=3)
