"""``actlake stats`` and ``ingest --stats`` from the front door: the same tables, and what bad input is told."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest

import store
from ingest.models import AttentionSpec, toy
from ingest.models.facts import ModelFacts
from jobs import cli
from jobs.circuits import STATISTICS
from jobs.errors import UsageError
from jobs.results import Result
from jobs.verbs.circuits import named_sites, statistics_of

BOTH = "moments,massive_activations"


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("store.system.System.fdatasync", lambda self, fd: None)
    monkeypatch.setattr("os.fsync", lambda fd: None)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for number in range(4):
        (folder / f"d{number}.txt").write_text(" ".join(rng.choice(toy.TEXT.split(), 60)))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy.save("gpt2", tmp_path_factory.mktemp("models") / "the model")


def ingest(url, corpus, model, *more):
    words = ["ingest", "--model", model, "--corpus", corpus, "--out", url, "--dtype", "float32"]
    words += ["--context", "32", "--part-rows", "256", *more]
    assert cli.main([str(word) for word in words]) == 0
    return store.open(url)


def run(capsys, *words):
    code = cli.main([*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_live_and_offline_say_the_same(tmp_path, corpus, model, capsys):
    sites = ("--sites", "blocks.*.resid_post")
    live = ingest(tmp_path / "live", corpus, model, *sites, "--stats", BOTH)
    offline = ingest(tmp_path / "offline", corpus, model, *sites)
    capsys.readouterr()
    assert sum(name.startswith("stat.") for name in live.groups) == 2
    tables = {}
    for name, opened in {"a": live, "b": offline}.items():
        code, found = run(capsys, "stats", opened.url, "--stats", BOTH, "--out", tmp_path / name)
        assert code == 0
        assert [one["statistic"] for one in found] == BOTH.split(",")
        result = Result.open(found[0]["result"])
        assert found[0]["tables"] == ["features", "sites"]
        tables[opened.url] = result.table("sites")
    one, other = tables.values()
    assert one["site"] == other["site"] == ["blocks.0.resid_post", "blocks.1.resid_post"]
    assert np.array_equal(one["rms_mean"], other["rms_mean"])
    assert store.open(tmp_path / "live").digest() == store.open(tmp_path / "offline").digest()


def test_missing_columns_are_answered_with_a_command_that_works(tmp_path, corpus, model, capsys):
    opened = ingest(tmp_path / "s", corpus, model, "--sites", "blocks.0.resid_post", "--batch", "4")
    capsys.readouterr()
    words = ["stats", opened.url, "--stats", "massive_activations", "--out", tmp_path]
    code, found = run(capsys, *words)
    assert code != 0
    assert found["error"]["kind"] == "columns-missing"
    command = shlex.split(found["error"]["message"].partition("Add them: ")[2])
    assert command[0] == "actlake"
    assert cli.main(command[1:]) == 0
    capsys.readouterr()
    code, found = run(capsys, *words)
    assert code == 0
    assert set(Result.open(found[0]["result"]).table("layers")["layer"]) == {0, 1}


BAD = {
    "unknown": (["--stats", "magic"], "unknown-name", "massive_activations"),
    "no-setting": (["--stats", "moments", "--params", "moments.depth=3"], "unknown-field", "sites"),
    "not-named": (["--stats", "moments", "--params", "other.top=3"], "unknown-field", "STATISTIC"),
    "no-number": (
        ["--stats", "massive_activations", "--params", "massive_activations.top=x"],
        "bad-number",
        "fit",
    ),
    "no-site": (
        ["--stats", "moments", "--sites", "blocks.*.nothing"],
        "unknown-site",
        "resid_post",
    ),
    "no-group": (["--stats", "moments", "--group", "nothing"], "group-missing", "acts"),
    "no-column": (["--stats", "moments", "--sites", "embed"], "columns-missing", "--sites embed"),
}


@pytest.mark.parametrize(("words", "kind", "said"), BAD.values(), ids=BAD)
def test_bad_words_are_refused_before_anything_is_written(
    tmp_path, corpus, model, capsys, words, kind, said
):
    opened = ingest(tmp_path / "s", corpus, model, "--sites", "blocks.*.resid_post")
    capsys.readouterr()
    code, found = run(capsys, "stats", opened.url, *words, "--out", tmp_path / "out")
    assert code != 0
    assert found["error"]["kind"] == kind
    assert said in found["error"]["message"]
    assert not (tmp_path / "out").exists()
    assert set(opened.refresh().groups) == {"tokens", "acts"}


def test_ingest_refuses_an_unknown_statistic_and_one_without_a_model(
    tmp_path, corpus, model, capsys
):
    words = ["ingest", "--model", model, "--corpus", corpus, "--out", tmp_path / "s"]
    code, found = run(capsys, *words, "--stats", "magic")
    assert code != 0
    assert found["error"]["kind"] == "unknown-name"
    words = ["ingest", "--source", "synthetic:width=32,features=64,active=3", "--rows", "600"]
    code, found = run(capsys, *words, "--out", tmp_path / "s", "--stats", "moments")
    assert code == 2
    assert "without one" in found["error"]["message"]
    assert not (tmp_path / "s").exists()


def test_settings_sites_and_layers_reach_the_statistics():
    massive, moments = statistics_of(
        ["massive_activations", "moments"],
        params=[
            "massive_activations.ratio=50",
            "massive_activations.top=5",
            "massive_activations.layers=1",
            "moments.sites=a+b",
        ],
    )
    assert statistics_of(["massive_activations"], layers=[1])[0].layers == (1,)
    assert (massive.ratio, massive.top, massive.layers) == (50.0, 5, (1,))
    assert moments.sites == ("a", "b")
    assert statistics_of(["moments"]) == [STATISTICS.get("moments")()]
    with pytest.raises(UsageError, match="unknown-field"):
        statistics_of(["moments"], params=["moments"])
    with pytest.raises(UsageError, match=r"unknown-field.*'moments' goes by sites"):
        statistics_of(["massive_activations", "moments"], layers=[1])


FOUR = [f"blocks.{n}.resid_post" for n in range(4)]


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        (["@50%"], ["blocks.3.resid_post"]),
        (["blocks.*.resid_post"], FOUR),
        (["blocks.{0,5}.resid_post"], FOUR[:1]),
        (["blocks.5.resid_post"], ["blocks.5.resid_post"]),
        (["blocks.4.mlp.*"], ["blocks.4.mlp.in", "blocks.4.mlp.out"]),
        (["blocks.foo"], ["blocks.foo"]),
        (["mine", "embed"], ["mine", "embed"]),
    ],
    ids=["share", "set", "partly stored", "not stored", "set of none", "odd name", "plain"],
)
def test_sites_mean_what_they_mean_at_ingest(patterns, wanted):
    """A store may hold few of a model's blocks; the middle is that of the model, not of what is there."""
    spec = AttentionSpec(heads=1, kv_heads=1, head_width=4, scale=1.0, causal=True)
    names = [
        "embed",
        *(f"blocks.{n}.{s}" for n in range(6) for s in ("mlp.in", "mlp.out", "resid_post")),
    ]
    facts = ModelFacts(
        family="toy", layers=6, width=4, causal=True, shapes=dict.fromkeys(names, (4,)),
        attentions=(spec,) * 6,
    )  # fmt: skip
    stored = [*FOUR, "mine", "blocks.foo"]
    assert list(named_sites(patterns, stored, facts)) == wanted
    unknown = replace(facts, layers=0, shapes={}, attentions=())
    if patterns[0] not in {
        "blocks.4.mlp.*",
        "@50%",
        "blocks.{0,5}.resid_post",
    }:  # a model is needed
        assert list(named_sites(patterns, stored, unknown)) == wanted


