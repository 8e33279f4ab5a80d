"""GPT-2: every site against the family's own modules, called one by one, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from ingest.models import adapt, attend, toy

LAYERS, WIDTH, HEADS, HEAD, INNER = 3, 32, 4, 8, 128


@pytest.fixture(params=["GPT2LMHeadModel", "GPT2Model"])
def bare_or_headed(request):
    return toy.build("gpt2", seed=5, layers=LAYERS, architecture=request.param)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request, bare_or_headed):
    return bare_or_headed.to(request.param)


@pytest.fixture(params=["full", "padded", "one"])
def batch(request):
    ids = torch.randint(1, 320, (3, 21), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if request.param == "padded":
        mask[0, 9:], mask[2, 17:] = 0, 0
        ids = ids * mask
    return (ids[:1], mask[:1]) if request.param == "one" else (ids, mask)


@torch.no_grad()
def by_hand(model, ids, mask):
    """Every site from the modules of `GPT2Model`, in the order its paper describes them."""
    base = model.base_model
    size, length = ids.shape
    sites = {"embed": base.wte(ids)}
    x = sites["embed"] + base.wpe(torch.arange(length)[None])
    seen = torch.ones(length, length, dtype=torch.bool).tril() & mask.bool()[:, None, None, :]
    how = {"is_causal": True} if mask.all() else {"attn_mask": seen}
    for number, layer in enumerate(base.h):
        at = f"blocks.{number}."
        qkv = layer.attn.c_attn(layer.ln_1(x)).view(size, length, 3, HEADS, HEAD)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        z = scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), **how)
        z = z.transpose(1, 2)
        attn = layer.attn.c_proj(z.reshape(size, length, WIDTH))
        middle = attn + x
        entering = layer.ln_2(middle)
        pre = layer.mlp.c_fc(entering)
        post = layer.mlp.act(pre)
        mlp = layer.mlp.c_proj(post)
        after = middle + mlp
        named = {"resid_pre": x, "attn.q": q, "attn.k": k, "attn.v": v, "attn.z": z}
        named |= {"attn.out": attn, "resid_mid": middle, "mlp.in": entering, "mlp.pre": pre}
        named |= {"mlp.post": post, "mlp.out": mlp, "resid_post": after}
        sites |= {at + name: value for name, value in named.items()}
        x = after
    return sites | {"final.normalized": base.ln_f(x)}


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


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("by_layer", [False, True], ids=["plain", "scaled by layer"])
def test_attention_recomputed_from_q_k_v_is_z(dtype, bound, by_layer, batch):
    ids, mask = batch
    model = toy.build("gpt2", seed=5, layers=LAYERS).to(dtype)
    if by_layer:
        model.config.scale_attn_by_inverse_layer_idx = True
        for number, layer in enumerate(model.transformer.h):
            layer.attn.scaling = HEAD**-0.5 / (number + 1)
    adapter = adapt(model)
    for layer in range(LAYERS):
        names = [f"blocks.{layer}.attn.{part}" for part in "qkvz"]
        q, k, v, z = adapter.capture(ids, mask, names).values()
        again, lse = attend(q, k, v, adapter.attention(layer), mask, block=8)
        assert torch.isfinite(lse).all()
        assert (again - z.float()).norm() <= bound * z.float().norm()


def test_the_head_of_a_causal_model_never_runs():
    model = toy.build("gpt2")
    ran = []
    model.lm_head.register_forward_hook(lambda *_: ran.append("lm_head"))
    ids = torch.ones(1, 4, dtype=torch.long)
    adapter = adapt(model)
    adapter.capture(ids, torch.ones_like(ids), list(adapter.sites()))
    assert ran == []


def test_what_the_family_declares():
    adapter = adapt(toy.build("gpt2", layers=LAYERS))
    assert (adapter.family, adapter.causal, adapter.layers) == ("gpt2", True, LAYERS)
    assert (adapter.width, adapter.max_positions) == (WIDTH, 64)
    sites = adapter.sites()
    assert sites["blocks.1.attn.q"].shape == (HEADS, HEAD)
    assert sites["blocks.1.mlp.post"].shape == (INNER,)
    spec = adapter.attention(1)
    assert (spec.heads, spec.kv_heads, spec.head_width) == (HEADS, HEADS, HEAD)
    assert (spec.scale, spec.causal) == (HEAD**-0.5, True)


def test_unscaled_scores_are_declared():
    model = toy.build("gpt2")
    model.config.scale_attn_weights = False
    assert adapt(model).attention(0).scale == 1.0
