"""The demo as a new user runs it, small; then the README's own examples on its store."""

import json
import os
import re
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

import store
from jobs.results import Result

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEMO = [
    "demo",
    "--corpus",
    "topics.jsonl",
    "--rows",
    "12k",
    "--latents",
    "256",
    "--k",
    "8",
    "--epochs",
    "2",
    "--heads-rows",
    "4k",
]
HERE = ["--runtime", "in_process"]
PARAGRAPHS = [
    paragraph
    for text in topics.values()
    for paragraph in text.split("\n\n")
    if 150 < len(paragraph) < 900
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with ``actlake-demo/`` in it, as the README's examples expect."""
    from jobs import cli

    folder = tmp_path_factory.mktemp("home")
    lines = [json.dumps({"text": text}) for text in PARAGRAPHS]
    (folder / "topics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert cli.main([*DEMO, *HERE]) == 0
    finally:
        os.chdir(before)
    return folder


def _example(name: str) -> str:
    found = re.search(rf"<!-- example: {name} -->\n```\w+\n(.*?)```", README, flags=re.S)
    assert found is not None
    return found[1]


def test_it_leaves_a_verified_store_results_and_a_report(home):
    demo = home / "actlake-demo"
    opened = store.open(demo / "store")
    assert [*opened.groups] == ["tokens", "acts", "codes"]
    assert all(c.sealed and c.rows == 12_000 for c in opened.coverage.values())
    assert store.verify(opened).ok
    cards = {
        p.parent.name.partition("-")[0]: json.loads(p.read_text())
        for p in demo.glob("results/*/card.json")
    }
    assert set(cards) == {
        "ingest",
        "train",
        "eval",
        "contexts",
        "stats",
        "confirm",
        "passages",
        "bench",
    }
    assert {card["outcome"] for card in cards.values()} == {"done"}
    page = (demo / "report.html").read_text(encoding="utf-8")
    assert opened.id in page
    assert not re.search(r'(src|href)="https?:', page)


def test_the_shipped_models_induction_heads_are_found_and_confirmed(home):
    demo = home / "actlake-demo"
    found = Result.open(next(demo.glob("results/confirm-*"))).table("confirmation")
    assert set(found["layer"].tolist()) == {4}
    assert set(found["head"].tolist()) <= {0, 1, 2, 3}
    assert found["confirmed"].tolist() == [1, 1, 1]
    assert (np.asarray(found["rise"]) > 0.5).all()
    pairs = Result.open(next(demo.glob("results/passages-*"))).table("head_passages")
    assert set(np.asarray(pairs["layer"]).tolist()) == {4}


def test_statistics_were_taken_live_and_cost_no_columns(home):
    heads = store.open(home / "actlake-demo" / "heads")
    kinds = {name.partition("-")[0] for name in heads.groups if name.startswith("stat.")}
    assert kinds == {
        "stat.induction",
        "stat.attention_sinks",
        "stat.massive_activations",
        "stat.moments",
    }
    assert {column.split(".")[1] for column in heads.groups["attn"].columns} == {"3", "4"}
    assert store.verify(heads).ok


def test_the_report_tells_of_everything(home):
    page = (home / "actlake-demo" / "report.html").read_text(encoding="utf-8")
    for name in ("Evaluation", "Training", "Telling latents", "Heads", "Sinks", "Where heads look", "Ablation",
                 "Sparse attention", "Attention times", "Sparse codes", "Run card"):  # fmt: skip
        assert re.search(rf"<h2[^>]*>{name}", page), name


@pytest.mark.cluster
def test_through_ray_the_stores_are_the_same(home, tmp_path, monkeypatch):
    from jobs import cli

    (tmp_path / "topics.jsonl").write_bytes((home / "topics.jsonl").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert cli.main([*DEMO, "--workers", "2", "--threads", "1"]) == 0
    for name in ("store", "heads", "repeats"):
        here, there = (store.open(at / "actlake-demo" / name) for at in (home, tmp_path))
        assert here.digest() == there.digest(), name


def test_codes_are_what_the_dictionary_says(home):
    from jobs.codebook import Codebook

    opened = store.open(home / "actlake-demo" / "store")
    files = opened.asset(opened.groups["codes"].recipe["dictionary"])
    book = Codebook.from_bytes(files)
    rows = opened.row_ids(slice(100, 200))
    codes = book.encode(opened.gather("acts:blocks.3.resid_post", rows))
    table = opened.arrow("codes")
    row = table["row"].to_numpy()
    mine = np.isin(row, rows)
    assert np.array_equal(row[mine], rows[codes.row_index])
    assert np.array_equal(table["latent"].to_numpy()[mine], codes.latent)
    assert np.allclose(table["value"].to_numpy()[mine], codes.value, rtol=1e-5)


def test_contexts_quote_the_documents(home):
    demo = home / "actlake-demo"
    found = Result.open(next(demo.glob("results/contexts-*")))
    contexts, tokens = found.table("contexts"), found.table("context_tokens")
    checked = 0
    for latent, rank, document in zip(
        contexts["latent"], contexts["rank"], contexts["document"], strict=True
    ):
        mine = (np.asarray(tokens["latent"]) == latent) & (np.asarray(tokens["rank"]) == rank)
        quoted = "".join(np.asarray(tokens["text"], object)[mine])
        source = PARAGRAPHS[int(document.rpartition(":")[2]) - 1]
        assert quoted.strip()
        assert quoted in source
        checked += 1
    assert checked > 10


def test_running_it_again_changes_nothing(home, front_door, monkeypatch):
    monkeypatch.chdir(home)
    before = store.open("actlake-demo/store").digest()
    code, out, _ = front_door(*DEMO, "--json")
    assert code == 0
    assert json.loads(out)["digest"] == before


def test_other_settings_are_refused_in_its_folder(home, front_door, monkeypatch):
    monkeypatch.chdir(home)
    code, _, err = front_door(*DEMO, "--seed", "5")
    assert code == 1
    assert "other-config" in err
    assert "seed: 5" in err


def test_the_readmes_groups_join_by_row_in_one_query(home, front_door, monkeypatch):
    from ingest.models import bundled

    monkeypatch.chdir(home)
    words = ["--into", "actlake-demo/store", "--group", "early", "--model", bundled()]
    assert front_door("ingest", *words, "--sites", "blocks.0.resid_post")[0] == 0
    example = _example("writer")
    assert len(example.strip().splitlines()) <= 15
    exec(compile(example, "README.md", "exec"), {})
    opened = store.open("actlake-demo/store")
    assert opened.coverage["mine"].sealed
    code, out, err = front_door("query", "actlake-demo/store", _example("join"), "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert len(rows) == 5
    assert set(rows[0]) == {"name", "pos", "norm", "latent", "value"}
    norms = np.linalg.norm(opened.read("mine:h"), axis=1)
    assert np.isclose(norms, rows[0]["norm"], rtol=0.01).any()
    assert rows[0]["value"] == max(row["value"] for row in rows)
