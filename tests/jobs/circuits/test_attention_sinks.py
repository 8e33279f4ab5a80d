"""Sinks against closed forms on planted patterns, and against the dense float64 columns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ingest.contract import SequenceBlock
from ingest.models import AttentionSpec
from ingest.models.facts import ModelFacts
from jobs.circuits import STATISTICS
from jobs.errors import JobError
from store.errors import ActlakeError

SPEC = AttentionSpec(heads=2, kv_heads=2, head_width=2, scale=1.0, causal=True)
SHAPES = {f"blocks.{layer}.attn.{name}": (2, 2) for layer in range(2) for name in "qkvz"}
FACTS = ModelFacts(
    family="planted", layers=2, width=4, causal=True, shapes=SHAPES, attentions=(SPEC, SPEC)
)


def sinks(**settings):
    return STATISTICS.get("attention_sinks")(**settings)


def block(values, lengths, *, part=0, first=0):
    """A block of sequences from ``{site: [R, H, d]}``."""
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.arange(bounds[-1]) + first
    return SequenceBlock(
        part=part,
        row_ids=rows,
        bounds=bounds,
        tokens={"token_id": rows * 0, "flags": rows * 0, "seq_id": rows * 0},
        sites={name: torch.as_tensor(value) for name, value in values.items()},
    )


def column(weight, length):
    """q and k of one head whose every query but the first gives key 0 the weight, the rest to itself.

    Scores are q_i · k_j with q_i = (a_i, 0): key 0 has (1, 0), others (0, 0), so the weight of key 0 is
    e^a / (e^a + i).
    """
    i = np.arange(length)
    a = np.log(weight / (1 - weight) * np.maximum(i, 1))
    q, k = np.zeros((2, length, 2))
    q[:, 0], k[0, 0] = a, 1
    return q, k


def uniform(length):
    return np.zeros((2, length, 2))


def planted(length, *heads):
    """Sites of both blocks from (q, k) of each head."""
    q, k = (np.stack([head[n] for head in heads], 1) for n in range(2))
    names = {"q": q, "k": k}
    return {f"blocks.{layer}.attn.{n}": names[n] for layer in range(2) for n in "qk"}


def test_a_planted_column_and_uniform_attention_have_their_closed_forms():
    length = 64
    sites = planted(length, column(0.5, length), uniform(length))
    partial = sinks().empty(FACTS)
    partial.update(block(sites, [length]))
    tables = partial.finalize()
    table = tables["attention_sinks"]
    assert table["layer"].tolist() == [0] * 8 + [1] * 8
    assert table["head"].tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4
    alpha = table["alpha"].reshape(2, 2, 4)
    assert alpha[0, 0, 0] == pytest.approx((1 + 0.5 * 63) / 64, abs=1e-12)  # 0.508
    harmonic = sum(1 / i for i in range(1, 65))
    assert alpha[0, 1, 0] == pytest.approx(harmonic / 64, abs=1e-12)  # 0.074
    assert table["sink_rate"].reshape(2, 2, 4)[0].tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]
    assert tables["sinks"]["sink_rate"].tolist() == [0.5, 0, 0, 0]
    assert tables["sink_heads"]["first_share"].tolist() == [1] * 4
    assert tables["sink_heads"]["sink_rate"].tolist() == [1, 0, 1, 0]


def test_the_indicator_is_averaged_not_the_attention():
    length, weights = 64, (0.2, 0.25, 0.9)
    partial = sinks(layers=(1,)).empty(FACTS)
    for number, weight in enumerate(weights):
        sites = planted(length, column(weight, length), uniform(length))
        partial.update(block(sites, [length], first=number * length))
    table = partial.finalize()["attention_sinks"]
    alpha = [(1 + w * 63) / 64 for w in weights]
    assert table["layer"].tolist() == [1] * 8
    assert table["alpha"][0] == pytest.approx(np.mean(alpha))
    assert np.mean(alpha) > 0.3
    assert table["sink_rate"][0] == pytest.approx(1 / 3)
    assert table["n"].tolist() == [3] * 8


def test_diagonal_attention_is_no_sink():
    length = 64
    angle = np.linspace(0, np.pi, length)  # q_i · k_i is the largest of its row
    turned = 1e4 * np.stack([np.cos(angle), np.sin(angle)], 1)
    sites = planted(length, (turned, turned), uniform(length))
    few, many = (sinks(least_queries=n).empty(FACTS) for n in (1, 8))
    for partial in (few, many):
        partial.update(block(sites, [length]))
    assert few.finalize()["sink_heads"]["sink_rate"][0] == 1  # the last position, seen by one query
    assert many.finalize()["sink_heads"]["sink_rate"][0] == 0


SPECS = {
    "causal": SPEC,
    "window": replace(SPEC, window=9),
    "grouped": replace(SPEC, kv_heads=1),
    "both ways": replace(SPEC, causal=False),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("queries", [12, 40], ids=str)
def test_equals_the_dense_columns(oracle, rng, spec, queries):
    lengths = [40, 11, 40]
    facts = replace(FACTS, causal=spec.causal, attentions=(spec, spec))
    sites = {
        f"blocks.{layer}.attn.{n}": rng.standard_normal((sum(lengths), heads, 2)).astype("f4") * 3
        for layer in range(2)
        for n, heads in (("q", spec.heads), ("k", spec.kv_heads))
    }
    partial = sinks(queries=queries, positions=3, epsilon=0.1).empty(facts)
    partial.update(block(sites, lengths))
    dense = oracle("head_patterns")
    want = []
    for low in (0, 51):
        stop = low + queries if spec.causal else low + 40
        p = dense.pattern(
            sites["blocks.1.attn.q"][low : low + queries],
            sites["blocks.1.attn.k"][low:stop],
            kv_group=spec.heads // spec.kv_heads,
            causal=spec.causal,
            window=spec.window,
        )
        if spec.window:  # the mean over those who see the key
            sees = (p[0] > 0).sum(0)
            want.append(p.sum(1) / np.maximum(sees, 1))
        else:
            want.append(dense.sink_alphas(p, causal=spec.causal))
    table = partial.finalize()["attention_sinks"]
    got = table["alpha"].reshape(2, 2, 3)[1]
    np.testing.assert_allclose(got, np.mean([a[:, :3] for a in want], 0), atol=1e-6)
    rate = table["sink_rate"].reshape(2, 2, 3)[1]
    np.testing.assert_array_equal(rate, np.mean([a[:, :3] > 0.1 for a in want], 0))
    assert set(table["n"]) == {2}


def test_any_split_merges_to_the_whole(rng):
    """The laws of the registry, on sequences long enough to count."""
    lengths = [70, 64, 80, 66]
    sites = {name: rng.standard_normal((280, 2, 2)) * 3 for name in planted(1, uniform(1))}
    whole = sinks().empty(FACTS)
    whole.update(block(sites, lengths))
    shares, low = [], 0
    for length in lengths:
        mine = {name: values[low : low + length] for name, values in sites.items()}
        shares.append(sinks().empty(FACTS))
        shares[-1].update(block(mine, [length], first=low))
        low += length
    merged = shares[2].merge(shares[0]).merge(shares[3].merge(shares[1]))
    again = sinks().from_state(FACTS, merged.state())
    for name, table in whole.finalize().items():
        for column, values in table.items():
            np.testing.assert_allclose(merged.finalize()[name][column], values, rtol=1e-12)
            np.testing.assert_array_equal(
                again.finalize()[name][column], merged.finalize()[name][column]
            )
    assert set(whole.finalize()["attention_sinks"]["n"]) == {4}


def test_short_and_broken_sequences_are_left_out():
    length = 64
    sites = planted(length, column(0.5, length), uniform(length))
    broken = {name: value.copy() for name, value in sites.items()}
    broken["blocks.1.attn.k"][5] = np.inf
    short = {name: value[:40] for name, value in sites.items()}
    partial, whole = sinks().empty(FACTS), sinks().empty(FACTS)
    whole.update(block(sites, [length]))
    for values, size in ((sites, length), (broken, length), (short, 40)):
        partial.update(block(values, [size]))
    tables = partial.finalize()
    assert tables["sink_heads"]["n"].tolist() == [2, 2, 1, 1]
    assert tables["sink_heads"]["skipped"].tolist() == [0, 0, 1, 1]
    for name in ("alpha", "sink_rate"):
        want = whole.finalize()["attention_sinks"][name]
        np.testing.assert_allclose(tables["attention_sinks"][name], want)


def test_no_samples_are_not_a_number():
    tables = sinks().empty(FACTS).finalize()
    assert np.isnan(tables["attention_sinks"]["alpha"]).all()
    assert tables["attention_sinks"]["n"].tolist() == [0] * 16


@pytest.mark.parametrize(
    "settings",
    [{"positions": 0}, {"positions": 65}, {"epsilon": 0.0}, {"epsilon": 1.0}, {"least_queries": 0}],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(JobError, match="bad-number"):
        sinks(**settings)


def test_a_block_that_is_not_there_is_refused():
    with pytest.raises(ActlakeError, match="no block 2"):
        sinks(layers=(2,)).requires(FACTS)


def test_behind_a_narrow_window_the_strongest_position_is_one_that_is_seen():
    """No position is seen by 8 queries there: alpha is a mean of attention all the same."""
    spec = AttentionSpec(heads=1, kv_heads=1, head_width=4, scale=0.5, causal=True, window=4)
    facts = replace(FACTS, attentions=(spec,) * FACTS.layers)
    values = {
        name: torch.zeros(64, 1, 4)
        for name in (f"blocks.{n}.attn.{s}" for n in range(FACTS.layers) for s in ("q", "k"))
    }
    partial = sinks().empty(facts)
    partial.update(block(values, [64]))
    table = partial.finalize()["sink_heads"]
    # Key 0 is seen by queries 0 to 3, who see 1, 2, 3 and 4 keys.
    assert table["alpha"][0] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert table["first_share"][0] == 1


def test_sequences_too_short_to_say_anything_are_counted():
    partial = sinks(queries=8).empty(FACTS)
    partial.update(block(planted(4, uniform(4), uniform(4)), [4]))
    table = partial.finalize()["sink_heads"]
    assert set(table["short"].tolist()) == {1}
    assert set(table["n"].tolist()) == {0}
