"""The shipped model and the script that makes its like."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch

from ingest.errors import ModelError
from ingest.models import bundled_causal, load
from ingest.models.toy import TEXT
from ingest.models.weights import recipe as making
from ingest.models.weights.recipe import BOS_ID, Recipe
from ingest.models.weights.train import loss_by_copy, main, train

SMALL = Recipe(
    vocab=300, layers=1, width=16, heads=2, kv_heads=1, inner=32, positions=64, length=32, batch=4,
    low=4, high=12, steps=24, warmup=4, peak=1e-2, seed=3,
)  # fmt: skip
TEXTS = ([line for line in TEXT.splitlines() for _ in range(4)], [TEXT])


@pytest.fixture(scope="module")
def shipped():
    return load(str(bundled_causal()))


def test_the_shipped_model_is_small_and_whole(shipped):
    assert (shipped.adapter.family, shipped.adapter.layers, shipped.adapter.width) == (
        "llama",
        6,
        256,
    )
    spec = shipped.adapter.attention(3)
    assert (spec.heads, spec.kv_heads, spec.head_width) == (8, 2, 32)
    assert len(shipped.tokenizer) == shipped.model.config.vocab_size == 4096
    assert (shipped.tokenizer.bos_token_id, shipped.tokenizer.pad_token_id) == (0, 1)
    assert sum(file.stat().st_size for file in bundled_causal().iterdir()) < 12e6


def test_the_shipped_model_is_described_beside_it(shipped):
    text = (bundled_causal().parent / "README.md").read_text(encoding="utf-8")
    digest = hashlib.sha256((bundled_causal() / "model.safetensors").read_bytes()).hexdigest()
    assert digest in text
    for said in ("512", "3851", "seed 1", "standard library", "one core"):
        assert said in text


def test_the_shipped_model_has_induction(shipped):
    first, second = loss_by_copy(shipped.model, 4096, sequences=4, period=60)
    assert first > 8.0  # random tokens: the logarithm of 4096 is 8.3
    assert second < 0.4


def test_what_is_random_in_a_batch_is_a_function_of_seed_and_step():
    tokens = np.arange(2000, dtype=np.int32) % 290
    one, two = (making.batch(SMALL, tokens, 300, step) for step in (7, 8))
    assert one.shape == (4, 32)
    assert one.dtype == np.int64
    np.testing.assert_array_equal(one, making.batch(SMALL, tokens, 300, 7))
    assert not np.array_equal(one, two)
    other = making.batch(dataclasses.replace(SMALL, seed=4), tokens, 300, 7)
    assert not np.array_equal(one, other)


def test_one_sequence_in_five_is_a_repeated_segment():
    tokens = np.arange(20_000, dtype=np.int32) % 9973  # no segment of the stream repeats itself
    kinds = {"stream": 0, "text": 0, "random": 0}
    begun = 0
    for step in range(250):
        for row in making.batch(SMALL, tokens, 9973, step):
            body = row[1:] if row[0] == BOS_ID else row
            period = next((p for p in range(4, 13) if (body[p:] == body[:-p]).all()), None)
            runs_on = (np.diff(body[: period or 8]) % 9973 == 1).all()
            kinds["stream" if period is None else "text" if runs_on else "random"] += 1
            begun += period is not None and row[0] == BOS_ID
    repeated = kinds["text"] + kinds["random"]
    assert 150 < repeated < 250
    assert 0.35 < kinds["random"] / repeated < 0.65
    assert 0.35 < begun / repeated < 0.65


def test_the_rate_rises_stays_and_falls():
    recipe = Recipe(steps=1000)
    rates = [recipe.rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(1.5e-3 / 200)
    assert set(rates[199:700]) == {1.5e-3}
    assert rates[-1] == pytest.approx(0.05 * 1.5e-3)
    assert (np.diff(rates[:200]) > 0).all()
    assert (np.diff(rates[700:]) < 0).all()


@pytest.mark.parametrize(
    "changes",
    [{"steps": 0}, {"low": 20, "high": 10}, {"high": 32}, {"length": 100}, {"repeats": 1.5}],
    ids=str,
)
def test_a_recipe_that_cannot_be_trained_is_refused(changes):
    with pytest.raises(ModelError, match=r"bad-recipe.*Nothing was started"):
        dataclasses.replace(SMALL, **changes)


def test_tokens_of_texts_stand_behind_one_that_begins_them():
    tokenizer = making.train_tokenizer(TEXTS[0], 300)
    tokens = making.stream(["The mill.", "", "The road."], tokenizer)
    assert tokens.dtype == np.int32
    assert (tokens == BOS_ID).sum() == 3
    assert tokenizer.decode(tokens) == "<|bos|>The mill.<|bos|><|bos|>The road."
    assert tokenizer.convert_ids_to_tokens([0, 1]) == ["<|bos|>", "<|pad|>"]


def weights(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_model_is_trained_and_loads(tmp_path):
    said = train(dataclasses.replace(SMALL, steps=120), tmp_path, texts=TEXTS)
    early = train(SMALL, tmp_path / "early", texts=TEXTS, stop_after=1)
    assert said["loss"]["held_out"] < early["loss"]["held_out"] - 1.0
    assert said == json.loads((tmp_path / "training.json").read_text())
    assert (said["steps"], said["tokens"]) == (120, 120 * 4 * 32)
    loaded = load(tmp_path)
    assert loaded.model.config.tie_word_embeddings
    assert next(loaded.model.parameters()).dtype in {torch.bfloat16, torch.float32}
    ids = torch.tensor([loaded.tokenizer("The river carried the boat")["input_ids"]])
    got = loaded.adapter.capture(ids, torch.ones_like(ids), ["blocks.0.attn.rot_k"])
    assert got["blocks.0.attn.rot_k"].shape == (1, ids.shape[1], 1, 8)


@pytest.mark.slow
def test_a_run_that_stops_anywhere_goes_on_to_the_same_weights(tmp_path):
    recipe = dataclasses.replace(SMALL, steps=9)
    whole = train(recipe, tmp_path / "whole", texts=TEXTS, save_every=4)
    assert train(recipe, tmp_path / "again", texts=TEXTS) == whole
    for stop in range(1, 9):
        train(recipe, tmp_path / "pieces", texts=TEXTS, stop_after=stop)
        assert weights(tmp_path / "pieces") != weights(tmp_path / "whole")
    assert train(recipe, tmp_path / "pieces", texts=TEXTS) == whole
    assert train(recipe, tmp_path / "pieces", texts=TEXTS) == whole  # done: nothing to do
    for name in ("again", "pieces"):
        assert weights(tmp_path / name) == weights(tmp_path / "whole")


@pytest.mark.slow
def test_a_state_of_other_texts_or_another_recipe_is_refused(tmp_path):
    train(SMALL, tmp_path, texts=TEXTS, stop_after=2)
    before = (tmp_path / "state.safetensors").read_bytes()
    for recipe, texts in (
        (dataclasses.replace(SMALL, seed=4), TEXTS),
        (SMALL, (TEXTS[0][::-1], TEXTS[1])),
    ):
        with pytest.raises(ModelError, match="recipe-differs"):
            train(recipe, tmp_path, texts=texts)
    assert (tmp_path / "state.safetensors").read_bytes() == before


@pytest.mark.slow
def test_the_command_line_trains(tmp_path, monkeypatch):
    monkeypatch.setattr("ingest.models.weights.train.standard_library", lambda _seed: TEXTS)
    monkeypatch.setattr(
        "ingest.models.weights.train.Recipe",
        lambda **given: dataclasses.replace(SMALL, **given),
    )
    main(["--out", str(tmp_path / "m"), "--steps", "2", "--seed", "5", "--threads", "1"])
    said = json.loads((tmp_path / "m" / "training.json").read_text())
    assert (said["recipe"]["seed"], said["steps"], said["threads"]) == (5, 2, 1)


def test_the_standard_library_is_split_into_texts_to_train_on_and_texts_held_out():
    held_in, held_out = making.standard_library(1)
    assert not set(held_in) & set(held_out)
    share = len(held_out) / (len(held_in) + len(held_out))
    assert 0.05 < share < 0.15
