"""Ablation tells the induction head of F1 from its decoy; weights tell who copies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ingest.contract import SequenceBlock
from ingest.models import LoadedModel, adapt, bundled_causal, load, toy
from ingest.models.facts import ModelFacts
from jobs.circuits import STATISTICS
from jobs.circuits.confirm import (
    ConfirmConfig,
    _Trial,
    _verdict,
    ablation_tables,
    confirm_induction,
    repeated_tokens,
)
from jobs.circuits.copying import _final_scale, copying_scores
from jobs.errors import JobError
from store.tokens import FLAG_SPECIAL

CONFIG = ConfirmConfig(sequences=8, periods=(8, 16), op="zero")


@pytest.fixture(scope="module")
def f1(oracle):
    return oracle("compiled_induction")


@pytest.fixture(scope="module")
def model(f1):
    return f1.loaded()


def heads(f1, top):
    """Scores as the statistic gives them, one of the two perfect heads a hair ahead."""
    layer, head = np.divmod(np.arange(8), 4)
    score = np.full(8, 0.05)
    for one in (f1.INDUCTION, f1.DECOY):
        score[one[0] * 4 + one[1]] = 1 - 1e-6 * (one != top)
    return {"layer": layer, "head": head, "prefix_matching": score}


def test_repeated_tokens_are_what_they_say(f1, model):
    examples = repeated_tokens(model, CONFIG, 5)
    periods = set()
    for ids, mask, first, second in zip(
        examples.ids, examples.mask, *examples.spans.values(), strict=True
    ):
        period = int(first[1]) - 1
        periods.add(period)
        block = ids[1 : period + 1]
        assert ids[0] == f1.BOS
        assert len(set(block.tolist())) == period
        assert f1.BOS not in block
        assert torch.equal(ids[period + 1 : 2 * period + 1], block)
        assert mask.sum() == 1 + 2 * period
        assert mask[: 1 + 2 * period].all()
        assert (first.tolist(), second.tolist()) == ([1, period + 1], [period + 2, 2 * period + 1])
    assert len(periods) > 1
    assert min(periods) >= 8
    assert max(periods) <= 16
    again, other = (repeated_tokens(model, CONFIG, seed).ids for seed in (5, 6))
    assert torch.equal(again, examples.ids)
    assert not torch.equal(other[:, :9], examples.ids[:, :9])


@pytest.mark.parametrize("op", ["zero", "mean"])
def test_the_induction_head_is_confirmed(f1, model, op):
    config = ConfirmConfig(sequences=8, periods=(8, 16), op=op)
    tables = ablation_tables(model, heads(f1, f1.INDUCTION), config)
    verdict = tables["confirmation"]
    assert verdict["seed"].tolist() == [0, 1, 2]
    assert set(zip(verdict["layer"], verdict["head"], strict=True)) == {f1.INDUCTION}
    assert verdict["confirmed"].tolist() == [1, 1, 1]
    assert (verdict["rise_low"] <= verdict["rise"]).all()
    assert (verdict["rise"] <= verdict["rise_high"]).all()
    assert verdict["strong"].tolist() == [2, 2, 2]
    assert (verdict["weak_rise"] < 0.01).all()
    rows = tables["ablation"]
    assert len(rows["seed"]) == 3 * (8 + 2)
    mine = [
        i
        for i, what in enumerate(rows["what"])
        if (what, rows["layer"][i], rows["head"][i]) == ("head", *f1.INDUCTION)
    ]
    assert rows["loss_second_before"][mine] == pytest.approx(7.6e-4, rel=0.01)
    if op == "zero":
        want = math.log(16 + math.exp(0.5))  # ln 17 and the echo
        assert rows["loss_second_after"][mine] == pytest.approx(want, abs=1e-6)
    else:
        assert (rows["loss_second_after"][mine] > 2).all()


def test_the_decoy_has_the_score_and_is_not_confirmed(f1, model):
    tables = ablation_tables(model, heads(f1, f1.DECOY), CONFIG)
    verdict = tables["confirmation"]
    assert set(zip(verdict["layer"], verdict["head"], strict=True)) == {f1.DECOY}
    assert verdict["rise"].tolist() == [0, 0, 0]
    assert verdict["confirmed"].tolist() == [0, 0, 0]
    assert (verdict["rank"] > 1).all()
    assert (verdict["strong_rise"] > 2).all()  # the other one is among them


def test_sets_are_matched_layer_by_layer(f1, model):
    scores = heads(f1, f1.INDUCTION)
    scores["prefix_matching"] = np.array([0.4, 0.1, 0.0, 0.2, 0.9, 0.05, 0.01, 0.8])
    rows = ablation_tables(model, scores, CONFIG)["ablation"]
    at = {what: rows["what"].index(what) for what in ("strong", "weak")}
    assert rows["heads"][at["strong"]] == rows["heads"][at["weak"]] == 3
    assert rows["score"][at["strong"]] == pytest.approx((0.4 + 0.9 + 0.8) / 3)
    assert rows["score"][at["weak"]] == pytest.approx((0.0 + 0.05 + 0.01) / 3)


def test_without_strong_heads_there_are_no_sets(f1, model):
    config = ConfirmConfig(sequences=4, periods=(8, 9), threshold=1.1, seeds=(4,))
    seen = []
    scores = heads(f1, f1.INDUCTION)
    tables = ablation_tables(model, scores, config, progress=lambda *at: seen.append(at))
    assert seen == [(done, 8) for done in range(1, 9)]
    assert set(tables["ablation"]["what"]) == {"head"}
    assert np.isnan(tables["confirmation"]["strong_rise"]).all()


def test_the_result_is_found_again(f1, model, tmp_path):
    scores = heads(f1, f1.INDUCTION)
    config = ConfirmConfig(sequences=4, periods=(8, 9), seeds=(7,))
    result = confirm_induction(model, scores, tmp_path, config)
    assert result.done
    assert result.tables() == ["ablation", "confirmation", "copying"]
    assert result.table("confirmation")["confirmed"].tolist() == [1]
    again = confirm_induction(model, scores, tmp_path, config)
    assert again.path == result.path
    assert again.card.started == result.card.started
    scores["prefix_matching"][0] = 0.2
    assert confirm_induction(model, scores, tmp_path, config).path != result.path


def test_who_copies_and_how_much(f1, model):
    """Over the mean of 17 logits: the induction head pushes the right token, the echo the one before."""
    table = copying_scores(model, repeated_tokens(model, CONFIG, 0))
    score = {(layer, head): rest for layer, head, *rest in zip(*table.values(), strict=True)}
    gain, echo = f1.GAIN, f1.ECHO_GAIN
    assert score[f1.INDUCTION] == pytest.approx([gain * 16 / 17, 1, gain], abs=1e-5)
    assert score[f1.ECHO] == pytest.approx([-echo / 17, 1, echo], abs=1e-5)
    for head in (f1.PREVIOUS, f1.DECOY, (0, 1), (1, 3)):
        assert score[head] == [0, 0, 0]


def toy_model(family, **options):
    network = toy.build(family, **options)
    return LoadedModel(
        adapter=adapt(network),
        tokenizer=toy.build_tokenizer(family),
        model=network,
        name="toy",
        folder=None,
        config_sha256="",
        files={},
        compute_dtype="float32",
        attn_implementation="sdpa",
        revision=None,
    )


def test_copying_is_that_of_the_weights_of_gpt2():
    """The dense matrix ``LN1(W_E) W_V W_O G W_U`` in float64, its eigenvalues taken directly."""
    model = toy_model("gpt2")
    model.model.requires_grad_(False)
    config = ConfirmConfig(sequences=3, periods=(5, 9))
    examples = repeated_tokens(model, config, 0)
    table = copying_scores(model, examples)
    inner = model.model.transformer
    embed = inner.wte.weight.double()
    for layer, block in enumerate(inner.h):
        centred = embed - embed.mean(1, keepdim=True)
        normed = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        normed = normed * block.ln_1.weight.double()
        w_v = block.attn.c_attn.weight.double()[:, 64:]
        w_o = block.attn.c_proj.weight.double()
        w_o = (w_o - w_o.mean(1, keepdim=True)) * inner.ln_f.weight.double()
        for head in range(4):
            mine = slice(head * 8, head * 8 + 8)
            circuit = normed @ w_v[:, mine] @ w_o[mine] @ embed.T
            roots = torch.linalg.eigvals(circuit)
            at = layer * 4 + head
            assert table["ov_ratio"][at] == pytest.approx(
                float(roots.real.sum() / roots.abs().sum()), abs=1e-4
            )
            assert table["ov_diagonal"][at] == pytest.approx(
                float(circuit.trace()) / len(embed), rel=1e-3
            )


def test_copying_is_what_the_logits_lose_without_the_head_at_the_last_block():
    """Nothing comes behind the last block but the norm, frozen here by hand, and the unembedding."""
    model = toy_model("gpt2")
    model.model.requires_grad_(False)
    config = ConfirmConfig(sequences=3, periods=(5, 9))
    examples = repeated_tokens(model, config, 0)
    table = copying_scores(model, examples)
    sites = ["blocks.1.attn.z", "blocks.1.resid_post"]
    z, x = model.adapter.capture(examples.ids, examples.mask, sites).values()
    inner = model.model.transformer
    scale = (x.var(2, correction=0) + 1e-5).sqrt()
    for head in range(4):
        alone = torch.zeros_like(z)
        alone[:, :, head] = z[:, :, head]
        wrote = alone.flatten(2) @ inner.h[1].attn.c_proj.weight
        wrote = (wrote - wrote.mean(2, keepdim=True)) / scale[..., None] * inner.ln_f.weight
        logits = wrote @ inner.wte.weight.T
        logits = logits - logits.mean(2, keepdim=True)
        pushed = logits[:, :-1].gather(2, examples.ids[:, 1:, None]).squeeze(2)
        inside = examples.within("second")[:, 1:]
        assert table["copying"][4 + head] == pytest.approx(float(pushed[inside].mean()), abs=1e-4)


def test_a_model_without_a_head_copies_nowhere(f1):
    with pytest.raises(JobError, match="no-head"):
        copying_scores(f1.loaded(head=False), None)


@pytest.mark.parametrize(
    "settings",
    [{"seeds": ()}, {"sequences": 0}, {"periods": (9, 8)}, {"periods": (2, 8)}, {"op": "scale"}],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(JobError, match="bad-number"):
        ConfirmConfig(**settings)


def test_blocks_longer_than_the_vocabulary_are_refused(model):
    with pytest.raises(JobError, match="too-few-tokens"):
        repeated_tokens(model, ConfirmConfig(periods=(17, 17)), 0)


def test_heads_without_scores_are_refused(f1, model):
    scores = heads(f1, f1.INDUCTION)
    scores["prefix_matching"][:] = np.nan
    with pytest.raises(JobError, match="no-scores"):
        ablation_tables(model, scores)


@pytest.mark.slow
def test_the_shipped_models_top_head_is_confirmed_over_three_seeds():
    """Scores from their own sequences; every head of the top head's block is taken out alone."""
    model = load(str(bundled_causal()), dtype="float32")
    config = ConfirmConfig(sequences=8, periods=(40, 80))
    scores = scored(model, repeated_tokens(model, config, 100))
    top = int(np.argmax(scores["prefix_matching"]))
    assert scores["prefix_matching"][top] > 0.8
    assert scores["previous_token"].max() > 0.9
    block = scores["layer"] == scores["layer"][top]
    tables = ablation_tables(model, {name: v[block] for name, v in scores.items()}, config)
    verdict, rows = tables["confirmation"], tables["ablation"]
    assert verdict["confirmed"].tolist() == [1, 1, 1]
    assert set(verdict["layer"]) == {scores["layer"][top]}
    assert (verdict["rise"] > 0.5).all()
    assert (verdict["strong_rise"] > 4).all()  # others stand in for one
    assert (np.abs(verdict["control_rise"]) < 0.2).all()
    assert (rows["loss_first_before"] > 7).all()
    assert (rows["loss_second_before"] < 1).all()
    weak = [i for i, what in enumerate(rows["what"]) if what == "weak"]
    assert (np.abs(rows["rise"][weak]) < 0.2).all()
    copying = copying_scores(model, repeated_tokens(model, config, 0))["copying"]
    strong = scores["prefix_matching"] >= config.threshold
    assert copying[strong].min() > 10 * np.abs(copying[~strong]).max()


