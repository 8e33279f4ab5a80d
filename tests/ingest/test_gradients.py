"""Gradients at sites: against differences of the forward, rules against their closed forms, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ingest.errors import ModelError, SiteError
from ingest.models import adapt, toy
from ingest.models.backward import _run
from ingest.models.rules import RULES, GradRule, rule_of

CAUSAL = {
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "opt": "OPTForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


@pytest.fixture(params=CAUSAL)
def model(request):
    built = toy.build(request.param, layers=2, architecture=CAUSAL[request.param]).double()
    return built.requires_grad_(requires_grad=False)  # as models are loaded


def batch():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 200, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return ids, mask


def objective(logits):
    """Something of every position but the padding."""
    at = torch.arange(logits.shape[2], dtype=logits.dtype)
    weights = torch.sin(at) * (1 + torch.arange(6, dtype=logits.dtype))[:, None]
    return (torch.tanh(logits[:, :6] / 9) * weights).sum((1, 2))


def measured(model, adapter, edits):
    """The objective where some sites are changed, by the model's own forward."""
    ids, mask = batch()
    handles = [
        adapter.listen(site, lambda value, d=delta: value + d) for site, delta in edits.items()
    ]
    with torch.no_grad():
        found = objective(model(input_ids=ids, attention_mask=mask, use_cache=False).logits)
    for handle in handles:
        handle.remove()
    return found


def cut(model, adapter, site):
    """The gradient at one site by autograd alone: everything before it is a constant."""
    ids, mask = batch()
    leaf = []

    def begin(value):
        leaf.append(value.detach().clone().requires_grad_())
        return leaf[0]

    with adapter.listen(site, begin):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return torch.autograd.grad(objective(logits).sum(), leaf[0])[0]


def test_the_exact_rule_is_autograd_at_every_site(model):
    adapter = adapt(model)
    sites = list(adapter.sites())
    found, values = adapter.gradients(*batch(), sites, objective)
    assert torch.equal(values, measured(model, adapter, {}))
    assert list(found) == sites
    for site in sites:
        assert torch.allclose(found[site], cut(model, adapter, site), rtol=1e-6, atol=1e-9), site
    backwards, _ = adapter.gradients(*batch(), sites[::-1], objective)
    assert list(backwards) == sites[::-1]


def test_weights_get_no_gradient_though_they_could(model):
    model.requires_grad_(requires_grad=True)
    adapt(model).gradients(*batch(), ["blocks.0.resid_pre"], objective)
    assert not any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("rule", ["attribution_graph", "grad_drop", "relp_ah"])
@pytest.mark.parametrize("site", ["mlp.post", "attn.z", "attn.q"])
def test_where_no_way_is_left_there_are_zeros(model, rule, site):
    """Alone, as a site is asked for; together with others it has a graph to be in."""
    adapter = adapt(model)
    site = f"blocks.1.{site}"
    alone, _ = adapter.gradients(*batch(), [site], objective, RULES[rule])
    every, _ = adapter.gradients(*batch(), list(adapter.sites()), objective, RULES[rule])
    assert torch.allclose(alone[site], every[site], rtol=1e-9)


def test_what_an_mlp_adds_counts_though_nothing_goes_through_it(model):
    """In the last block nothing lies behind it but the stream."""
    adapter = adapt(model)
    added = next(
        name for name in ("mlp.post_norm", "mlp.out") if f"blocks.1.{name}" in adapter.sites()
    )
    sites = [f"blocks.1.{added}", "blocks.1.resid_post", "blocks.1.mlp.post"]
    out, post, inner = adapter.gradients(*batch(), sites, objective, GradRule(mlp="block"))[
        0
    ].values()
    assert post.any()
    assert torch.equal(out, post)
    assert not inner.any()


