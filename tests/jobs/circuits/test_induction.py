"""Induction scores on F1 (all known), against the dense float64 templates, and what must not count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ingest.contract import SequenceBlock
from ingest.errors import ModelError
from ingest.models import AttentionSpec
from ingest.models.facts import ModelFacts
from jobs.circuits import STATISTICS
from jobs.errors import JobError
from store.tokens import FLAG_SPECIAL

SPEC = AttentionSpec(heads=4, kv_heads=2, head_width=3, scale=0.7, causal=True)
SHAPES = {
    f"blocks.{layer}.attn.{name}": (heads, 3)
    for layer in range(2)
    for name, heads in (("q", 4), ("k", 2), ("v", 2), ("z", 4))
}
FACTS = ModelFacts(
    family="planted", layers=2, width=12, causal=True, shapes=SHAPES, attentions=(SPEC, SPEC)
)


def induction(**settings):
    return STATISTICS.get("induction")(**settings)


def block(sites, tokens, *, bos=None, part=0, first=0, seq=0):
    """A block of sequences (a list of id arrays) with ``{site: [R, H, d]}``."""
    lengths = [len(one) for one in tokens]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.concatenate(tokens).astype(np.int32)
    return SequenceBlock(
        part=part,
        row_ids=np.arange(len(ids)) + first,
        bounds=bounds,
        tokens={
            "token_id": ids,
            "flags": ((ids == bos) * FLAG_SPECIAL).astype(np.uint16),
            "seq_id": np.repeat(np.arange(len(lengths)) + seq, lengths),
        },
        sites={name: torch.as_tensor(value) for name, value in sites.items()},
    )


@pytest.fixture
def f1(oracle):
    return oracle("compiled_induction")


def seen(f1, ids, dtype=torch.float32, **where):
    """What a harvest of F1 over ``ids [N, T]`` shows an observer."""
    model = f1.loaded()
    ids_NT = torch.from_numpy(ids)
    sites = [f"blocks.{layer}.attn.{name}" for layer in range(2) for name in "qk"]
    got = model.adapter.capture(ids_NT, torch.ones_like(ids_NT), sites)
    values = {name: value.flatten(0, 1).to(dtype) for name, value in got.items()}
    return block(values, list(ids), bos=f1.BOS, **where), ModelFacts.of(model.adapter)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_compiled_heads_have_their_known_scores(f1, rng, dtype):
    shown, facts = seen(f1, f1.repeated(rng, 16, count=4), dtype)
    partial = induction().empty(facts)
    partial.update(shown)
    table = partial.finalize()["heads"]
    score = {name: values.reshape(2, 4) for name, values in table.items()}
    assert score["prefix_matching"][f1.INDUCTION] == pytest.approx(1, abs=1e-5)
    assert score["prefix_matching"][f1.DECOY] == pytest.approx(1, abs=1e-5)
    assert score["prefix_matching_mul"][f1.INDUCTION] == pytest.approx(0.5, abs=1e-5)
    assert score["previous_token"][f1.PREVIOUS] == pytest.approx(1, abs=1e-5)
    assert score["previous_token"][f1.ECHO] == pytest.approx(1, abs=1e-5)
    others = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    assert max(score["prefix_matching"][head] for head in others) < 0.1
    assert set(table["rows"]) == {4 * 32}
    assert set(table["matched"]) == {4 * 16}
    assert set(table["sequences"]) == {4}


def test_contexts_name_the_pairs_one_a_sequence(f1, rng):
    ids = f1.repeated(rng, 8, count=3)
    shown, facts = seen(f1, ids, first=1000, seq=50)
    partial = induction(top_heads=2).empty(facts)
    partial.update(shown)
    table = partial.finalize()["head_contexts"]
    assert set(zip(table["layer"], table["head"], strict=True)) == {f1.INDUCTION, f1.DECOY}
    assert table["rank"].tolist() == [0, 1, 2] * 2
    for query, key, seq, weight in zip(
        *(table[name] for name in ("query_row", "key_row", "seq", "weight")), strict=True
    ):
        number, i = divmod(query - 1000, 17)
        j = key - 1000 - number * 17
        assert seq == 50 + number
        assert j == i - 8 + 1
        assert ids[number, j - 1] == ids[number, i]
        assert weight == pytest.approx(1, abs=1e-6)


def random_case(rng, *, spec=SPEC, vocab=5, lengths=(30, 1, 17)):
    tokens = [rng.integers(0, vocab, length) for length in lengths]
    rows = sum(lengths)
    sites = {
        f"blocks.{layer}.attn.{name}": rng.standard_normal((rows, heads, 3)).astype("f4") * 2
        for layer in range(2)
        for name, heads in (("q", spec.heads), ("k", spec.kv_heads))
    }
    return sites, tokens


def dense_patterns(oracle, sites, tokens, layer, spec):
    ends = np.cumsum([len(one) for one in tokens])
    q, k = (sites[f"blocks.{layer}.attn.{name}"] for name in "qk")
    return [
        oracle("head_patterns").pattern(
            q[end - len(one) : end],
            k[end - len(one) : end],
            kv_group=spec.heads // spec.kv_heads,
            scale=spec.scale,
            softcap=spec.softcap,
            window=spec.window,
        )
        for one, end in zip(tokens, ends, strict=True)
    ]


@pytest.mark.parametrize(
    "spec",
    [SPEC, replace(SPEC, window=6), replace(SPEC, softcap=1.5)],
    ids=["", "window", "softcap"],
)
@pytest.mark.parametrize("bos", [None, 0], ids=["no special", "special"])
@pytest.mark.parametrize("size", [256, 8], ids=["one block", "many blocks"])
def test_equals_the_dense_templates(oracle, rng, monkeypatch, spec, bos, size):
    monkeypatch.setattr("jobs.circuits.patterns.pattern_blocks.__kwdefaults__", {"block": size})
    facts = replace(FACTS, attentions=(spec, spec))
    sites, tokens = random_case(rng, spec=spec)
    partial = induction(contexts=2, top_heads=8).empty(facts)
    partial.update(block(sites, tokens, bos=bos))
    tables = partial.finalize()
    names = [
        ("prefix_matching", "previous_token", "duplicate_token"),
        ("prefix_matching_mul", None, "duplicate_token_mul"),
    ]
    for layer in range(2):
        p = dense_patterns(oracle, sites, tokens, layer, spec)
        specials = [one == bos for one in tokens]
        want = oracle("head_patterns").scores(p, tokens, specials)
        for form, columns in zip(want, names, strict=True):
            for values, column in zip(form, columns, strict=True):
                if column:
                    got = tables["heads"][column].reshape(2, 4)[layer]
                    np.testing.assert_allclose(got, values, atol=1e-6)
        best = oracle("head_patterns").best_pairs(p, tokens, specials)
        contexts = tables["head_contexts"]
        starts = np.cumsum([0, *[len(one) for one in tokens]])
        for head in range(4):
            mine = (contexts["layer"] == layer) & (contexts["head"] == head)
            pairs = [(starts[n] + i, starts[n] + j) for _, n, i, j in best[head][:2]]
            found = zip(contexts["query_row"][mine], contexts["key_row"][mine], strict=True)
            assert list(found) == pairs
            np.testing.assert_allclose(
                contexts["weight"][mine], [pair[0] for pair in best[head][:2]], atol=1e-6
            )


def test_two_beginnings_do_not_make_a_match():
    """Heads that rest on the first BOS: with it counted, all would match at the second."""
    tokens = [np.array([9, 1, 2, 9, 3, 4])]
    rows = len(tokens[0])
    sites = {
        f"blocks.0.attn.{name}": np.zeros((rows, h, 3), "f4") for name, h in (("q", 4), ("k", 2))
    }
    partial = induction(layers=(0,)).empty(FACTS)
    partial.update(block(sites, tokens, bos=9))
    table = partial.finalize()["heads"]
    assert set(table["matched"]) == {0}
    assert set(table["rows"]) == {4}
    assert np.isnan(table["prefix_matching"]).all()
    assert (table["prefix_matching_mul"] == 0).all()
    # Rows 1 and 4 have a special token before them: rows 2 and 5 count, each uniform over what it sees.
    assert table["previous_token"] == pytest.approx([(1 / 3 + 1 / 6) / 2] * 4)


def test_equal_weights_keep_the_first_rows():
    tokens = [np.array([1, 2, 1, 3, 1, 4])] * 3
    sites = {f"blocks.0.attn.{n}": np.zeros((18, h, 3), "f4") for n, h in (("q", 4), ("k", 2))}
    partial = induction(layers=(0,), contexts=2, top_heads=1).empty(FACTS)
    later, sooner = (induction(layers=(0,), contexts=2, top_heads=1).empty(FACTS) for _ in range(2))
    sooner.update(block(sites, tokens, first=0))
    later.update(block(sites, tokens, first=100, seq=9))
    table = partial.merge(later).merge(sooner).finalize()["head_contexts"]
    assert table["query_row"].tolist() == [2, 8]
    assert table["key_row"].tolist() == [1, 7]
    assert table["seq"].tolist() == [0, 1]


def test_a_broken_sequence_is_left_out_and_counted(rng):
    sites, tokens = random_case(rng)
    clean = induction().empty(FACTS)
    clean.update(block(sites, tokens))
    sites["blocks.1.attn.q"][3] = np.nan
    partial = induction().empty(FACTS)
    partial.update(block(sites, tokens))
    table = partial.finalize()["heads"]
    assert table["skipped"].tolist() == [0] * 4 + [1] * 4
    assert table["sequences"].tolist() == [3] * 4 + [2] * 4
    assert np.isfinite(table["prefix_matching"]).all()
    np.testing.assert_array_equal(
        table["prefix_matching"][:4], clean.finalize()["heads"]["prefix_matching"][:4]
    )


def test_a_bidirectional_model_is_refused():
    spec = replace(FACTS.attention(0), causal=False)
    with pytest.raises(JobError, match="not-causal"):
        induction().requires(replace(FACTS, causal=False, attentions=(spec, spec)))


def test_columns_of_an_unknown_model_are_not_called_bidirectional():
    with pytest.raises(ModelError, match="facts-missing"):
        induction().requires(replace(FACTS, causal=False, attentions=()))


@pytest.mark.parametrize("settings", [{"contexts": 0}, {"top_heads": 0}], ids=str)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(JobError, match="bad-number"):
        induction(**settings)