def scored(model, examples):
    """The statistic's heads table over these sequences."""
    statistic, facts = STATISTICS.get("induction")(), ModelFacts.of(model.adapter)
    partial, mask = statistic.empty(facts), examples.mask.bool()
    got = model.adapter.capture(examples.ids, examples.mask, statistic.requires(facts))
    lengths, ids = mask.sum(1).numpy(), examples.ids[mask].numpy()
    special = np.isin(ids, model.tokenizer.all_special_ids)
    partial.update(
        SequenceBlock(
            part=0,
            row_ids=np.arange(len(ids)),
            bounds=np.concatenate([[0], np.cumsum(lengths)]),
            tokens={
                "token_id": ids,
                "flags": (special * FLAG_SPECIAL).astype(np.uint16),
                "seq_id": np.repeat(np.arange(len(lengths)), lengths),
            },
            sites={site: value[mask] for site, value in got.items()},
        )
    )
    return partial.finalize()["heads"]


def rises(**values):
    """What switching heads (layer 0) off did: head → (low, rise, high)."""
    return {
        (0, int(name[1:])): {"rise": rise, "rise_low": low, "rise_high": high}
        for name, (low, rise, high) in values.items()
    }


@pytest.mark.parametrize(
    ("single", "confirmed", "rank"),
    [
        (rises(h0=(0.5, 1.0, 1.5), h1=(0.0, 0.1, 0.2)), 1, 1),
        (rises(h0=(-0.1, 0.1, 0.3), h1=(0.0, 0.0, 0.0)), 0, 1),
        (rises(h0=(0.5, 1.0, 1.5), h1=(0.5, 0.6, 0.7)), 0, 1),
        (rises(h0=(0.5, 1.0, 1.5), h1=(0.9, 2.0, 3.0)), 0, 2),
    ],
    ids=["clear", "not above zero", "not above a weak head", "a weak head does more"],
)
def test_the_verdict_needs_an_interval_above_zero_and_above_every_weak_head(
    single, confirmed, rank
):
    found = _verdict(0, 0.4, {(0, 0): 0.9, (0, 1): 0.1}, single, {})
    assert (found["confirmed"], found["rank"]) == (confirmed, rank)