def test_halves_that_stand_side_by_side_are_dropped_alike():
    adapter = adapt(toy.build("gpt_neox", layers=2, architecture="GPTNeoXForCausalLM").double())
    sites = ["blocks.0.attn.out", "blocks.0.mlp.out"]
    for rule in (GradRule(), GradRule(drop="layers")):
        one, other = adapter.gradients(*batch(), sites, objective, rule)[0].values()
        assert torch.equal(one, other)


def test_means_over_runs_are_summed_in_float32():
    adapter = adapt(toy.build("llama", layers=8, architecture="LlamaForCausalLM").bfloat16())
    site, rule = "blocks.0.resid_pre", RULES["grad_drop"]
    found, _ = adapter.gradients(*batch(), [site], objective, rule)
    runs = [_run(adapter, *batch(), [site], objective, rule, None, at)[0][site] for at in range(8)]
    assert runs[0].dtype == torch.bfloat16
    assert torch.allclose(found[site], torch.stack(runs).float().mean(0), rtol=1e-5)
    assert not torch.equal(found[site].bfloat16().float(), found[site])


@pytest.mark.parametrize(
    "fields", [{"norm": "frozn"}, {"drop": "all"}, {"steps": 0}, {"steps": 3}, {"point": "there"}]
)
def test_rules_that_are_none_are_refused(fields):
    with pytest.raises(ModelError, match=r"bad-rule.*Nothing was run"):
        GradRule(**fields)


def test_it_is_the_derivative_of_the_forward(model):
    """Central differences along a random direction, site by site and example by example.

    Norms of all but GPT-2 compute in float32, which bounds how small a step may be.
    """
    adapter = adapt(model)
    ids, mask = batch()
    exact = isinstance(
        adapter.model.base_model.get_submodule(adapter.bends.norms[0].format(l=0)), nn.LayerNorm
    )
    step, close = (1e-6, 2e-6) if exact else (3e-4, 2e-2)
    found, _ = adapter.gradients(ids, mask, list(adapter.sites()), objective)
    for site in found:
        generator = torch.Generator().manual_seed(len(site))
        along = torch.randn(found[site].shape, generator=generator, dtype=torch.float64)
        along *= mask.reshape(*mask.shape, *[1] * (along.dim() - 2))
        up, down = (measured(model, adapter, {site: sign * step * along}) for sign in (1, -1))
        got = (found[site] * along).flatten(1).sum(1)
        assert torch.allclose(got, (up - down) / (2 * step), rtol=close, atol=close), site


def test_one_site_gives_the_gradient_that_all_together_give(model):
    adapter = adapt(model)
    every, _ = adapter.gradients(*batch(), list(adapter.sites()), objective)
    for site in ("blocks.0.resid_pre", "blocks.1.attn.v", "blocks.1.mlp.post"):
        alone, _ = adapter.gradients(*batch(), [site], objective)
        assert torch.allclose(alone[site], every[site], rtol=1e-12)


@pytest.mark.parametrize("rule", [RULES[name] for name in RULES if RULES[name].point == "here"])
def test_a_rule_changes_no_value_and_leaves_nothing_behind(model, rule):
    adapter = adapt(model)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    plain = measured(model, adapter, {})
    _, values = adapter.gradients(*batch(), ["blocks.0.resid_pre"], objective, rule)
    assert torch.equal(values, plain)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert torch.equal(measured(model, adapter, {}), plain)


FIELDS = {
    "norm": (GradRule(norm="frozen"), "blocks.0.resid_pre"),
    "act": (GradRule(act="identity"), "blocks.0.mlp.pre"),
    "attn": (GradRule(attn="frozen"), "blocks.0.resid_pre"),
    "mlp": (GradRule(mlp="block"), "blocks.0.resid_pre"),
}


@pytest.mark.parametrize(("rule", "site"), FIELDS.values(), ids=FIELDS)
def test_each_field_acts_on_a_model_that_is_loaded(model, rule, site):
    adapter = adapt(model)
    exact, _ = adapter.gradients(*batch(), [site], objective)
    other, _ = adapter.gradients(*batch(), [site], objective, rule)
    assert not torch.allclose(exact[site], other[site], rtol=1e-3)


