"""The measurement of training speed, small: every entrant learns the same, the baseline is timed twice."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("training_speed.py")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("training_speed", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_entrant_takes_the_same_steps_and_learns_the_same(script, tmp_path, capsys):
    out = tmp_path / "speed.json"
    words = [
        "--latents",
        "96",
        "--batch-rows",
        "128",
        "--width",
        "16",
        "--k",
        "4",
        "--repeats",
        "5",
    ]
    rows = script.main([*words, "--out", str(out)])
    assert json.loads(out.read_text())["rows"] == rows
    assert capsys.readouterr().out.count("rows/s") == 1
    by_name = {row["entrant"]: row for row in rows}
    names = ["dense", "dense_bfloat16", "bags", "recorded", "dense_bfloat16, again"]
    assert list(by_name) == names
    for row in rows:
        assert row["rows_per_second_p20"] <= row["rows_per_second"] <= row["rows_per_second_p80"]
        assert row["fvu"] == pytest.approx(by_name["dense"]["fvu"], rel=0.02)
    assert by_name["dense_bfloat16"]["fvu"] == by_name["dense_bfloat16, again"]["fvu"]
    fastest = max(by_name[name]["rows_per_second"] for name in (script.BASELINE, script.AGAIN))
    for row in rows:
        assert row["speedup"] == pytest.approx(row["rows_per_second"] / fastest)
    assert set(by_name["recorded"]["forms"]) == {"gather_sum", "scatter_sum", "dots"}


def test_dense_steps_encode_sparsely_and_do_the_rest_densely(script):
    cfg = script.TrainConfig(
        variant={"kind": "topk", "latents": 32, "k": 3},
        steps=10,
        batch_rows=64,
        scale_rows=256,
        median_rows=64,
    )
    feed = script.ArrayFeed(torch.randn(256, 8), 64, 0)
    calls = []

    class Counted:
        def __init__(self, name, form):
            self.name, self.form = name, script.FORMS.get(form)()

        def __getattr__(self, product):
            calls.append((self.name, product))
            return getattr(self.form, product)

    ((_, learner, _),) = script.learners(cfg, feed, ["dense"])
    ops = learner.dictionary.ops.sparse
    ops._dense, ops._sparse = Counted("dense", "dense"), Counted("sparse", "sampled_rows")
    learner.learn(next(feed.batches(0)))
    assert calls.count(("sparse", "dots")) == 1
    assert {product for name, product in calls if name == "sparse"} == {"dots"}
    assert [product for name, product in calls if name == "dense"].count("dots") == 1
    assert {product for name, product in calls if name == "dense"} == {
        "dots",
        "gather_sum",
        "scatter_sum",
    }
