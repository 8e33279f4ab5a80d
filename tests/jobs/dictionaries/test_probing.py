"""Sparse probes on planted rows, where it is known which latent tells a class."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ingest.config import TokensConfig
from ingest.run import ingest_vectors
from ingest.sources import SOURCES
from jobs.codebook import Codebook
from jobs.dictionaries.held_out import evaluate_on, figures
from jobs.dictionaries.suites.probing import RIDGE, Probing, logistic, probed, strongest
from jobs.errors import JobError
from jobs.runtimes.in_process import InProcess
from store import open as open_store

WIDTH, FEATURES = 16, 24


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    source = SOURCES.get("synthetic")(width=WIDTH, features=FEATURES, active=2.0)
    tokens = TokensConfig(source=source, rows=12_000, part_rows=2048, context=32)
    url = tmp_path_factory.mktemp("s") / "s"
    ingest_vectors(url, tokens, "acts", runtime=InProcess())
    return open_store(url)


def features_of(held):
    from safetensors.numpy import load

    files = held.asset(held.groups["acts"].recipe["truth"])
    return torch.from_numpy(load(files["truth.safetensors"])["features"])


def book(decoder):
    rows, width = decoder.shape
    return Codebook(decoder.t(), torch.zeros(rows), decoder, torch.zeros(width), 0.2)


def test_the_true_dictionary_tells_features_by_one_latent_and_channels_do_not(planted, tmp_path):
    truth = features_of(planted)
    noise = torch.nn.functional.normalize(
        torch.randn(FEATURES, WIDTH, generator=torch.Generator().manual_seed(0)), dim=1
    )
    found, random = (
        figures(evaluate_on(planted, "x", book(one), tmp_path, split="train", suites=["probing"]))
        for one in (truth, noise)
    )
    assert found["probe_classes"] == 20
    assert found["probe_k1"] > 0.87  # 24 directions in 16 dimensions: the others leak into it
    assert found["probe_k1"] > random["probe_k1"] + 0.1
    assert found["probe_k1"] > found["probe_channels_k1"] + 0.1
    assert found["probe_channels_k1"] == random["probe_channels_k1"]
    assert found["probe_channels"] > found["probe_channels_k5"] > found["probe_channels_k1"]
    assert found["probe_k5"] >= found["probe_k1"] - 0.01


def test_labels_that_say_nothing_are_told_by_chance(planted, tmp_path):
    """Positions of planted rows are alike: no latent tells one from another."""
    asked = Probing(label="pos", classes=8, rows=12_000)
    result = evaluate_on(
        planted, "x", book(features_of(planted)), tmp_path, split=None, suites=[asked]
    )
    for name in ("probe_k1", "probe_k5", "probe_channels_k5"):
        assert abs(figures(result)[name] - 0.5) < 0.1


def test_the_probe_is_where_the_loss_is_least():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 3))
    y = (x @ [2.0, -1.0, 0.0] + rng.standard_normal(400) > 0.3).astype(float)
    weight, bias = logistic(x, y)
    off = 1 / (1 + np.exp(-(x @ weight + bias))) - y
    np.testing.assert_allclose(x.T @ off / 400 + RIDGE * weight, 0, atol=1e-4)
    assert abs(off.mean()) < 1e-4
    assert weight[0] > 1 > 0 > weight[1]


def test_the_strongest_differ_most_in_mean_and_a_probe_scores_what_it_did_not_fit():
    x = np.zeros((6, 3))
    of_class = np.array([True] * 3 + [False] * 3)
    x[of_class, 2], x[~of_class, 0] = 3.0, 1.0
    assert strongest(x, of_class, 2).tolist() == [2, 0]
    one = x[:, 2:]
    assert probed(one, of_class * 1.0, one, of_class * 1.0) == 1.0
    assert probed(one, of_class * 1.0, one, ~of_class * 1.0) == 0.0


REFUSED = {
    "a label nobody knows": ({"label": "mood"}, "unknown-label.*token_id"),
    "sequences, each on one side": ({"label": "seq_id"}, "unknown-label.*token_id"),
    "a class without rows": ({"label": "pos", "rows": 400}, "too-few-rows.*pos"),
    "too few rows": ({"rows": 10}, "bad-number"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_probed_is_refused(case, planted, tmp_path):
    options, expected = case
    with pytest.raises(JobError, match=expected):
        evaluate_on(planted, "x", book(features_of(planted)), tmp_path, suites=[Probing(**options)])
