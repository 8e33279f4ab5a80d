"""Bad input to train, eval and import: refused before the first step, with what to do, and nothing written."""

from __future__ import annotations

import json
import pickle
import re

import numpy as np
import pytest
import torch

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.models import toy
from ingest.run import ingest
from ingest.sources import SOURCES
from jobs.cli import main
from jobs.codebook import Codebook
from jobs.runtimes.in_process import InProcess

SITE = "blocks.0.resid_post"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    model = toy.save("gpt2", folder / "model")
    rng = np.random.default_rng(0)
    words = toy.TEXT.split()
    (folder / "corpus").mkdir()
    for number in range(12):
        text = " ".join(rng.choice(words, 120))
        (folder / "corpus" / f"{number:02d}.txt").write_text(text)
    tokens = TokensConfig(
        source=SOURCES.get("text")(paths=(str(folder / "corpus"),)), context=32, part_rows=256
    )
    sites = (SITE, "blocks.1.mlp.in", "blocks.1.mlp.out")
    harvest = HarvestConfig(model=str(model), sites=sites, dtype="float32")
    ingest(folder / "store", tokens, harvest, runtime=InProcess())
    return folder


def book(width):
    rows = torch.nn.functional.normalize(torch.randn(8, width), dim=1)
    return Codebook(rows.t(), torch.zeros(8), rows, torch.zeros(width), 0.0, {"site": SITE})


def half_a_group(made):
    """A group that holds the first part alone."""
    opened = store.open(made / "store")
    if "half" in opened.groups:
        return
    ids = opened.row_ids()
    first = ids[ids < opened.part_stride]
    with opened.writer("half", columns={"y": "float32[32]"}, recipe={"by": "hand"}) as writer:
        writer.put(first, {"y": np.zeros((len(first), 32), np.float32)})


def another_run(made, tmp_path):
    """A result whose checkpoints are of another width."""
    words = train("--latents", "16", "--k", "2", "--rows", "640", "--batch-rows", "64")
    assert main([w.format(s=made / "store", t=tmp_path) for w in words]) == 0
    (result,) = (tmp_path / "r" / "results").iterdir()
    card = json.loads((result / "card.json").read_text())
    (result / "card.json").write_text(json.dumps({**card, "outcome": "failed"}))
    for state in result.glob("checkpoints/*/state.json"):
        record = json.loads(state.read_text())
        record["recipe"]["width"] = 999
        state.write_text(json.dumps(record))


def pickled(made, tmp_path):
    folder = tmp_path / "peer"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoder"}}))
    (folder / "ae.pt").write_bytes(pickle.dumps(print))


def unknown_keys(made, tmp_path):
    folder = tmp_path / "peer"
    folder.mkdir()
    names = ("encoder.weight", "encoder.bias", "decoder.weight", "bias", "rotation")
    torch.save({name: torch.zeros(8, 8) for name in names}, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoder"}}))


def train(*words):
    return ["train", "{s}", "--site", SITE, "--out", "{t}/r", *words]


CASES = {
    "more active latents than latents": (train("--latents", "8", "--k", "9"), r"k-too-large.*k = 9.*8 latents", None),
    "guarantees over the batch's budget": (
        train("--variant", "minfire", "--latents", "4096", "--k", "1", "--batch-rows", "64", "--set", "period=1"),
        r"invalid-config.*period was given as 1; it must be >= 64",
        None,
    ),
    "a width that fits no memory": (
        train("--latents", "4000000000", "--k", "4"), r"over-budget.*GB to train.*GB are free", None
    ),
    "no gradients": (
        train("--variant", "g_sae", "--latents", "16", "--k", "2"),
        r"no-gradient.*actlake ingest --into .*--gradient exact --model .*model --sites",
        None,
    ),
    "no target": (train("--variant", "transcoder", "--latents", "16", "--k", "2"), "no-target", None),
    "groups of different rows": (
        ["train", "{s}", "--site", SITE, "--target", "half:y", "--variant", "transcoder", "--out", "{t}/r",
         "--latents", "16", "--k", "2"],
        "rows",
        lambda made, tmp_path: half_a_group(made),
    ),
    "checkpoints of another width": (
        train("--latents", "16", "--k", "2", "--rows", "640", "--batch-rows", "64"),
        "other-recipe",
        another_run,
    ),
    "an unknown variant": (train("--variant", "spline"), "unknown-name.*batch_topk", None),
    "an unknown tracker": (train("--track", "mlflow"), "unknown-name.*tensorboard", None),
    "a dictionary of another width": (
        ["eval", "{t}/d", "--on", "{s}", "--split", "all", "--out", "{t}/r"],
        "width-mismatch",
        lambda made, tmp_path: book(48).save(tmp_path / "d"),
    ),
    "a setting of a suite that was not asked for": (
        ["eval", "{t}/d", "--on", "{s}", "--model", "/nowhere", "--out", "{t}/r"],
        r"--model is about suite behaviour.*--suite core,behaviour",
        lambda made, tmp_path: book(32).save(tmp_path / "d"),
    ),
    "the best on rows there are not": (
        train("--latents", "16", "--k", "2", "--batch-rows", "512", "--keep-best"),
        r"no-held-out.*split val.*--keep-best",
        None,
    ),
    "an imported file with code in it": (
        ["import", "dictionary_learning", "{t}/peer", "--out", "{t}/r"], "never run", pickled
    ),
    "an imported file with unknown keys": (
        ["import", "dictionary_learning", "{t}/peer", "--out", "{t}/r"], "rotation", unknown_keys
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_it_is_refused_with_what_to_do(case, made, tmp_path, capsys):
    words, expected, spoil = case
    if spoil is not None:
        spoil(made, tmp_path)
    capsys.readouterr()
    before = sorted(path for path in tmp_path.rglob("*"))
    code = main([word.format(s=made / "store", t=tmp_path) for word in words])
    told = capsys.readouterr().err
    assert code not in (0, 130)
    assert "Traceback" not in told
    said = " ".join(told.split())
    assert re.search(expected, said), said
    assert re.search(r"[Nn]othing|No step was taken", said), said
    if expected != "other-recipe":
        assert sorted(path for path in tmp_path.rglob("*")) == before
