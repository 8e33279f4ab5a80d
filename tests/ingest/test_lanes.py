"""Sequences side by side in lanes: every family computes of each what it computes of it alone, and batches hold each once."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.errors import IngestError, ModelError
from ingest.models import adapt, toy
from ingest.models.hooks import HookedModel
from ingest.run import ingest
from ingest.sources import SOURCES
from jobs.runtimes.in_process import InProcess

LENGTHS = (19, 7, 20, 1, 12)
LANES = ((0, 1), (2, 3, 4))
LENGTH = 40


@pytest.fixture(params=toy.reading(), scope="module")
def model(request):
    return toy.build(request.param, seed=7, layers=3)


def sequences():
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(5, 200, (1, length), generator=generator) for length in LENGTHS]


def laid():
    """Return (ids, mask, positions) of two lanes that hold the sequences."""
    ids, mask, positions = (torch.zeros(len(LANES), LENGTH, dtype=torch.long) for _ in range(3))
    for lane, members in enumerate(LANES):
        at = 0
        for number in members:
            end = at + LENGTHS[number]
            ids[lane, at:end] = sequences()[number]
            positions[lane, at:end] = torch.arange(LENGTHS[number])
            mask[lane, at:end] = 1
            at = end
    return ids, mask, positions


@pytest.mark.parametrize("wanted", ["sdpa", "eager"])
def test_a_sequence_in_a_lane_is_what_it_is_alone(model, wanted):
    implementation = wanted if model._supports_sdpa else "eager"
    adapter = adapt(model)
    if not adapter.attends:
        with pytest.raises(ModelError, match=r"lanes-unsupported.*Leave out --lanes"):
            adapter.capture(*laid()[:2], ["blocks.0.resid_post"], positions_BT=laid()[2])
        return
    ids, mask, positions = laid()
    sites = list(adapter.sites())
    held = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        together = adapter.capture(ids, mask, sites, positions_BT=positions)
        alone = [adapter.capture(one, torch.ones_like(one), sites) for one in sequences()]
    finally:
        model.set_attn_implementation(held)
    for site in sites:
        rows = together[site][mask.bool()]
        by_itself = torch.cat([one[site][0] for one in alone])
        if by_itself.is_floating_point():
            torch.testing.assert_close(rows, by_itself, rtol=2e-5, atol=2e-5)
        else:
            assert torch.equal(rows, by_itself)


def alone_and_padded(adapter, sites):
    """Return {site: rows} of every sequence by itself, and of one padded batch of them."""
    alone = [adapter.capture(one, torch.ones_like(one), sites) for one in sequences()]
    ids = torch.zeros(len(LENGTHS), LENGTH, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, one in enumerate(sequences()):
        ids[number, : one.shape[1]], mask[number, : one.shape[1]] = one, 1
    padded = adapter.capture(ids, mask, sites)
    return (
        {site: torch.cat([one[site][0] for one in alone]) for site in sites},
        {site: padded[site][mask.bool()] for site in sites},
    )


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gpt2", "bert"])
def test_in_sixteen_bits_lanes_are_as_near_to_the_truth_as_any_batch(family):
    """Rounding differs between batches: what counts is the distance from float64, beside those of plain forwards."""
    exact, coarse = (
        toy.build(family, seed=7, layers=3).to(d) for d in (torch.double, torch.bfloat16)
    )
    adapter = adapt(coarse)
    ids, mask, positions = laid()
    sites = list(adapter.sites())
    truth, _ = alone_and_padded(adapt(exact), sites)
    alone, padded = alone_and_padded(adapter, sites)
    lanes = adapter.capture(ids, mask, sites, positions_BT=positions)
    for site in sites:
        errors = [
            float((value.double() - truth[site]).norm())
            for value in (lanes[site][mask.bool()], alone[site], padded[site])
        ]
        assert errors[0] <= errors[1] + errors[2], site  # two roundings of the same truth apart


# -- harvests ----------------------------------------------------------------------------------------------------


SITES = ("blocks.1.attn.z", "blocks.1.resid_post", "loss", "stat.norm.blocks.0.resid_post")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return str(toy.save("gpt2", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(60):
        text = toy.TEXT[7 * number % 300 :][: 1 + 13 * (number % 11)]
        (folder / f"{number:02}.txt").write_text(text)
    return str(folder)


def made(url, gpt2, corpus, *, sites=SITES, **options):
    tokens = TokensConfig(source=SOURCES.get("text")(paths=(corpus,)), context=48, part_rows=256)
    harvest = HarvestConfig(model=gpt2, sites=sites, dtype="float32", batch=3, **options)
    ingest(url, tokens, harvest, runtime=InProcess())
    return store.open(url)


def test_a_harvest_in_lanes_holds_what_one_without_holds_in_fewer_forwards(
    tmp_path, gpt2, corpus, monkeypatch
):
    forwards = []
    capture = HookedModel.capture

    def counted(self, ids, *arguments, **options):
        forwards.append(tuple(ids.shape))
        return capture(self, ids, *arguments, **options)

    monkeypatch.setattr(HookedModel, "capture", counted)
    plain = made(tmp_path / "plain", gpt2, corpus)
    without = len(forwards)
    forwards.clear()
    lanes = made(tmp_path / "lanes", gpt2, corpus, lanes=True)
    assert plain.coverage["acts"].parts == lanes.coverage["acts"].parts >= 3
    assert len(forwards) < without
    assert plain.digest() != lanes.digest()  # another recipe
    assert plain.arrow("tokens").equals(lanes.arrow("tokens"))
    rows = slice(0, plain.coverage["acts"].rows)
    for site in SITES[:2]:
        np.testing.assert_allclose(
            lanes.read(site, rows), plain.read(site, rows), rtol=2e-5, atol=2e-5
        )
    one, two = (held.arrow("acts") for held in (plain, lanes))
    for name in SITES[2:]:
        a, b = (np.array(table.column(name).to_numpy()) for table in (one, two))
        assert np.array_equal(np.isnan(a), np.isnan(b))
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    assert "attention_error" in lanes.view.commit("acts", 0).provenance


def test_what_looks_at_whole_lanes_is_refused(tmp_path, gpt2, corpus):
    url = tmp_path / "s"
    for options in (
        {"sites": ("stat.lse.blocks.0.attn",)},
        {"gradient": "exact", "sites": ("blocks.0.resid_post",)},
    ):
        with pytest.raises(IngestError, match=r"lanes-unsupported.*Leave --lanes out"):
            made(url, gpt2, corpus, lanes=True, **options)
    assert not url.exists()


def test_live_statistics_are_told_of_sequences_not_lanes(tmp_path, gpt2, corpus):
    class Watching:
        def requires(self, _model, _stored):
            return ("blocks.0.resid_post",)

        def observer(self, _harvest):
            return self

        sites = ("blocks.0.resid_post",)
        lengths: ClassVar[list[int]] = []

        def done(self, _part):
            return False

        def begin(self, _part):
            pass

        end = begin

        def observe(self, block):
            self.lengths.extend(np.diff(block.bounds).tolist())
            assert len(block.sites["blocks.0.resid_post"]) == len(block.row_ids)

        def close(self):
            pass

    tokens = TokensConfig(source=SOURCES.get("text")(paths=(corpus,)), context=48, part_rows=256)
    harvest = HarvestConfig(model=gpt2, sites=SITES[:1], dtype="float32", batch=3, lanes=True)
    ingest(tmp_path / "s", tokens, harvest, runtime=InProcess(), observers=[Watching()])
    held = store.open(tmp_path / "s").arrow("sequences").column("rows").to_pylist()
    assert Watching.lengths == held
