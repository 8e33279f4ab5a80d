"""Live and offline runs leave the same bits: every statistic of the registry, on toy models."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.models import toy
from ingest.models.facts import ModelFacts
from ingest.run import ingest, ingest_into
from ingest.sources import SOURCES
from jobs.circuits import STATISTICS
from jobs.circuits.live import LiveStatistic
from jobs.circuits.run import statistics_on
from jobs.runtimes.in_process import InProcess
from jobs.sequences import model_facts
from store.errors import ActlakeError

EVERY = "blocks.*.*"
NAMES = STATISTICS.names()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    words = toy.TEXT.split()
    for number in range(6):
        text = " ".join(rng.choice(words, int(rng.integers(5, 80))))
        (folder / f"d{number:02d}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request, tmp_path_factory):
    return toy.save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def made(tmp_path_factory, corpus, model):
    """A function: dtype → a store that holds every site of the model."""
    held = {}

    def make(dtype):
        if dtype not in held:
            held[dtype] = f"memory://live-{tmp_path_factory.mktemp('stored')}"
            run(held[dtype], corpus, model, dtype=dtype)
        return store.open(held[dtype])

    return make


def run(url, corpus, model, *, names=(), sites=(EVERY,), dtype="bfloat16", runtime=None):
    tokens = TokensConfig(
        source=SOURCES.get("text")(paths=(str(corpus),)), context=48, part_rows=256
    )
    harvest = HarvestConfig(model=str(model), sites=sites, dtype=dtype, batch=3)
    plans = [LiveStatistic(statistic=STATISTICS.get(name)()) for name in names]
    ingest(url, tokens, harvest, runtime=runtime or InProcess(), observers=plans)
    return store.open(url)


def stat_groups(opened):
    return [name for name in opened.groups if name.startswith("stat.")]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_live_is_offline_bit_for_bit_for_every_statistic(tmp_path, corpus, model, made, dtype):
    live = run(tmp_path / "live", corpus, model, names=NAMES, dtype=dtype)
    offline = made(dtype)
    results = statistics_on(offline, [STATISTICS.get(name)() for name in NAMES], tmp_path)
    offline = offline.refresh()
    assert len(results) == len(NAMES)
    assert stat_groups(live) == stat_groups(offline) != []
    for group in stat_groups(live):
        assert live.coverage[group].sealed
        assert live.digest([group]) == offline.digest([group]), group


def test_what_was_seen_live_is_not_read_again_and_needs_no_columns(
    tmp_path, corpus, model, made, monkeypatch
):
    """Sites that only an observer needs are not stored, yet the partials are those of an offline run."""
    one = ("blocks.0.resid_post",)
    names = [name for name in NAMES if name != "moments"]
    live = run(tmp_path / "live", corpus, model, names=names, sites=one)
    assert set(live.groups["acts"].columns) == set(one)
    offline = made("bfloat16")
    found = statistics_on(offline, [STATISTICS.get(name)() for name in names], tmp_path)
    taken = statistics_on(live, [STATISTICS.get(name)() for name in names], tmp_path / "taken")
    for there, here in zip(found, taken, strict=True):
        for name in there.tables():
            for column, values in there.table(name).items():
                assert np.array_equal(values, here.table(name)[column], equal_nan=True), column
    for group in stat_groups(live):
        assert live.digest([group]) == offline.refresh().digest([group])


def test_the_facts_beside_the_columns_are_the_models_own(made, model):
    facts = model_facts(made("float32"))
    named = model_facts(made("float32"), model=str(model))
    assert facts == named
    assert facts.attention(1).heads == 4
    assert facts.layers == 2


class Stopping:
    """A runtime that dies inside a part: after the observers ended it, before the harvest commits."""

    def __init__(self, parts):
        self.parts = parts

    def map(self, make_worker, parts):
        worker = make_worker()
        for number, part in enumerate(parts):
            if number == self.parts:
                worker._writer.put = _die
                worker.run(part)
            yield part, worker.run(part)
        worker.close()


def _die(*args, **more):
    raise KeyboardInterrupt


def test_a_run_killed_between_its_commits_ends_as_one_that_was_not(tmp_path, corpus, model):
    names = ["moments", "massive_activations"]
    sites = ("blocks.*.resid_post",)
    whole = run(tmp_path / "whole", corpus, model, names=names, sites=sites)
    parts = len(whole.view.parts("tokens"))
    assert parts >= 3
    for stop in {0, parts // 2, parts - 1}:
        url = tmp_path / f"stopped-{stop}"
        with pytest.raises(KeyboardInterrupt):
            run(url, corpus, model, names=names, sites=sites, runtime=Stopping(stop))
        again = run(url, corpus, model, names=names, sites=sites)
        assert again.digest() == whole.digest()
        assert store.verify(again).ok


def test_parts_harvested_without_a_statistic_are_left_to_the_offline_run(tmp_path, corpus, model):
    url = tmp_path / "s"
    sites = ("blocks.*.resid_post",)
    run(url, corpus, model, sites=sites)
    live = run(url, corpus, model, sites=sites, names=["moments"])
    groups = stat_groups(live)
    assert not any(live.coverage[group].parts for group in groups)
    statistics_on(live, [STATISTICS.get("moments")()], tmp_path)
    whole = run(tmp_path / "whole", corpus, model, sites=sites, names=["moments"])
    assert store.open(url).digest() == whole.digest()


def test_statistics_of_a_group_added_later(tmp_path, corpus, model, made):
    url = tmp_path / "s"
    run(url, corpus, model, sites=("embed",))
    harvest = HarvestConfig(
        model=str(model), sites=(EVERY,), dtype="bfloat16", batch=3, group="more"
    )
    plan = LiveStatistic(statistic=STATISTICS.get("massive_activations")())
    ingest_into(url, harvest, runtime=InProcess(), observers=[plan])
    live, offline = store.open(url), made("bfloat16")
    statistics_on(offline, [STATISTICS.get("massive_activations")()], tmp_path)
    (group,) = stat_groups(live)
    assert live.digest([group]) == offline.refresh().digest([group])


def test_an_observer_travels_until_it_has_begun(made):
    opened = made("bfloat16")
    plan = LiveStatistic(statistic=STATISTICS.get("moments")())
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert plan.requires(model_facts(opened), ["embed"]) == ("embed",)


def test_what_a_model_cannot_have_is_refused_before_anything_is_written(tmp_path, corpus):
    model, refused = toy.save("bert", tmp_path / "bert"), {}
    for name in NAMES:
        url = tmp_path / name
        statistic, facts = STATISTICS.get(name)(), ModelFacts.of_folder(model)[0]
        try:
            statistic.requires(facts)
        except ActlakeError as error:
            refused[name] = str(error)
            with pytest.raises(ActlakeError):
                run(url, corpus, model, names=[name])
            assert not url.exists()
    assert any("causal" in text or "bidirectional" in text for text in refused.values())
    assert not set(refused) & {"moments", "massive_activations"}
