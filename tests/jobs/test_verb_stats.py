"""``actlake stats`` and ``ingest --stats`` from the front door: the same tables, and what bad input is told."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest

import store
from ingest.models import toy
from jobs import cli
from jobs.circuits import STATISTICS
from jobs.errors import UsageError
from jobs.results import Result
from jobs.verbs.circuits import statistics_of

BOTH = "moments,massive_activations"


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("store.posix._sync_file", lambda fd: None)
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
        layers=[1],
        params=["massive_activations.ratio=50", "massive_activations.top=5", "moments.sites=a+b"],
    )
    assert (massive.ratio, massive.top, massive.layers) == (50.0, 5, (1,))
    assert moments.sites == ("a", "b")
    assert statistics_of(["moments"]) == [STATISTICS.get("moments")()]
    with pytest.raises(UsageError, match="unknown-field"):
        statistics_of(["moments"], params=["moments"])


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