def test_statistics_asked_of_parts_that_were_there_say_so(tmp_path, corpus, model, capsys):
    sites = ("--sites", "blocks.*.resid_post")
    ingest(tmp_path / "s", corpus, model, *sites)
    capsys.readouterr()
    opened = ingest(tmp_path / "s", corpus, model, *sites, "--stats", "moments")
    said = capsys.readouterr().out
    parts = len(opened.view.parts("acts"))
    assert f"{parts} of these parts were harvested before --stats was asked for" in said
    words = ["ingest", "--model", model, "--corpus", corpus, "--out", tmp_path / "t", *sites]
    words += ["--context", "32", "--part-rows", "256", "--stats", "moments"]
    assert run(capsys, *words)[1]["unobserved_parts"] == 0


def test_the_command_for_missing_columns_runs_anywhere(
    tmp_path, corpus, model, capsys, monkeypatch
):
    """The model was named by a relative path, and attends in another way than usual."""
    monkeypatch.chdir(model.parent)
    more = ("--sites", "blocks.0.resid_post", "--attn-implementation", "eager")
    opened = ingest(tmp_path / "s", corpus, model.name, *more)
    monkeypatch.chdir("/")
    capsys.readouterr()
    words = ["stats", opened.url, "--stats", "induction", "--out", tmp_path]
    _, found = run(capsys, *words)
    command = shlex.split(found["error"]["message"].partition("Add them: ")[2])
    assert command[command.index("--model") + 1] == str(model)
    assert command[command.index("--attn-implementation") + 1] == "eager"
    assert cli.main(command[1:]) == 0
    capsys.readouterr()
    assert run(capsys, *words)[0] == 0
    other = ["stats", opened.url, "--stats", "massive_activations", "--out", tmp_path]
    _, found = run(capsys, *other, "--model", model)
    assert f"--model '{model}'" in found["error"]["message"]


def test_inspect_shows_partial_columns(tmp_path, corpus, model, capsys):
    opened = ingest(tmp_path / "s", corpus, model, "--stats", "moments")
    capsys.readouterr()
    assert cli.main(["inspect", opened.url]) == 0
    text = capsys.readouterr().out
    assert "group stat.moments-" in text
    code, found = run(capsys, "inspect", opened.url)
    assert code == 0
    (group,) = (group for group in found["groups"] if group["name"].startswith("stat."))
    (column,) = group["columns"]
    assert (column["name"], column["kind"], column["dtype"]) == ("state", "partial", "partial")
    assert column["bytes"] == group["bytes"] > 0
    assert cli.main(["tables", opened.url]) == 0
    assert cli.main(["verify", opened.url]) == 0
