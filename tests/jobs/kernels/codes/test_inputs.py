"""Codes to measure on: as drawn, as fitted, as stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import store
from ingest.config import TokensConfig
from ingest.run import ingest_vectors
from ingest.sources import SOURCES
from jobs.dictionaries import TrainConfig
from jobs.dictionaries.run import train_on
from jobs.errors import JobError
from jobs.features import encode
from jobs.kernels.codes.contract import Shape
from jobs.kernels.codes.inputs import fitted_exponent, from_store, redraw, synthetic
from jobs.kernels.codes.rows import gini, head
from jobs.runtimes.in_process import InProcess


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    exponent=st.sampled_from((0.0, 1.0, 1.7)),
    seed=st.integers(0, 5),
)
def test_a_redraw_keeps_how_many_latents_each_row_has_all_distinct_and_sorted(
    counts, exponent, seed
):
    pattern = redraw(torch.tensor(counts), 9, exponent=exponent, seed=seed)
    assert torch.bincount(pattern.row, minlength=len(counts)).tolist() == counts
    flat = pattern.row * 9 + pattern.latent
    assert bool((flat[1:] > flat[:-1]).all())
    assert not len(flat) or int(pattern.latent.max()) < 9
    again = redraw(torch.tensor(counts), 9, exponent=exponent, seed=seed)
    assert torch.equal(again.latent, pattern.latent)


def test_blocks_of_draws_change_nothing_but_memory(monkeypatch):
    counts = torch.arange(20)
    whole = redraw(counts, 40, exponent=1.0, seed=0)
    monkeypatch.setattr("jobs.kernels.codes.inputs.BLOCK_DRAWS", 3 * 40)
    blocked = redraw(counts, 40, exponent=1.0, seed=0)
    assert torch.equal(whole.latent, blocked.latent)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_the_fit_finds_the_exponent_popularity_was_made_by(exponent):
    counts = (1e6 / torch.arange(1, 200).double() ** exponent).round().long()
    latent = torch.repeat_interleave(torch.randperm(199), counts)
    assert fitted_exponent(latent, 250) == pytest.approx(exponent, abs=0.01)
    assert fitted_exponent(latent[:0], 250) == 0.0


def test_popular_latents_are_drawn_more_often_the_larger_the_exponent():
    counts = torch.full((500,), 4)
    uneven = [
        gini(redraw(counts, 100, exponent=s, seed=0).latent, 100) for s in (0.0, 0.5, 1.0, 2.0)
    ]
    assert uneven == sorted(uneven)
    assert uneven[0] < 0.2 < 0.6 < uneven[-1]


def test_gini_of_one_and_of_all():
    assert gini(torch.zeros(50).long(), 100) == pytest.approx(0.99)
    assert gini(torch.arange(100), 100) == pytest.approx(0.0)
    assert gini(torch.zeros(0).long(), 3) == 0.0


def test_synthetic_cases_have_the_pairs_asked_for():
    shape = Shape(rows=10, width=3, latents=20, pairs=34)
    assert synthetic(shape).shape == shape
    case = head(synthetic(shape), 3)
    assert case.pattern.rows == len(case.x) == 3
    assert len(case.value) == len(case.pattern.row) == 12  # the rows left over come first


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes")
    source = SOURCES.get("synthetic")(width=16, features=32, active=3.0)
    ingest_vectors(
        folder / "s",
        TokensConfig(source=source, rows=2000, part_rows=512, context=32),
        "acts",
        runtime=InProcess(),
    )
    opened = store.open(folder / "s")
    cfg = TrainConfig(
        variant={"kind": "batch_topk", "latents": 48, "k": 3}, steps=30, batch_rows=256
    )
    book, _ = train_on(opened, "x", cfg, folder)
    encode(opened, "x", book, "codes")
    return opened.refresh(), book


def test_real_codes_are_those_the_dictionary_gives_the_rows_they_come_with(coded):
    opened, book = coded
    one, two = from_store(opened, "codes", 200, seeds=[0, 1])
    assert not torch.equal(one.x, two.x)
    for case in (one, two):
        assert case.shape.rows == 200
        found = book.encode(case.x)
        assert np.array_equal(found.row_index, case.pattern.row.numpy())
        assert np.array_equal(found.latent, case.pattern.latent.numpy())
        assert np.allclose(found.value, case.value.numpy(), atol=1e-6)
        assert torch.equal(case.w, book.W_dec_LD)


@pytest.mark.parametrize(("group", "rows"), [("acts", 10), ("gone", 10), ("codes", 10**6)])
def test_a_group_without_enough_codes_is_refused_with_those_there_are(coded, group, rows):
    with pytest.raises(JobError, match=r"no-codes.*codes.*Nothing was measured"):
        from_store(coded[0], group, rows, seeds=[0])