def test_the_interval_is_that_of_95_percent_of_resampled_means(model, monkeypatch):
    config = ConfirmConfig(sequences=64, periods=(8, 9), op="zero")
    trial = _Trial(model, config, 0)
    rise_N = np.random.default_rng(3).normal(1.0, 2.0, 64)
    after = trial.before + np.stack([np.zeros(64), rise_N])
    monkeypatch.setattr(trial.runner, "run", lambda _: {"intervened": after.reshape(-1)})
    found = trial.without([(0, 0)])
    assert found["rise"] == pytest.approx(rise_N.mean())
    half = 1.96 * rise_N.std() / 8  # the normal interval of a mean of 64
    assert found["rise_high"] - found["rise"] == pytest.approx(half, rel=0.1)
    assert found["rise"] - found["rise_low"] == pytest.approx(half, rel=0.1)


def test_copying_by_grouped_heads_is_that_of_their_own_key_head():
    """OV circuits of a toy Llama, two query heads a key head, from its matrices as they stand."""
    loaded = toy_model("llama")
    network = loaded.model
    table = copying_scores(
        loaded, repeated_tokens(loaded, ConfirmConfig(sequences=2, periods=(4, 5)), 0)
    )
    layers, (heads, groups, width) = network.model.layers, (4, 2, 8)
    gain, unembed = network.model.norm.weight, network.lm_head.weight
    with torch.no_grad():
        for at, (layer, head) in enumerate(zip(table["layer"], table["head"], strict=True)):
            block = layers[int(layer)]
            group = int(head) // (heads // groups)
            seen = block.input_layernorm(network.model.embed_tokens.weight)
            value = seen @ block.self_attn.v_proj.weight[group * width : (group + 1) * width].T
            out = block.self_attn.o_proj.weight[:, int(head) * width : (int(head) + 1) * width]
            circuit = value @ (out.T * gain) @ unembed.T
            assert table["ov_diagonal"][at] == pytest.approx(
                float(circuit.diagonal().mean()), rel=1e-3, abs=1e-7
            )


def test_the_final_scale_is_that_of_the_norm_its_epsilon_included():
    loaded = toy_model("llama")
    norm = loaded.model.model.norm
    norm.variance_epsilon = 0.7
    x = torch.randn(5, norm.weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        expected = (x * norm.weight.double() / norm.double()(x)).mean(1)
    assert torch.allclose(_final_scale(loaded, x), expected)