def test_half_of_what_comes_back_goes_into_each_branch():
    adapter = adapt(toy.build("llama", layers=2, architecture="LlamaForCausalLM").double())
    sites = ["blocks.1.mlp.pre", "blocks.1.mlp.pre_linear", "blocks.1.mlp.post"]
    exact, _ = adapter.gradients(*batch(), sites, objective)
    half, _ = adapter.gradients(*batch(), sites, objective, GradRule(gate="half"))
    for site in sites[:2]:
        assert torch.allclose(half[site], exact[site] / 2, rtol=1e-12)
    assert torch.equal(half[sites[2]], exact[sites[2]])  # the product itself has the whole


def test_frozen_attention_and_blocked_mlps_send_nothing_back(model):
    adapter = adapt(model)
    inner = [
        name
        for name in adapter.sites()
        if name.startswith("blocks.1.")
        and name.split(".", 2)[2] in {"attn.q", "attn.k", "attn.rot_q"}
    ]
    frozen, _ = adapter.gradients(
        *batch(), [*inner, "blocks.1.attn.v"], objective, GradRule(attn="frozen")
    )
    exact, _ = adapter.gradients(*batch(), inner, objective)
    assert inner
    assert all(exact[name].any() for name in inner)
    assert all(not frozen[name].any() for name in inner)
    assert frozen["blocks.1.attn.v"].any()
    sites = ["blocks.1.mlp.in", "blocks.1.mlp.post"]
    blocked, _ = adapter.gradients(*batch(), sites, objective, GradRule(mlp="block"))
    assert all(not blocked[name].any() for name in sites)


