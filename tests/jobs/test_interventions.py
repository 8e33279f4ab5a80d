"""Operations on arrays, selection, and the Runner on F1 and toy models."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ingest.errors import ModelError, SiteError
from ingest.models import LoadedModel, adapt, toy
from ingest.models.metrics import METRICS, Examples
from jobs.errors import JobError
from jobs.interventions import (
    OPERATIONS,
    Intervention,
    Runner,
    ablate_heads,
    head_ablations,
    site_means,
    site_values,
)
from jobs.interventions.contract import operation

VALUES = {
    None: None,
    "site": torch.arange(6.0).reshape(3, 2),
    "example": torch.arange(60.0).reshape(2, 5, 3, 2),
}
KNOWN = {
    "zero": lambda x, v: x * 0,
    "mean": lambda x, v: v + x * 0,
    "patch": lambda x, v: v,
    "add": lambda x, v: x + v,
    "scale": lambda x, v: x * 0.5,
}


def op_of(name):
    return operation(name, **({"factor": 0.5} if name == "scale" else {}))


@pytest.fixture
def x():
    return torch.randn(2, 5, 3, 2, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def examples():
    ids = torch.arange(10).reshape(2, 5)
    spans = {"late": torch.tensor([[3, 5], [1, 2]])}
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    return Examples(ids=ids, mask=mask, spans=spans, answers={"correct": torch.tensor([1, 2])})


@pytest.mark.parametrize("name", OPERATIONS.names())
def test_an_operation_is_a_pure_function_of_arrays(name, x):
    op, before = op_of(name), x.clone()
    got = op.apply(x, VALUES[op.needs])
    assert torch.equal(got, KNOWN[name](x, VALUES[op.needs]))
    assert torch.equal(x, before)
    assert torch.equal(op.apply(x, VALUES[op.needs]), got)


@pytest.mark.parametrize("name", OPERATIONS.names())
@pytest.mark.parametrize(
    ("heads", "span", "touched"),
    [
        ((), "", [(b, t, h) for b in range(2) for t in range(5) for h in range(3)]),
        ((1,), "", [(b, t, 1) for b in range(2) for t in range(5)]),
        ((0, 2), (1, 3), [(b, t, h) for b in range(2) for t in (1, 2) for h in (0, 2)]),
        ((), (-1, None), [(0, 4, h) for h in range(3)] + [(1, 3, h) for h in range(3)]),
        ((0,), (-3, -1), [(0, 2, 0), (0, 3, 0), (1, 1, 0), (1, 2, 0)]),
        ((2,), "late", [(0, 3, 2), (0, 4, 2), (1, 1, 2)]),
    ],
    ids=["all", "head", "heads and positions", "from the end", "before the end", "named span"],
)
def test_only_the_selected_part_is_changed(name, heads, span, touched, x, examples):
    op = op_of(name)
    one = Intervention(site="s", op=op, heads=heads, span=span, values=VALUES[op.needs])
    got = one.changed(x, examples, slice(0, 2))
    want = x.clone()
    whole = KNOWN[name](x, VALUES[op.needs]).expand_as(x)
    for at in touched:
        want[at] = whole[at]
    assert torch.equal(got, want)


def test_values_are_those_of_the_examples_of_the_batch(x, examples):
    values = torch.randn(7, 5, 3, 2)
    one = Intervention(site="s", op=operation("patch"), values=values)
    assert torch.equal(one.changed(x, examples, slice(4, 6)), values[4:6])


def test_a_site_without_heads_takes_spans():
    value, ids = torch.ones(1, 3, 4), torch.zeros(1, 3, dtype=torch.long)
    one = Intervention(site="s", op=operation("zero"), span=(0, 1))
    got = one.changed(value, Examples(ids=ids, mask=ids + 1), slice(0, 1))
    assert got.sum(2).tolist() == [[0, 4, 4]]


@pytest.fixture(scope="module")
def f1(oracle):
    return oracle("compiled_induction")


@pytest.fixture(scope="module")
def model(f1):
    return f1.loaded()


def copies(f1, count=6, period=12, batch=4):
    """Batches of repeated blocks; the span ``second`` leaves out its unpredictable first token."""
    ids = torch.from_numpy(f1.repeated(np.random.default_rng(3), period, count))
    span = torch.tensor([[period + 2, 2 * period + 1]])
    return [
        Examples(ids=one, mask=torch.ones_like(one), spans={"second": span.expand(len(one), 2)})
        for one in ids.split(batch)
    ]


def second(table):
    return np.mean(table["base"]), np.mean(table["intervened"])


def metric(name, **fields):
    return METRICS.parse({"kind": name, **fields})


@pytest.mark.parametrize("op", ["zero", "mean"])
def test_ablation_on_f1_costs_what_is_known(f1, model, op):
    loss = [metric("nll", span="second")]
    base, after = second(ablate_heads(model, copies(f1), [f1.INDUCTION], loss, op=op))
    assert base == pytest.approx(math.log1p(15 * math.exp(-10) + math.exp(-9.5)), rel=1e-3)
    if op == "zero":
        assert after == pytest.approx(math.log(16 + math.exp(0.5)), abs=1e-6)  # ln 17 + echo
    else:
        assert after > 2.5
    base, after = second(ablate_heads(model, copies(f1), [f1.DECOY, (1, 3)], loss, op=op))
    assert after == base  # a perfect pattern, exactly no effect
    _, after = second(ablate_heads(model, copies(f1), [f1.PREVIOUS], loss, op=op))
    assert after > 2.5


def test_ablating_the_echo_moves_the_logits_by_its_gain(f1, model):
    [batch] = copies(f1, count=3)
    answers = {"correct": batch.ids[:, -12], "wrong": batch.ids[:, -2]}
    batch = Examples(ids=batch.ids, mask=batch.mask, answers=answers)
    table = ablate_heads(model, [batch], [f1.ECHO], [metric("logit_diff")])
    np.testing.assert_allclose(table["base"], 10 - 0.5, atol=1e-5)
    np.testing.assert_allclose(table["intervened"] - table["base"], f1.ECHO_GAIN, atol=1e-6)


def test_activation_patching_through_the_runner_has_its_known_values(f1, model, rng):
    clean, corrupt, j0 = f1.pair_c1(rng)
    answers = {"correct": torch.tensor([clean[j0 + 1]]), "wrong": torch.tensor([corrupt[j0]])}
    one, other = (
        Examples(ids=torch.from_numpy(i)[None], mask=torch.ones(1, 17), answers=answers)
        for i in (clean, corrupt)
    )
    [top] = Runner(model, [one], [metric("logit_diff")]).base()
    runner = Runner(model, [other], [metric("logit_diff")])

    def effect(head, position):
        layer, number = head
        site = f"blocks.{layer}.attn.z"
        patch = Intervention(
            site=site,
            op=operation("patch"),
            heads=(number,),
            span=(position, position + 1),
            values=site_values(model, [one], site),
        )
        table = runner.run([patch])
        return float((table["intervened"] - table["base"])[0] / (top - table["base"])[0])

    assert effect(f1.PREVIOUS, j0 + 1) == pytest.approx(1, abs=1e-3)
    assert effect(f1.INDUCTION, 16) == pytest.approx(1, abs=1e-3)
    assert effect(f1.DECOY, 16) == 0
    assert effect(f1.ECHO, 16) == pytest.approx(0, abs=1e-8)


def test_the_table_has_a_row_for_each_example_and_metric(f1, model):
    metrics = [metric("nll", span="second"), metric("kl_to_clean")]
    runner = Runner(model, copies(f1, count=6, batch=4), metrics)
    table = runner.run(head_ablations([f1.DECOY]))
    assert table["example"].tolist() == [*range(6)] * 2
    assert table["metric"] == ["nll(second)"] * 6 + ["kl_to_clean"] * 6
    assert (table["intervened"][6:] == 0).all()
    assert (table["base"][6:] == 0).all()
    changed = runner.run(head_ablations([f1.INDUCTION]))
    assert (changed["intervened"][6:] > 0.5).all()
    np.testing.assert_array_equal(changed["base"], table["base"])


def test_the_base_is_run_once_and_no_hook_stays(f1, model):
    runs = []
    handle = model.model.register_forward_hook(lambda *_: runs.append(1))
    runner = Runner(model, copies(f1, count=2), [metric("nll")])
    for head in range(4):
        runner.run(head_ablations([(1, head)]))
    handle.remove()
    assert len(runs) == 5
    sizes = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules()]
    assert sum(sizes) == 0


def test_several_heads_of_several_layers_go_together(f1, model):
    got = head_ablations([(1, 2), (0, 1), (1, 0), (1, 2)])
    assert [(one.site, one.heads) for one in got] == [
        ("blocks.0.attn.z", (1,)),
        ("blocks.1.attn.z", (0, 2)),
    ]
    loss = [metric("nll", span="second")]
    _, both = second(ablate_heads(model, copies(f1), [f1.INDUCTION, f1.ECHO], loss))
    assert both == pytest.approx(math.log(17), abs=1e-6)


def test_edits_of_one_site_happen_in_order(f1, model):
    site = "blocks.1.attn.z"
    double = Intervention(site=site, op=operation("scale", factor=2.0))
    zero = Intervention(site=site, op=operation("zero"))
    runner = Runner(model, copies(f1), [metric("nll", span="second")])
    one, other = (second(runner.run(pair))[1] for pair in ([double, zero], [zero, double]))
    assert one == other == pytest.approx(math.log(17))


def test_means_leave_padding_out(f1, model):
    ids = torch.from_numpy(f1.repeated(np.random.default_rng(0), 4, 2))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    got = site_means(model, [Examples(ids=ids, mask=mask)], ["blocks.0.attn.z", "embed"])
    value = model.adapter.capture(ids, mask, ["embed"])["embed"]
    want = torch.cat([value[0], value[1, :5]]).mean(0)
    assert got["embed"].dtype == torch.float64
    torch.testing.assert_close(got["embed"], want)
    assert got["blocks.0.attn.z"].shape == (4, 33)


def test_values_of_uneven_batches_are_refused(f1, model):
    batches = [copies(f1, period=p)[0] for p in (5, 6)]
    with pytest.raises(JobError, match="uneven"):
        site_values(model, batches, "embed")


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        ({"site": "blocks.0.attn.x"}, "unknown-site"),
        ({"heads": (4,)}, "bad-intervention"),
        ({"site": "embed", "heads": (0,)}, "bad-intervention"),
        ({"op": operation("mean")}, "bad-intervention"),
        ({"op": operation("mean"), "values": torch.zeros(33)}, "bad-intervention"),
        ({"op": operation("patch"), "values": torch.zeros(5, 25, 4, 33)}, "bad-intervention"),
        ({"op": operation("patch"), "values": torch.zeros(6, 7, 4, 33)}, "bad-intervention"),
        ({"values": torch.zeros(4, 33)}, "bad-intervention"),
        ({"span": "nowhere"}, "bad-input"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(f1, model, bad, kind):
    one = replace(Intervention(site="blocks.0.attn.z", op=operation("zero")), **bad)
    with pytest.raises((JobError, SiteError, ModelError)) as caught:
        Runner(model, copies(f1), [metric("nll")]).run([one])
    assert caught.value.kind == kind


def test_ablation_knows_two_ways():
    with pytest.raises(JobError, match="bad-intervention"):
        head_ablations([(0, 0)], "scale")
    with pytest.raises(JobError, match="without means"):
        head_ablations([(0, 0)], "mean")


def toy_model(family, **options):
    model = toy.build(family, **options)
    return LoadedModel(
        adapter=adapt(model),
        tokenizer=None,
        model=model,
        name=f"toy {family}",
        folder=None,
        config_sha256="",
        files={},
        compute_dtype="float32",
        attn_implementation="sdpa",
        revision=None,
    )


IDS = torch.arange(12).reshape(2, 6)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda f1: toy_model("bert"), "not-causal"),
        (lambda f1: toy_model("gpt2", architecture="GPT2Model"), "no-head"),
        (lambda f1: f1.loaded(head=False), "no-head"),
        (lambda f1: toy_model("gpt2", positions=4), "too-long"),
    ],
    ids=["bidirectional", "bare", "F1 without unembedding", "too long"],
)
def test_a_model_that_predicts_no_next_token_is_refused(f1, make, kind):
    with pytest.raises(JobError, match="Nothing was run") as caught:
        Runner(make(f1), [Examples(ids=IDS, mask=torch.ones_like(IDS))], [metric("nll")])
    assert caught.value.kind == kind


def test_a_model_in_training_mode_is_refused():
    model = toy_model("gpt2")
    model.model.train()
    with pytest.raises(JobError, match="training-mode"):
        Runner(model, [Examples(ids=IDS, mask=torch.ones_like(IDS))], [metric("nll")])


def test_a_real_family_is_edited_head_by_head():
    model = toy_model("gpt2")
    examples = Examples(ids=IDS, mask=torch.ones_like(IDS))
    runner = Runner(model, [examples], [metric("nll"), metric("kl_to_clean")])
    want = torch.nn.functional.cross_entropy(
        model.model(input_ids=IDS).logits[:, :-1].flatten(0, 1),
        IDS[:, 1:].flatten(),
        reduction="none",
    )
    np.testing.assert_allclose(
        runner.base()[0], want.detach().view(2, 5).mean(1).numpy(), rtol=1e-6
    )
    seen = {}
    for head in range(4):
        table = runner.run(head_ablations([(0, head)]))
        seen[head] = table["intervened"][2:]
        assert (seen[head] > 1e-4).all()
    same = runner.run([Intervention(site="blocks.0.attn.z", op=operation("scale", factor=1.0))])
    assert (same["intervened"][2:] == 0).all()
    late = Intervention(site="blocks.0.attn.z", op=operation("zero"), span=(-1, None))
    np.testing.assert_array_equal(runner.run([late])["intervened"][:2], runner.base()[0])
