"""The suites against their definitions, computed densely."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ingest.config import TokensConfig
from ingest.run import ingest_vectors
from ingest.sources import SOURCES
from jobs.codebook import Codebook
from jobs.dictionaries import matching
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.held_out import evaluate_on, figures
from jobs.dictionaries.matching import matched, mean_matched, similarity
from jobs.dictionaries.run import train_on
from jobs.dictionaries.suites.stability import Stability
from jobs.errors import JobError
from jobs.feed import usual_rows
from jobs.runtimes.in_process import InProcess
from store import open as open_store


def unit(rows, width, seed):
    found = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5)])
def test_the_matching_is_the_best_of_all(shape):
    cosine = similarity(unit(shape[0], 7, 1), unit(shape[1], 7, 2))
    rows, columns = matched(cosine)
    few, many = min(shape), max(shape)
    table = cosine if shape[0] <= shape[1] else cosine.T
    best = max(
        table[range(few), list(order)].sum() for order in itertools.permutations(range(many), few)
    )
    assert cosine[rows, columns].sum() == pytest.approx(best, rel=1e-6)
    assert len(set(rows)) == len(set(columns)) == few


@pytest.mark.parametrize("shape", [(300, 400), (400, 300)])
def test_a_large_matching_among_the_nearest_is_almost_the_whole_one(shape, monkeypatch):
    """Planted pairs with noise, where the nearest are few."""
    first = unit(shape[0], 24, 3)
    other = unit(shape[1], 24, 4)
    shared = min(shape)
    other[:shared] = first[:shared] + 0.05 * unit(shared, 24, 5)
    cosine = similarity(first, other)
    rows, columns = matched(cosine)
    monkeypatch.setattr(matching, "LARGEST", 1)
    few_rows, few_columns = matched(cosine)
    assert cosine[few_rows, few_columns].sum() >= 0.999 * cosine[rows, columns].sum()
    assert len(set(few_columns)) == len(few_columns)


def test_a_dictionary_matches_its_own_shuffled_and_turned_rows():
    rows = unit(40, 16, 6)
    order = np.random.default_rng(7).permutation(40)
    assert mean_matched(rows, -rows[order]) == pytest.approx(1.0, abs=1e-6)
    assert mean_matched(rows, unit(40, 16, 8)) < 0.9


@pytest.fixture(scope="module")
def planted_store(tmp_path_factory):
    source = SOURCES.get("synthetic")(width=16, features=32, active=3.0)
    tokens = TokensConfig(source=source, rows=6000, part_rows=1024, context=32)
    url = tmp_path_factory.mktemp("s") / "s"
    ingest_vectors(url, tokens, "acts", runtime=InProcess())
    return open_store(url)


@pytest.fixture(scope="module")
def books(planted_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("d")

    def made(seed):
        config = TrainConfig(
            variant={"kind": "batch_topk", "latents": 48, "k": 3},
            steps=300,
            batch_rows=256,
            seed=seed,
        )
        return train_on(planted_store, "x", config, out)[0]

    return [made(0), made(1)]


def test_truth_is_measured_by_the_definition(planted_store, books, tmp_path):
    """Dense float64: every latent against its nearest feature, row by row."""
    from safetensors.numpy import load

    book = books[0]
    result = evaluate_on(
        planted_store, "x", book, tmp_path, split="train", suites=["core", "truth"]
    )
    found = figures(result)
    files = planted_store.asset(planted_store.groups["acts"].recipe["truth"])
    features = load(files["truth.safetensors"])["features"].astype(np.float64)
    rows = book.W_dec_LD.numpy().astype(np.float64)
    cosine = np.abs(rows @ features.T)
    nearest = cosine.argmax(axis=1)
    ids = planted_store.row_ids()
    split = planted_store.gather("split", ids)
    kept = ids[split == 0]
    assert usual_rows("train")[0] == ("split", "==", 0)
    fires = book.encode_dense(planted_store.gather("x", kept)).numpy() > 0
    truth = planted_store.arrow("truth")
    on = np.zeros((len(ids), len(features)), bool)
    on[np.searchsorted(ids, truth["row"].to_numpy()), truth["latent"].to_numpy()] = True
    on = on[split == 0][:, nearest]
    both = (fires & on).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(both / fires.sum(0))
        recall = np.nan_to_num(both / on.sum(0))
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    assert found["precision"] == pytest.approx(precision.mean(), rel=1e-9)
    assert found["recall"] == pytest.approx(recall.mean(), rel=1e-9)
    assert found["f1"] == pytest.approx(f1.mean(), rel=1e-9)
    assert found["uniqueness"] == len(set(nearest)) / 48
    assert found["mean_max_cosine"] == pytest.approx(
        (rows @ features.T).max(axis=0).mean(), rel=1e-5
    )
    assert 0.5 < found["mcc"] <= 1
    assert found["f1"] > 0.3


def test_the_true_dictionary_scores_full_marks(planted_store, tmp_path):
    """Its decoder is the features; only what it fires with is approximate."""
    from safetensors.numpy import load

    files = planted_store.asset(planted_store.groups["acts"].recipe["truth"])
    features = torch.from_numpy(load(files["truth.safetensors"])["features"])
    book = Codebook(features.t(), torch.zeros(32), features, torch.zeros(16), 0.3)
    found = figures(evaluate_on(planted_store, "x", book, tmp_path, suites=["truth"]))
    for name in ("mcc", "uniqueness", "mean_max_cosine", "latent_max_cosine", "recovered"):
        assert found[name] == pytest.approx(1.0, abs=1e-5)
    assert found["recall"] > 0.8


def test_stability_is_the_matching_with_other_seeds(planted_store, books, tmp_path):
    one, other = books
    result = evaluate_on(
        planted_store, "x", one, tmp_path, suites=[Stability(against=(other, one))]
    )
    found = figures(result)
    alone = mean_matched(one.W_dec_LD.numpy(), other.W_dec_LD.numpy())
    assert found["stability_lowest"] == pytest.approx(alone)
    assert found["stability"] == pytest.approx((alone + 1) / 2, abs=1e-6)
    assert 0.4 < alone < 0.999


REFUSED = {
    "a suite nobody knows": ({"suites": ["speed"]}, "unknown-suite.*core, .*stability, truth"),
    "nothing to compare": ({"suites": ["stability"]}, "nothing-to-compare.*--against"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=list(REFUSED))
def test_suites_that_cannot_be_run_are_refused(case, planted_store, books, tmp_path):
    options, expected = case
    with pytest.raises(JobError, match=expected):
        evaluate_on(planted_store, "x", books[0], tmp_path, **options)
    assert not list(tmp_path.iterdir())
