"""F1 end to end: its q and k in a store, scores from the store, the top head asked by ablation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import store
from ingest.models.facts import ModelFacts
from jobs.circuits import STATISTICS
from jobs.circuits.confirm import ConfirmConfig, confirm_induction
from jobs.circuits.run import statistics_on
from store.tokens import FLAG_SPECIAL

_numbers = itertools.count()


@pytest.fixture(scope="module")
def f1(oracle):
    return oracle("compiled_induction")


@pytest.fixture(scope="module")
def model(f1):
    return f1.loaded()


@pytest.fixture(scope="module")
def held(f1, model):
    """A store of three parts: 20 sequences of periods 12 to 16, q and k of both blocks."""
    rng = np.random.default_rng(0)
    made = store.create(f"memory://induction-{next(_numbers)}", part_rows=256)
    ids = [f1.repeated(rng, int(rng.integers(12, 17)))[0] for _ in range(20)]
    with made.writer("tokens", recipe={"by": "test"}) as w:
        for one in ids:
            flags = (one == f1.BOS) * np.uint16(FLAG_SPECIAL)
            w.put([store.TokenSequence(token_ids=one.astype(np.int32), flags=flags)])
        w.seal()
    made = made.refresh()
    sites = [f"blocks.{layer}.attn.{name}" for layer in range(2) for name in "qk"]
    values = {site: [] for site in sites}
    for one in ids:
        batch = torch.from_numpy(one)[None]
        for site, value in model.adapter.capture(batch, torch.ones_like(batch), sites).items():
            values[site].append(value[0].numpy())
    whole = {site: np.concatenate(parts).astype(np.float32) for site, parts in values.items()}
    asset = made.put_asset(ModelFacts.of(model.adapter).to_files())
    columns = dict.fromkeys(sites, f"bfloat16[{f1.HEADS},{f1.HEAD_WIDTH}]")
    recipe = {"by": "test"}
    with made.writer("acts", columns=columns, recipe=recipe, provenance={"model": asset}) as w:
        w.put(made.row_ids(), whole)
    return made.refresh()


@pytest.fixture(scope="module")
def results(held, tmp_path_factory):
    kinds = (STATISTICS.get("induction")(), STATISTICS.get("attention_sinks")(queries=25))
    return statistics_on(held, kinds, tmp_path_factory.mktemp("stats"))


def test_the_scores_from_the_store_are_the_known_ones(f1, held, results):
    assert len(held.view.parts("acts")) == 3
    heads = results[0].table("heads")
    score = heads["prefix_matching"].reshape(2, 4)
    for head in (f1.INDUCTION, f1.DECOY):
        assert score[head] == pytest.approx(1, abs=1e-4)
    assert np.sort(score.reshape(-1))[-3] < 0.1
    assert heads["previous_token"].reshape(2, 4)[f1.PREVIOUS] == pytest.approx(1, abs=1e-4)
    assert set(heads["sequences"]) == {20}


def test_contexts_are_rows_of_the_store(f1, held, results):
    pairs = results[0].table("head_contexts")
    token = dict(zip(held.row_ids().tolist(), held.read("token_id").tolist(), strict=True))
    mine = (pairs["layer"] == 1) & (pairs["head"] == 0)
    assert mine.sum() == 8
    for query, key in zip(pairs["query_row"][mine], pairs["key_row"][mine], strict=True):
        assert token[query] == token[key - 1]
        assert key < query


def test_no_head_of_f1_sinks_but_the_unmatched_ones_lean_on_the_first(f1, results):
    table = results[1].table("sink_heads")
    assert set(table["n"]) == {20}
    assert (table["sink_rate"] == 0).all()
    alpha = results[1].table("attention_sinks")["alpha"].reshape(2, 4, 4)
    assert alpha[f1.INDUCTION][0] > alpha[f1.PREVIOUS][0]


def test_the_scores_are_confirmed_by_ablation(f1, model, results, tmp_path):
    config = ConfirmConfig(sequences=8, periods=(8, 16))
    heads = results[0].table("heads")
    found = confirm_induction(model, heads, tmp_path, config).table("confirmation")
    top = set(zip(found["layer"].tolist(), found["head"].tolist(), strict=True))
    # The two perfect heads tie to the last bits: the score cannot tell them apart, ablation can.
    assert top <= {f1.INDUCTION, f1.DECOY}
    for name, known in ((f1.INDUCTION, 1), (f1.DECOY, 0)):
        alone = dict(heads)
        alone["prefix_matching"] = heads["prefix_matching"].copy()
        alone["prefix_matching"][name[0] * 4 + name[1]] = 1.5
        found = confirm_induction(model, alone, tmp_path, config).table("confirmation")
        assert set(zip(found["layer"], found["head"], strict=True)) == {name}
        assert set(found["confirmed"]) == {known}
