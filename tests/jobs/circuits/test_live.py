"""Live and offline runs leave the same bits: every statistic of the registry, on toy models."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.errors import ModelError
from ingest.models import toy
from ingest.models.facts import ModelFacts
from ingest.run import ingest, ingest_into
from ingest.sources import SOURCES
from jobs.circuits import STATISTICS
from jobs.circuits.live import LiveStatistic
from jobs.circuits.run import statistics_on
from jobs.errors import JobError
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


@pytest.fixture(scope="module")
def other_model(tmp_path_factory, model):
    family = "llama" if "llama" in str(model) else "gpt2"
    return toy.save(family, tmp_path_factory.mktemp("other"), seed=1)


def add(url, model, group, *, sites=("blocks.*.resid_post",), dtype="bfloat16", names=()):
    harvest = HarvestConfig(model=str(model), sites=sites, dtype=dtype, batch=3, group=group)
    plans = [LiveStatistic(statistic=STATISTICS.get(name)()) for name in names]
    ingest_into(url, harvest, runtime=InProcess(), observers=plans)
    return store.open(url)


def test_one_models_statistics_are_never_anothers(tmp_path, corpus, model, other_model):
    """Taken live of one model, they answer for its own groups alone, whatever else the store holds by then."""
    sites, induction = ("blocks.1.resid_post",), STATISTICS.get("induction")()
    opened = run(tmp_path / "s", corpus, model, sites=sites, names=["induction"])
    (group,) = stat_groups(opened)
    opened = add(opened.url, other_model, "other")
    with pytest.raises(JobError, match="columns-missing"):
        statistics_on(opened, [induction], tmp_path, groups=["other"])
    opened = add(opened.url, other_model, "more", sites=("blocks.*.attn.*",))
    (mine,) = statistics_on(opened, [induction], tmp_path, groups=["acts"])
    (theirs,) = statistics_on(opened, [induction], tmp_path, groups=["more"])
    assert mine.card.config["partials"] == group != theirs.card.config["partials"]
    assert not np.array_equal(
        mine.table("heads")["previous_token"], theirs.table("heads")["previous_token"]
    )


@pytest.mark.parametrize("names", [["induction"], ["induction", "massive_activations"]], ids=len)
def test_what_was_taken_of_some_parts_only_is_refused(tmp_path, corpus, model, names):
    sites = ("blocks.*.resid_post",)
    url = tmp_path / "s"
    with pytest.raises(KeyboardInterrupt):
        run(url, corpus, model, sites=sites, names=["induction"], runtime=Stopping(2))
    opened = run(url, corpus, model, sites=sites)
    (group,) = stat_groups(opened)
    assert 0 < len(opened.view.parts(group)) < len(opened.view.parts("acts"))
    with pytest.raises(JobError, match="columns-missing"):
        statistics_on(opened, [STATISTICS.get(name)() for name in names], tmp_path)


def test_a_result_is_the_same_whatever_else_is_asked_with_it(tmp_path, corpus, model):
    sites = ("blocks.*.resid_post",)
    opened = run(tmp_path / "s", corpus, model, sites=sites, names=["induction"])
    opened = add(opened.url, model, "more", sites=("blocks.*.attn.*",))
    every = [STATISTICS.get(name)() for name in ("induction", "moments", "massive_activations")]
    both = statistics_on(opened, [*every, every[0]], tmp_path)
    assert len(both) == 3
    for statistic, whole in zip(every, both, strict=True):
        (alone,) = statistics_on(opened, [statistic], tmp_path)
        assert alone.path == whole.path


@pytest.mark.parametrize("keep", [True, False])
def test_what_was_taken_live_and_what_is_stored_go_together(tmp_path, corpus, model, keep):
    sites = ("blocks.*.resid_post",)
    opened = run(tmp_path / "s", corpus, model, sites=sites, names=["induction"])
    asked = [STATISTICS.get(name)() for name in ("induction", "massive_activations")]
    found = statistics_on(opened, asked, tmp_path, keep=keep)
    assert [result.card.outcome for result in found] == ["done", "done"]
    assert len(stat_groups(opened.refresh())) == 1 + keep


def test_other_dtypes_of_one_model_are_other_partials(tmp_path, corpus, model):
    opened = run(tmp_path / "s", corpus, model, sites=("blocks.*.resid_post",), dtype="float32")
    statistic = STATISTICS.get("massive_activations")()
    harvest = HarvestConfig(
        model=str(model), sites=("blocks.*.resid_post",), dtype="float32", batch=3,
        store_dtype="bfloat16", group="half",
    )  # fmt: skip
    ingest_into(opened.url, harvest, runtime=InProcess())
    opened = store.open(opened.url)
    found = [statistics_on(opened, [statistic], tmp_path, groups=[g])[0] for g in ("acts", "half")]
    assert len({result.card.config["partials"] for result in found}) == 2
    assert not np.array_equal(*(result.table("layers")["top1"] for result in found))


def test_columns_of_no_known_model_have_no_heads_and_no_blocks(tmp_path):
    from store.testing.small import fill, tokens_store

    opened = fill(tokens_store(tmp_path / "s"), "mine", {"h": "float32[16]"})
    for name in NAMES:
        if name == "moments":
            assert statistics_on(opened, [STATISTICS.get(name)()], tmp_path)
            continue
        with pytest.raises(ModelError, match="facts-missing"):
            statistics_on(opened, [STATISTICS.get(name)()], tmp_path)


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