def bias_free(model):
    """Take every bias away, norms' too: then relevance is conserved."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3_text"])
def test_with_all_rules_on_relevance_is_conserved_from_block_to_block(family):
    """sum(resid · rho) is the logit itself at every depth; the plain gradient keeps nothing of it (RelP §3)."""
    model = bias_free(toy.build(family, layers=3, architecture=CAUSAL[family]).double())
    adapter = adapt(model)
    ids, mask = batch()
    sites = [f"blocks.{layer}.resid_pre" for layer in range(3)] + ["blocks.2.resid_post"]
    values = adapter.capture(ids, mask, sites)

    def logit(logits):
        return logits[:, 5, 7]

    for name, holds in (("relp_ah", True), ("exact", False)):
        rho, wanted = adapter.gradients(ids, mask, sites, logit, RULES[name])
        for site in sites:
            got = (values[site] * rho[site]).flatten(1).sum(1)
            close = torch.allclose(got, wanted, rtol=1e-4)
            assert close == holds, (site, got, wanted)


def test_bad_questions_are_refused():
    bare = adapt(toy.build("llama", layers=1, architecture="LlamaModel"))
    with pytest.raises(ModelError, match="no-head"):
        bare.gradients(*batch(), ["blocks.0.resid_post"], objective)
    whole = adapt(toy.build("gpt2", layers=1, architecture="GPT2LMHeadModel"))
    with pytest.raises(SiteError, match="unknown-site"):
        whole.gradients(*batch(), ["blocks.7.resid_post"], objective)
    with pytest.raises(ModelError, match=r"unknown-name.*known: exact, ig"):
        rule_of("magic")


def test_an_activation_that_all_blocks_share_is_turned_once():
    """Some models hold one object; a rule that acted on it once a block would halve again and again."""
    model = toy.build("gpt2", layers=2, architecture="GPT2LMHeadModel").double()
    shared = nn.GELU()
    apart, together = (adapt(model) for _ in range(2))
    for block in model.transformer.h:
        block.mlp.act = nn.GELU()
    site, rule = "blocks.0.resid_pre", GradRule(act="identity")
    wanted, _ = apart.gradients(*batch(), [site], objective, rule)
    for block in model.transformer.h:
        block.mlp.act = shared
    found, _ = together.gradients(*batch(), [site], objective, rule)
    assert torch.equal(found[site], wanted[site])


def prompts():
    """Two prompts a row apart from one another in some tokens, and what is measured behind them."""
    ids, mask = batch()
    other = ids.clone()
    other[:, 2:4] = (other[:, 2:4] + 50) % 200 + 5
    return ids, other, mask


def test_between_two_prompts_what_the_embeddings_give_adds_up_to_the_difference(model):
    """Completeness of integrated gradients, at the middles of 60 steps."""
    adapter = adapt(model)
    ids, other, mask = prompts()
    rule = GradRule(point="inputs", steps=60)

    def value(some):
        with torch.no_grad():
            return objective(model(input_ids=some, attention_mask=mask, use_cache=False).logits)

    found, _ = adapter.gradients(ids, mask, ["embed"], objective, rule, other)
    here, there = (adapter.capture(some, mask, ["embed"])["embed"] for some in (ids, other))
    got = ((there - here) * found["embed"]).flatten(1).sum(1)
    wanted = value(other) - value(ids)
    assert torch.allclose(got, wanted, rtol=0.05, atol=0.05 * float(wanted.abs().max()))
    exact, _ = adapter.gradients(ids, mask, ["embed"], objective)
    plain = ((there - here) * exact["embed"]).flatten(1).sum(1)
    assert (got - wanted).abs().sum() < (plain - wanted).abs().sum()


def test_the_way_is_the_same_from_both_ends(model):
    adapter = adapt(model)
    ids, other, mask = prompts()
    site, rule = "blocks.1.resid_pre", GradRule(point="inputs", steps=4)
    one, _ = adapter.gradients(ids, mask, [site], objective, rule, other)
    two, _ = adapter.gradients(other, mask, [site], objective, rule, ids)
    assert torch.allclose(one[site], two[site], rtol=1e-3, atol=1e-6)


def test_one_step_is_the_gradient_half_way(model):
    adapter = adapt(model)
    ids, other, mask = prompts()
    here, there = (adapter.capture(some, mask, ["embed"])["embed"].clone() for some in (ids, other))
    site, rule = "blocks.1.resid_pre", GradRule(point="inputs", steps=1)
    found, _ = adapter.gradients(ids, mask, [site], objective, rule, other)
    with adapter.listen("embed", lambda value: value + (there - here) / 2):
        wanted, _ = adapter.gradients(ids, mask, [site], objective)
    assert torch.allclose(found[site], wanted[site], rtol=1e-9)


def test_points_between_need_a_partner(model):
    ids, other, mask = prompts()
    rule = GradRule(point="inputs", steps=2)
    for partner in (None, other[:, :5]):
        with pytest.raises(ModelError, match="Give each prompt its partner"):
            adapt(model).gradients(ids, mask, ["embed"], objective, rule, partner)


def test_dropped_blocks_are_the_mean_of_runs_without_each(model):
    """Against a model whose block is cut off by hand: both halves' outputs are constants."""
    adapter = adapt(model)
    site = "blocks.0.resid_pre"
    found, values = adapter.gradients(*batch(), [site], objective, GradRule(drop="layers"))
    assert torch.allclose(values, measured(model, adapter, {}))
    every = []
    for block in range(2):
        halves = [f"blocks.{block}.{name}" for name in ("attn.out", "mlp.out")]
        with (
            adapter.listen(halves[0], torch.Tensor.detach),
            adapter.listen(halves[1], torch.Tensor.detach),
        ):
            every.append(adapter.gradients(*batch(), [site], objective)[0][site])
    assert torch.allclose(found[site], (every[0] + every[1]) / 2, rtol=1e-9)
    assert not torch.allclose(every[0], every[1], rtol=1e-2)
