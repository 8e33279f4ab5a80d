"""Llama: every site against the family's own modules, rotated q and k as attention sees them, bit for bit."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.models.llama import modeling_llama

from ingest.errors import ModelError, SiteError
from ingest.models import adapt, attend, attention_sites, load, rotate, toy
from ingest.models.facts import ModelFacts

LAYERS, WIDTH, HEADS, KEYS, HEAD, INNER = 3, 32, 4, 2, 8, 96


@pytest.fixture(params=["LlamaForCausalLM", "LlamaModel"])
def bare_or_headed(request):
    return toy.build("llama", seed=5, layers=LAYERS, architecture=request.param)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request, bare_or_headed):
    return bare_or_headed.to(request.param)


@pytest.fixture(params=["full", "padded", "one"])
def batch(request):
    return a_batch(padded=request.param == "padded", size=1 if request.param == "one" else 3)


def a_batch(*, padded=False, size=3, length=21):
    ids = torch.randint(1, 320, (size, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, 9:], mask[2, 17:] = 0, 0
        ids = ids * mask
    return ids, mask


@torch.no_grad()
def by_hand(model, ids, mask):
    """Every site from the modules of `LlamaModel`, in the order they run."""
    base = model.base_model
    size, length = ids.shape
    x = base.embed_tokens(ids)
    sites = {"embed": x}
    turns = base.rotary_emb(x, torch.arange(length)[None])
    seen = torch.ones(length, length, dtype=torch.bool).tril() & mask.bool()[:, None, None, :]
    how = {"is_causal": True} if mask.all() else {"attn_mask": seen}
    for number, layer in enumerate(base.layers):
        at = f"blocks.{number}."
        normal = layer.input_layernorm(x)
        own = layer.self_attn
        q = own.q_proj(normal).view(size, length, HEADS, HEAD)
        k = own.k_proj(normal).view(size, length, KEYS, HEAD)
        v = own.v_proj(normal).view(size, length, KEYS, HEAD)
        turned = modeling_llama.apply_rotary_pos_emb(q, k, *turns, unsqueeze_dim=2)
        q_, k_, v_ = (t.transpose(1, 2) for t in (*turned, v))
        if mask.all():
            how["enable_gqa"] = True
        else:
            k_, v_ = (t.repeat_interleave(HEADS // KEYS, 1) for t in (k_, v_))
        z = scaled_dot_product_attention(q_, k_, v_, **how).transpose(1, 2)
        attn = own.o_proj(z.reshape(size, length, WIDTH))
        middle = x + attn
        entering = layer.post_attention_layernorm(middle)
        gate, linear = layer.mlp.gate_proj(entering), layer.mlp.up_proj(entering)
        post = layer.mlp.act_fn(gate) * linear
        mlp = layer.mlp.down_proj(post)
        after = middle + mlp
        named = {"resid_pre": x, "attn.q": q, "attn.k": k, "attn.v": v}
        named |= {"attn.rot_q": turned[0], "attn.rot_k": turned[1], "attn.z": z, "attn.out": attn}
        named |= {"resid_mid": middle, "mlp.in": entering, "mlp.pre": gate}
        named |= {"mlp.pre_linear": linear, "mlp.post": post, "mlp.out": mlp, "resid_post": after}
        sites |= {at + name: value for name, value in named.items()}
        x = after
    return sites | {"final.normalized": base.norm(x)}


def test_every_site_is_the_models_own_bit_for_bit(model, batch):
    adapter = adapt(model)
    truth = by_hand(model, *batch)
    assert list(truth) == list(adapter.sites())
    got = adapter.capture(*batch, list(adapter.sites()))
    for site, value in truth.items():
        assert got[site].dtype == model.dtype
        assert torch.equal(got[site], value), site


def test_residuals_are_the_hidden_states_of_transformers(model, batch):
    ids, mask = batch
    names = [f"blocks.{layer}.resid_pre" for layer in range(LAYERS)]
    got = adapt(model).capture(ids, mask, [*names, "final.normalized"])
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert len(states) == LAYERS + 1
    for value, state in zip(got.values(), states, strict=True):
        assert torch.equal(value, state)


# -- what attention sees -----------------------------------------------------------------------------------


def noted(module, query, key, value, attention_mask, **options):
    """Attention of our own, as a user may register one: the model's, and a note of what it saw."""
    assert module.config._attn_implementation == "noted"  # flash attention asks its module, too
    SEEN.append((query, key, value))
    return modeling_llama.eager_attention_forward(
        module, query, key, value, attention_mask, **options
    )


SEEN: list = []


def registered(monkeypatch):
    from transformers import AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    monkeypatch.setattr(
        AttentionInterface,
        "_global_mapping",
        {**AttentionInterface._global_mapping, "noted": noted},
    )
    monkeypatch.setattr(
        AttentionMaskInterface,
        "_global_mapping",
        {**AttentionMaskInterface._global_mapping, "noted": eager_mask},
    )
    SEEN.clear()


