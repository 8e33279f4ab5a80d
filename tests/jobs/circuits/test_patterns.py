"""Patterns by blocks are the dense softmax, however they are cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import ModelError
from ingest.models import AttentionSpec
from jobs.circuits import patterns
from jobs.circuits.patterns import pattern_blocks, visible_queries

PLAIN = AttentionSpec(heads=4, kv_heads=4, head_width=8, scale=8**-0.5, causal=True)
SPECS = {
    "causal": PLAIN,
    "both ways": replace(PLAIN, causal=False),
    "grouped": replace(PLAIN, kv_heads=2),
    "one key head": replace(PLAIN, kv_heads=1, causal=False),
    "softcap": replace(PLAIN, softcap=0.7, scale=1.3),
    "window": replace(PLAIN, window=5),
    "window both ways": replace(PLAIN, causal=False, window=3),
    "all": replace(PLAIN, kv_heads=2, window=6, softcap=2.0, scale=0.9),
}


def planted(spec, length, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(length, spec.heads, spec.head_width, generator=g, dtype=torch.float64)
    k = torch.randn(length, spec.kv_heads, spec.head_width, generator=g, dtype=torch.float64)
    return q.to(dtype), k.to(dtype)


def gathered(q, k, spec, block):
    whole = np.full((spec.heads, len(q), len(k)), np.nan)
    for part in pattern_blocks(q, k, spec, block=block):
        assert np.isnan(whole[:, part.queries, part.keys]).all()
        assert max(part.p.shape[1:]) <= block
        whole[:, part.queries, part.keys] = part.p.numpy()
    return np.nan_to_num(whole)


def dense(oracle, q, k, spec):
    return oracle("head_patterns").pattern(
        q.double(),
        k.double(),
        kv_group=spec.heads // spec.kv_heads,
        scale=spec.scale,
        causal=spec.causal,
        softcap=spec.softcap,
        window=spec.window,
    )


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("block", [1, 7, 64], ids=str)
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)],
    ids=["f64", "f32", "bf16"],
)
def test_equals_the_dense_softmax(oracle, spec, block, dtype, bound):
    q, k = planted(spec, 23, dtype=dtype)
    np.testing.assert_allclose(gathered(q, k, spec, block), dense(oracle, q, k, spec), atol=bound)


@given(length=st.integers(1, 40), block=st.integers(1, 41), name=st.sampled_from(sorted(SPECS)))
def test_rows_add_up_to_one(length, block, name):
    q, k = planted(SPECS[name], length, seed=length)
    np.testing.assert_allclose(gathered(q, k, SPECS[name], block).sum(-1), 1, atol=1e-5)


def test_a_match_far_above_the_rest_does_not_overflow(oracle):
    q, k = planted(PLAIN, 20)
    np.testing.assert_allclose(
        gathered(q * 300, k, PLAIN, 6), dense(oracle, q * 300, k, PLAIN), atol=1e-2
    )
    assert np.isfinite(gathered(q * 1e4, k, PLAIN, 6)).all()


def test_scores_never_outgrow_a_block(monkeypatch):
    asked = []

    def spy(q, k, spec, **where):
        asked.append((q.shape[1], k.shape[1]))
        return true(q, k, spec, **where)

    true = patterns.scores
    monkeypatch.setattr(patterns, "scores", spy)
    q, k = planted(PLAIN, 100)
    sizes = {part.p.shape[1:] for part in pattern_blocks(q, k, PLAIN, block=16)}
    assert max(map(max, asked)) == 16
    assert max(map(max, sizes)) == 16


def test_keys_nobody_sees_are_not_even_scored(monkeypatch):
    starts = []
    true = patterns.scores

    def spy(q, k, spec, *, query_start, key_start):
        starts.append((query_start, key_start))
        return true(q, k, spec, query_start=query_start, key_start=key_start)

    monkeypatch.setattr(patterns, "scores", spy)
    q, k = planted(PLAIN, 64)
    list(pattern_blocks(q, k, replace(PLAIN, window=4), block=16))
    assert set(starts) == {(0, 0), *[(i, i - d) for i in (16, 32, 48) for d in (0, 16)]}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize(("queries", "keys"), [(9, 9), (4, 9)], ids=["square", "fewer queries"])
def test_visible_queries_counts_the_pairs_one_may_see(spec, queries, keys):
    i, j = np.arange(queries)[:, None], np.arange(keys)[None]
    seen = np.ones((queries, keys), bool)
    if spec.causal:
        seen &= j <= i
    if spec.window is not None:
        seen &= np.abs(i - j) < spec.window
    assert visible_queries(spec, queries, keys).tolist() == seen.sum(0).tolist()


def test_heads_that_do_not_fit_are_refused():
    q, k = planted(replace(PLAIN, kv_heads=2), 5)
    with pytest.raises(ModelError, match="bad-input"):
        list(pattern_blocks(q, k, PLAIN))
