"""Closed forms against loops over every pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.kernels.geometry import Geometry, layout

geometries = st.builds(
    Geometry,
    queries=st.integers(1, 23),
    keys=st.integers(1, 23),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 12),
    query_start=st.integers(0, 9),
)


@pytest.fixture(scope="module")
def truth(oracle):
    return oracle("sparse_attention")


@given(geometry=geometries)
def test_visible_keys_are_those_the_rules_name(truth, geometry):
    seen = truth.visible(geometry)
    assert np.array_equal(geometry.visible().numpy(), seen)
    assert geometry.pairs() == seen.sum()
    assert np.array_equal(geometry.visible(slice(2, 5)).numpy(), seen[2:5])


@given(geometry=geometries, bq=st.integers(1, 9), bk=st.integers(1, 9))
def test_tiles_count_their_pairs(truth, geometry, bq, bk):
    seen = truth.visible(geometry)
    found = layout(geometry, bq, bk)
    for i, low in enumerate(range(0, geometry.queries, bq)):
        for j, left in enumerate(range(0, geometry.keys, bk)):
            tile = seen[low : low + bq, left : left + bk]
            rows = seen[low : low + bq]
            assert found.pairs[i, j] == tile.sum()
            assert bool(found.visible[i, j]) == tile.any()
            whole = tile.all() and tile.shape[1] == bk
            assert bool(found.full[i, j]) == whole
            covers = tile.any() and (tile.any(1) == rows.any(1)).all()
            assert bool(found.covering[i, j]) == covers
    assert found.rows.sum() == geometry.queries
    assert found.tiles == int(found.visible.sum())
