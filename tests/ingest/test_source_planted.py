"""Sources whose truth is known: what they say of themselves is so of what they draw."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from safetensors.numpy import load

import store
from ingest.config import TokensConfig
from ingest.errors import SourceError
from ingest.run import ingest_vectors
from ingest.sources import SOURCES
from jobs.runtimes.in_process import InProcess

SMALL = {
    "synth_bench": {
        "width": 24, "features": 120, "roots": 4, "branching": 3, "depth": 2, "rank": 5,
        "correlation": 0.2,
    },
    "directions": {"width": 24, "delta": 1.5},
    "router_log": {"experts": 8},
    "synthetic": {"width": 24, "features": 48},
}  # fmt: skip


def dense(source, part, rows, features):
    row, feature, value = source.truth_codes(part, rows)
    codes = np.zeros((rows, features), np.float32)
    codes[row, feature] = value
    return codes


@pytest.mark.parametrize("name", SMALL)
def test_rows_are_a_function_of_seed_and_part(name):
    make = SOURCES.get(name)
    one, again, other = (make(**SMALL[name], seed=seed) for seed in (0, 0, 1))
    (column,) = one.columns
    first = one.block(3, 300)[column]
    one.block(1, 300)
    assert np.array_equal(again.block(3, 300)[column], first)
    assert np.array_equal(one.block(3, 300)[column], first)
    assert not np.array_equal(other.block(3, 300)[column], first)
    assert not np.array_equal(one.block(4, 300)[column], first)
    assert first.dtype == np.float32
    assert first.flags.c_contiguous


@pytest.mark.parametrize("name", SMALL)
def test_a_store_of_them_holds_rows_truth_and_codes(name, tmp_path):
    source = SOURCES.get(name)(**SMALL[name])
    tokens = TokensConfig(source=source, rows=700, part_rows=256)
    ingest_vectors(tmp_path / "s", tokens, "planted", runtime=InProcess())
    made = store.open(tmp_path / "s")
    (column,) = source.columns
    rows = made.read(f"planted:{column}", slice(None))
    sizes = [made.view.commit("tokens", part).rows for part in made.view.parts("tokens")]
    wanted = [source.block(part, size)[column] for part, size in enumerate(sizes)]
    assert np.array_equal(rows, np.concatenate(wanted))
    truth = made.asset(made.groups["planted"].recipe["truth"])
    assert truth == source.truth()
    codes = made.arrow("truth")
    planted = sum(len(source.truth_codes(part, size)[0]) for part, size in enumerate(sizes))
    assert codes.num_rows == planted


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("synth_bench", {"features": 100, "roots": 128}),
        ("synth_bench", {"rate_first": 1.0}),
        ("synth_bench", {"rate_first": 1e-4}),
        ("synth_bench", {"correlation": 0.3}),
        ("synth_bench", {"depth": 0}),
        ("synth_bench", {"spread": float("nan")}),
        ("directions", {"delta": 0.0}),
        ("directions", {"width": 0}),
        ("router_log", {"planted": 16}),
        ("router_log", {"experts": 3}),
        ("router_log", {"rise": float("inf")}),
    ],
)
def test_settings_that_cannot_be_are_refused(name, settings):
    with pytest.raises(SourceError, match=r"bad-source.*Nothing was written"):
        SOURCES.get(name)(**settings)


ROWS = 20_000


@pytest.fixture(scope="module")
def source():
    return SOURCES.get("synth_bench")(**SMALL["synth_bench"])


@pytest.fixture(scope="module")
def codes(source):
    return dense(source, 0, ROWS, source.features)


def shared_variance(source, first):
    """Return what company adds to the variance of how many features are on, by the tetrachoric series to its fourth term.

    Two Gaussians of correlation r are above a and b together more often than alone by φ(a) φ(b) Σ r^k / k! He_k−1(a) He_k−1(b).
    """
    a_NK, _, ends = (piece[first:].astype(np.float64) for piece in source._company)
    hermite = (np.ones_like(ends), ends, ends**2 - 1, ends**3 - 3 * ends)
    density = np.array([NormalDist().pdf(float(end)) for end in ends])
    r_NN = a_NK @ a_NK.T
    np.fill_diagonal(r_NN, 0.0)
    return sum(
        (r_NN**k / math.factorial(k) * np.outer(density * h, density * h)).sum()
        for k, h in enumerate(hermite, 1)
    )


class TestSynthBench:
    def test_rows_are_the_sum_of_their_features_and_a_bias(self, source, codes):
        truth = load(source.truth()["truth.safetensors"])
        wanted = codes.astype(np.float64) @ truth["features"] + truth["bias"]
        np.testing.assert_allclose(source.block(0, ROWS)["x"], wanted, atol=2e-5)
        np.testing.assert_allclose(np.linalg.norm(truth["features"], axis=1), 1, rtol=1e-5)
        assert np.linalg.norm(truth["bias"]) == pytest.approx(0.5, rel=1e-5)

    def test_trees_are_trees(self, source, codes):
        parents = source.parents
        assert (parents >= 0).sum() == source.tree_nodes - source.roots == 4 * (3 + 9)
        assert (np.bincount(parents[parents >= 0], minlength=120) == 3).sum() == 4 + 12
        on = codes > 0
        for child, parent in enumerate(parents):
            if parent >= 0:
                assert parent < child
                assert not (on[:, child] & ~on[:, parent]).any()
        for parent in set(parents[parents >= 0].tolist()):
            assert on[:, parents == parent].sum(1).max() == 1

    def test_a_childs_magnitude_follows_its_parents(self, source, codes):
        child = next(at for at, parent in enumerate(source.parents) if parent == 0)
        both = codes[:, child] > 0
        share = codes[both, 0] / source.sizes[0]
        own = codes[both, child] / share
        assert own.mean() == pytest.approx(source.sizes[child], rel=0.05)
        assert own.std() == pytest.approx(source.spreads[child], rel=0.15)
        assert abs(np.corrcoef(own, share)[0, 1]) < 0.1

    def test_rates_are_those_said(self, source, codes):
        found = (codes > 0).mean(0)
        told = load(source.truth()["truth.safetensors"])["rates"]
        alone = source.parents < 0
        assert (np.abs(found - told)[alone] < 5 * np.sqrt(told[alone] / ROWS)).all()
        # in trees parents and children keep company, which the told rates leave out
        inside = ~alone & (told > 0.01)
        assert inside.sum() > 20
        assert np.abs(found[inside] / told[inside] - 1).mean() < 0.15
        assert found[~alone].sum() == pytest.approx(told[~alone].sum(), rel=0.1)
        assert found[:4].mean() > found[60:].mean() * 4
        assert (np.diff(source.rates) <= 0).all()

    def test_features_keep_company_where_they_are_told_to(self, source):
        flat = {**SMALL["synth_bench"], "correlation": 0.0}
        spread, wanted = [], []
        for settings in (SMALL["synth_bench"], flat):
            one = SOURCES.get("synth_bench")(**settings)
            on = dense(one, 0, ROWS, 120)[:, source.tree_nodes :] > 0
            chances = one.rates[source.tree_nodes :]
            alone = (chances * (1 - chances)).sum()
            spread.append(on.sum(1).var() / alone)
            wanted.append(1 + shared_variance(one, source.tree_nodes) / alone)
        noise = 5 * np.sqrt(2 / ROWS)  # of a variance of so many rows
        assert wanted[1] == 1
        assert wanted[0] > 1 + noise
        assert spread == pytest.approx(wanted, abs=noise)

    def test_at_its_own_size_it_has_the_published_number_of_features_on(self):
        """About 34 a row, 25 of them among the 4096 most frequent (SAELens' documentation of the benchmark)."""
        row, feature, value = SOURCES.get("synth_bench")().truth_codes(0, 1024)
        assert len(row) / 1024 == pytest.approx(34, abs=2.5)
        assert (feature < 4096).sum() / 1024 == pytest.approx(25, abs=2)
        assert 4 < value.mean() < 5.2


@pytest.mark.parametrize("delta", [1.0, 2.0, 3.0])
def test_how_well_the_moved_half_can_be_told_is_known(delta):
    """AUROC of u · h is Φ(delta / √2): .760, .921, .983."""
    source = SOURCES.get("directions")(delta=delta)
    rows = 20_000
    score = source.block(0, rows)["x"] @ source.direction
    moved = np.zeros(rows, bool)
    moved[source.truth_codes(0, rows)[0]] = True
    ranks = np.argsort(np.argsort(score)) + 1
    ones = moved.sum()
    area = (ranks[moved].sum() - ones * (ones + 1) / 2) / (ones * (rows - ones))
    assert area == pytest.approx(NormalDist().cdf(delta / math.sqrt(2)), abs=0.01)


def test_experts_of_a_class_are_those_planted_and_not_the_one_that_is_always_high():
    source = SOURCES.get("router_log")()
    truth = load(source.truth()["truth.safetensors"])
    scores = source.block(0, 20_000)["router.logits"]
    chosen = np.argsort(-scores, axis=1)[:, :2]
    share = np.zeros((2, 16))
    for side in range(2):
        share[side] = np.bincount(chosen[side::2].ravel(), minlength=16) / 10_000
    rise = share[1] - share[0]
    assert set(np.argsort(-rise)[:2]) == set(truth["planted"].tolist())
    assert share.sum(0).argmax() in {*truth["hot"].tolist(), *truth["planted"].tolist()}
    assert rise[truth["hot"][0]] < 0
    assert share[0].argmax() == truth["hot"][0]