@pytest.mark.parametrize("how", ["sdpa", "eager", "noted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_listener_changes_no_bit_under_any_attention(monkeypatch, how, dtype, batch):
    registered(monkeypatch)
    ids, mask = batch
    model = toy.build("llama", seed=5, layers=LAYERS).to(dtype)
    model.set_attn_implementation(how)
    adapter = adapt(model)
    modules = [layer.self_attn for layer in model.model.layers]
    sites = [site for site in adapter.sites() if ".rot_" in site]
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask).logits
        got = {}
        handles = [adapter.listen(s, lambda x, s=s: got.__setitem__(s, x)) for s in sites]
        again = model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(plain, again)
    assert list(got) == sites
    if how == "noted":
        for layer, (query, key, _) in enumerate(SEEN[LAYERS:]):
            assert got[f"blocks.{layer}.attn.rot_q"].data_ptr() == query.data_ptr()
            assert torch.equal(got[f"blocks.{layer}.attn.rot_q"], query.transpose(1, 2))
            assert torch.equal(got[f"blocks.{layer}.attn.rot_k"], key.transpose(1, 2))
    assert not any(module.config is model.config for module in modules)
    for handle in handles:
        handle.remove()
        handle.remove()  # as torch's handles, twice is once
    assert all(module.config is model.config for module in modules)


def test_another_attention_may_be_chosen_while_somebody_listens():
    model = toy.build("llama", seed=5)
    adapter, (ids, mask) = adapt(model), a_batch()
    seen = []
    with adapter.listen("blocks.1.attn.rot_k", lambda key: seen.append(key.clone())):
        assert model.model.layers[1].self_attn.config.rms_norm_eps == model.config.rms_norm_eps
        model.set_attn_implementation("eager")
        weights = model(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    assert weights[1].shape == (3, HEADS, 21, 21)
    assert len(seen) == 1


def test_the_config_comes_back_after_a_forward_that_was_cut_short_or_failed():
    model = toy.build("llama")
    adapter, (ids, mask) = adapt(model), a_batch()
    module = model.model.layers[0].self_attn
    adapter.capture(ids, mask, ["blocks.0.attn.rot_q"])
    assert module.config is model.config

    def explode(_):
        raise RuntimeError("a listener")

    calls = []
    with adapter.listen("blocks.0.attn.rot_q", explode) as one:
        with pytest.raises(RuntimeError, match="a listener"):
            model(input_ids=ids, attention_mask=mask)
        with adapter.listen("blocks.0.attn.rot_k", lambda _: calls.append(1)):
            one.remove()
            adapter.capture(ids, mask, ["blocks.0.attn.q"])  # ends before the seam
            model(input_ids=ids, attention_mask=mask)
    assert calls == [1]
    assert module.config is model.config


def test_a_copy_of_a_model_that_is_listened_to_computes_the_same():
    model, (ids, mask) = toy.build("llama", seed=5), a_batch()
    with adapt(model).listen("blocks.0.attn.rot_q", torch.zeros_like), torch.no_grad():
        twin = copy.deepcopy(model)
        edited = model(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(twin(input_ids=ids, attention_mask=mask).logits, edited)


@pytest.mark.parametrize("how", ["sdpa", "eager"])
def test_what_replaces_a_rotated_key_is_what_attention_goes_on_with(how):
    model = toy.build("llama", seed=5, layers=LAYERS)
    model.set_attn_implementation(how)
    adapter, (ids, mask) = adapt(model), a_batch()
    q, k, v, z = attention_sites(adapter, 1)
    plain = adapter.capture(ids, mask, [q, k, v, z])
    new = torch.randn(plain[k].shape, generator=torch.Generator().manual_seed(2))
    with adapter.listen(k, lambda _: new), adapter.listen(q, lambda x: -x):
        edited = adapter.capture(ids, mask, [q, k, v, z])
    assert torch.equal(edited[k], new)
    assert torch.equal(edited[q], -plain[q])
    expected, _ = attend(-plain[q], new, plain[v], adapter.attention(1))
    torch.testing.assert_close(edited[z], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_attention_recomputed_from_what_it_saw_is_z(dtype, bound, batch):
    ids, mask = batch
    adapter = adapt(toy.build("llama", seed=5, layers=LAYERS).to(dtype))
    places = torch.arange(ids.shape[1]).expand_as(ids)
    for layer in range(LAYERS):
        spec = adapter.attention(layer)
        names = [*attention_sites(adapter, layer), *(f"blocks.{layer}.attn.{p}" for p in "qk")]
        rot_q, rot_k, v, z, q, k = adapter.capture(ids, mask, names).values()
        again, lse = attend(rot_q, rot_k, v, spec, mask, block=8)
        assert torch.isfinite(lse).all()
        assert (again - z.float()).norm() <= bound * z.float().norm()
        turned = [rotate(x, places, spec.rotary) for x in (q, k)]
        for mine, theirs in zip(turned, (rot_q, rot_k), strict=True):
            assert (mine - theirs.float()).norm() <= bound * mine.norm()
        again, _ = attend(*turned, v.float(), spec, mask, block=8)
        assert (again - z.float()).norm() <= 2 * bound * z.float().norm()


SCALINGS = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    },
    "yarn": {
        "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}  # fmt: skip


@pytest.mark.parametrize("rope", SCALINGS.values(), ids=list(SCALINGS))
def test_every_scaling_of_the_frequencies_is_declared_as_the_model_computes_it(rope):
    plain = adapt(toy.build("llama")).attention(0).rotary
    model = modelled(rope_parameters=rope)
    adapter, (ids, mask) = adapt(model), a_batch()
    spec = adapter.attention(1)
    assert spec.rotary != plain
    names = ["blocks.1.attn.q", "blocks.1.attn.rot_q"]
    q, rot_q = adapter.capture(ids, mask, names).values()
    places = torch.arange(ids.shape[1]).expand_as(ids)
    torch.testing.assert_close(rotate(q, places, spec.rotary), rot_q, atol=2e-5, rtol=2e-5)


def modelled(**changes):
    from transformers import LlamaForCausalLM

    config = toy.build("llama").config
    changed = type(config).from_dict({**config.to_dict(), **changes})
    model = LlamaForCausalLM._from_config(changed)
    toy._fill(model, 3)
    return model.eval()


# -- what is declared and what is refused ------------------------------------------------------------------


def test_what_the_family_declares():
    adapter = adapt(toy.build("llama", layers=LAYERS))
    assert (adapter.family, adapter.causal, adapter.layers) == ("llama", True, LAYERS)
    assert (adapter.width, adapter.max_positions) == (WIDTH, 64)
    sites = adapter.sites()
    assert sites["blocks.1.attn.rot_q"].shape == sites["blocks.1.attn.z"].shape == (HEADS, HEAD)
    assert sites["blocks.1.attn.rot_k"].shape == sites["blocks.1.attn.v"].shape == (KEYS, HEAD)
    assert sites["blocks.1.mlp.post"].shape == (INNER,)
    assert "rotary" in sites["blocks.1.attn.rot_q"].note
    spec = adapter.attention(1)
    assert (spec.heads, spec.kv_heads, spec.head_width) == (HEADS, KEYS, HEAD)
    assert (spec.scale, spec.causal, spec.window) == (HEAD**-0.5, True, None)
    assert len(spec.rotary.inverse_frequencies) == HEAD // 2


def test_a_head_width_of_its_own_is_taken():
    adapter = adapt(modelled(head_dim=16))
    assert adapter.sites()["blocks.0.attn.rot_k"].shape == (KEYS, 16)
    assert adapter.attention(0).scale == 0.25
    got = adapter.capture(*a_batch(), list(adapter.sites()))
    assert got["blocks.1.attn.z"].shape == (3, 21, HEADS, 16)


@pytest.mark.parametrize(
    ("family", "names"), [("llama", ("rot_q", "rot_k")), ("gpt2", ("q", "k")), ("bert", ("q", "k"))]
)
def test_the_sites_attention_sees(family, names):
    adapter = adapt(toy.build(family))
    expected = tuple(f"blocks.1.attn.{name}" for name in (*names, "v", "z"))
    assert attention_sites(adapter, 1) == expected
    assert attention_sites(ModelFacts.of(adapter), 1) == expected
    assert set(expected) <= set(adapter.sites())
    with pytest.raises(SiteError, match="no block 2"):
        attention_sites(adapter, 2)


def test_facts_with_frequencies_survive_json():
    facts = ModelFacts.of(adapt(modelled(rope_parameters=SCALINGS["llama3"])))
    assert ModelFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"num_key_value_heads": 3}, "model-broken", "4 query heads for 3 key heads"),
        ({"num_key_value_heads": 0}, "model-broken", "4 query heads for 0"),
        ({"num_attention_heads": 5}, "model-broken", "multiple"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
         "unsupported-family", "rope_type='dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0, "rope_theta": 1e4,
                              "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
                              "original_max_position_embeddings": 32}},
         "unsupported-family", "rope_type='longrope'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4,
                              "partial_rotary_factor": 0.5}},
         "unsupported-family", "partial_rotary_factor=0.5"),
    ],
    ids=["3 of 4", "none", "width", "dynamic", "longrope", "partial"],
)  # fmt: skip
def test_a_model_that_cannot_be_described_is_refused(tmp_path, changes, kind, says):
    folder = toy.save("llama", tmp_path / "llama")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ModelError) as caught:
        load(folder, dtype="float32")
    assert caught.value.kind == kind, str(caught.value)
    assert says in str(caught.value)
    assert "Nothing was" in str(caught.value)
