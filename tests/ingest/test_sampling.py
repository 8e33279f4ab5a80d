"""Samples of rows: an even share, chosen by id alone, whatever else a harvest does; the rest never written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.errors import IngestError
from ingest.estimate import column_bytes
from ingest.models import toy
from ingest.planning import plan
from ingest.run import ingest, ingest_into
from ingest.sampling import Sample, draws
from ingest.sources import SOURCES
from jobs.runtimes.in_process import InProcess

SITES = ("blocks.0.resid_post", "blocks.1.attn.z", "loss")


@given(seed=st.integers(0, 2**63), first=st.integers(0, 2**40))
def test_draws_are_even_and_of_the_row_alone(seed, first):
    ids = np.arange(first, first + 4000)
    drawn = draws(ids, seed)
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert abs(drawn.mean() - 0.5) < 0.03
    counts, _ = np.histogram(drawn, 10, (0, 1))
    assert counts.min() > 300
    np.testing.assert_array_equal(draws(ids[17:40], seed), drawn[17:40])
    assert abs(np.corrcoef(drawn, draws(ids, seed + 1))[0, 1]) < 0.08


def test_numbers_are_those_of_splitmix64():
    assert (draws(np.arange(3), 0) * 2**53).astype(np.uint64).tolist() == [
        value >> 11 for value in (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)
    ]


@given(share=st.floats(1e-6, 1), rows=st.integers(1, 300), part=st.integers(0, 9))
def test_a_part_keeps_at_least_one_row(share, rows, part):
    ids = part * 65_536 + np.arange(rows)
    kept = Sample(share=share).kept(ids)
    assert kept.any()
    more = Sample(share=min(1.0, share * 2)).kept(ids)
    assert (kept & ~more).sum() <= 1  # a larger share holds the smaller one


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(toy.save("llama", tmp_path_factory.mktemp("m")))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(40):
        (folder / f"{number:02}.txt").write_text(toy.TEXT[7 * number :])
    return str(folder)


@pytest.fixture(scope="module")
def full(tmp_path_factory, model, corpus):
    return made(tmp_path_factory.mktemp("full") / "s", model, corpus)


def made(url, model, corpus, observers=(), **options):
    tokens = TokensConfig(source=SOURCES.get("text")(paths=(corpus,)), context=48, part_rows=512)
    harvest = HarvestConfig(model=model, sites=SITES, dtype="float32", batch=4, **options)
    ingest(url, tokens, harvest, runtime=InProcess(), observers=observers)
    return store.open(url)


@pytest.mark.parametrize("lanes", [False, True], ids=["apart", "lanes"])
def test_kept_rows_hold_what_all_rows_hold(tmp_path, model, corpus, full, lanes):
    sample = Sample(share=0.2, seed=3)
    held = made(tmp_path / "s", model, corpus, sample=sample, lanes=lanes)
    every = np.array(full.arrow("tokens").column("row").to_pylist())
    kept = np.concatenate(
        [sample.kept(every[every // 65_536 == part]) for part in np.unique(every // 65_536)]
    )
    ids = every[kept]
    assert held.coverage["acts"].rows == len(ids)
    assert held.coverage["acts"].sealed
    assert abs(len(ids) / len(every) - 0.2) < 0.05
    for site in SITES[:2]:
        np.testing.assert_allclose(
            held.gather(site, ids), full.gather(site, ids), rtol=2e-5, atol=2e-5
        )
    assert held.arrow("acts").column("row").to_pylist() == ids.tolist()
    assert store.verify(held).ok
    assert held.digest() == made(tmp_path / "s", model, corpus, sample=sample, lanes=lanes).digest()
    sizes = {
        name: sum(
            item.size
            for part in store_.view.parts("acts")
            for path, item in store_.view.commit("acts", part).objects.items()
            if path.startswith("blocks.0.resid_post/c/")
        )
        for name, store_ in (("few", held), ("all", full))
    }
    parts = ids // 65_536
    few = [int((parts == part).sum()) for part in np.unique(parts)]
    assert sizes["few"] == column_bytes("float32[32]", "raw", few, 65_536)[0] < sizes["all"]


def test_live_statistics_see_every_row_of_a_sample(tmp_path, model, corpus, full):
    seen = []

    class Watching:
        sites = ("blocks.0.resid_post",)

        def requires(self, _model, _stored):
            return self.sites

        def observer(self, _harvest):
            return self

        def done(self, _part):
            return False

        def begin(self, _part):
            pass

        end = begin

        def observe(self, block):
            assert len(block.sites["blocks.0.resid_post"]) == len(block.row_ids)
            seen.extend(block.row_ids.tolist())

        def close(self):
            pass

    held = made(tmp_path / "s", model, corpus, sample=Sample(share=0.1), observers=[Watching()])
    assert seen == full.arrow("tokens").column("row").to_pylist()
    ids = np.array(held.arrow("acts").column("row").to_pylist())
    assert 0 < len(ids) < 0.2 * len(seen)
    np.testing.assert_array_equal(
        held.gather("blocks.0.resid_post", ids), full.gather("blocks.0.resid_post", ids)
    )


def test_a_sample_is_a_group_beside_others_and_planned_to_the_byte(tmp_path, model, corpus):
    made(tmp_path / "s", model, corpus)
    sample = Sample(share=0.3)
    harvest = HarvestConfig(
        model=model, sites=SITES[:1], dtype="float32", batch=4, group="few", sample=sample
    )
    tokens = TokensConfig(source=SOURCES.get("text")(paths=(corpus,)), context=48, part_rows=512)
    estimate = plan(tokens, harvest)
    summary = ingest_into(tmp_path / "s", harvest, runtime=InProcess())
    held = store.open(tmp_path / "s")
    assert held.coverage["few"].rows < held.coverage["acts"].rows
    sizes = [
        item.size
        for part in held.view.parts("few")
        for name, item in held.view.commit("few", part).objects.items()
        if name.endswith("/c/0/0")
    ]
    assert estimate.columns[SITES[0]] == sum(sizes)
    assert summary.rows == held.coverage["acts"].rows


def test_gradients_may_be_sampled_too(tmp_path, model, corpus):
    store_of = {}
    for name, sample in (("a", None), ("b", Sample(share=0.2))):
        made(tmp_path / name, model, corpus)
        harvest = HarvestConfig(
            model=model,
            sites=SITES[:1],
            dtype="float32",
            batch=4,
            group="grad",
            gradient="exact",
            sample=sample,
        )
        ingest_into(tmp_path / name, harvest, runtime=InProcess())
        store_of[name] = store.open(tmp_path / name)
    ids = np.array(
        [r for part in store_of["b"].view.parts("grad") for r in _rows(store_of["b"], part)]
    )
    np.testing.assert_array_equal(
        store_of["a"].gather(f"grad:{SITES[0]}", ids),
        store_of["b"].gather(f"grad:{SITES[0]}", ids),
    )


def _rows(held, part):
    commit = held.view.commit("grad", part)
    return held.view.table(commit, "rows.parquet").column("row").to_pylist()


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
def test_a_share_that_is_none(share):
    with pytest.raises(IngestError, match=r"bad-number.*above 0 and at most 1"):
        Sample(share=share)
