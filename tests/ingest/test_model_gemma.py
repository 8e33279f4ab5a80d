"""Gemma 2 and 3: norms behind each half, capped scores, windows and frequencies by block."""

from __future__ import annotations

import pytest
import torch

from ingest.errors import ModelError
from ingest.models import adapt, attend, attention_sites, load, rotate, toy


def batch():
    ids = torch.randint(1, 320, (2, 45), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    return ids, mask


@pytest.fixture(params=["gemma2", "gemma3_text"])
def model(request):
    return toy.build(request.param, seed=5, layers=2)


def test_every_site_is_its_modules_own(model):
    names = ("resid_pre", "attn.v", "attn.out", "attn.post_norm", "resid_mid")
    names += ("mlp.in", "mlp.pre", "mlp.pre_linear", "mlp.post", "mlp.out", "mlp.post_norm")
    sites = [f"blocks.1.{name}" for name in names]
    got = dict(zip(names, adapt(model).capture(*batch(), sites).values(), strict=True))
    block = model.model.layers[1]
    with torch.inference_mode():
        normal = block.input_layernorm(got["resid_pre"])
        assert torch.equal(block.self_attn.v_proj(normal), got["attn.v"].flatten(2))
        assert torch.equal(block.post_attention_layernorm(got["attn.out"]), got["attn.post_norm"])
        assert torch.equal(block.pre_feedforward_layernorm(got["resid_mid"]), got["mlp.in"])
        assert torch.equal(block.mlp.gate_proj(got["mlp.in"]), got["mlp.pre"])
        assert torch.equal(block.mlp.up_proj(got["mlp.in"]), got["mlp.pre_linear"])
        gated = block.mlp.act_fn(got["mlp.pre"]) * got["mlp.pre_linear"]
        assert torch.equal(gated, got["mlp.post"])
        assert torch.equal(block.post_feedforward_layernorm(got["mlp.out"]), got["mlp.post_norm"])


def test_the_embedding_is_scaled(model):
    ids, mask = batch()
    embed = adapt(model).capture(ids, mask, ["embed"])["embed"]
    plain = torch.nn.functional.embedding(ids, model.model.embed_tokens.weight)
    assert torch.equal(embed, plain * torch.tensor(32**0.5))


@pytest.mark.parametrize("how", ["sdpa", "eager"])
def test_gemma3_turns_each_block_by_its_own_frequencies(how):
    model = toy.build("gemma3_text", seed=5, layers=2)
    model.set_attn_implementation(how)
    adapter = adapt(model)
    near, far = (adapter.attention(layer) for layer in range(2))
    assert (near.window, far.window) == (16, None)
    assert near.rotary.inverse_frequencies != far.rotary.inverse_frequencies
    places = torch.arange(45).expand(2, 45)
    for layer, spec in enumerate((near, far)):
        sites = [f"blocks.{layer}.attn.{name}" for name in ("q", "rot_q", "k", "rot_k")]
        q, rot_q, k, rot_k = adapter.capture(*batch(), sites).values()
        for plain, turned in ((q, rot_q), (k, rot_k)):
            again = rotate(plain, places, spec.rotary)
            torch.testing.assert_close(again, turned, atol=2e-5, rtol=2e-5)


def test_q_and_k_of_gemma3_are_behind_their_norms():
    model = toy.build("gemma3_text", seed=5, layers=2)
    sites = [f"blocks.1.{name}" for name in ("resid_pre", "attn.q", "attn.k")]
    resid, q, k = adapt(model).capture(*batch(), sites).values()
    attn = model.model.layers[1].self_attn
    with torch.inference_mode():
        normal = model.model.layers[1].input_layernorm(resid)
        for value, project, norm in ((q, attn.q_proj, attn.q_norm), (k, attn.k_proj, attn.k_norm)):
            assert torch.equal(value, norm(project(normal).view(value.shape)))


def test_gemma2_caps_its_scores_and_the_cap_matters():
    model = toy.build("gemma2", seed=5, layers=2)
    adapter, (ids, mask) = adapt(model), batch()
    spec = adapter.attention(0)
    assert (spec.softcap, spec.window, spec.scale) == (2.0, 16, 32**-0.5)
    q, k, v, z = adapter.capture(ids, mask, attention_sites(adapter, 0)).values()
    seen = mask.bool()
    capped, _ = attend(q, k, v, spec, mask)
    assert (capped - z)[seen].norm() <= 1e-5 * z[seen].norm()
    from dataclasses import replace

    for other in (replace(spec, softcap=None), replace(spec, window=None)):
        wrong, _ = attend(q, k, v, other, mask)
        assert (wrong - z)[seen].norm() > 1e-2 * z[seen].norm()


def test_what_has_no_fused_kernel_loads_as_it_can_and_says_so(tmp_path):
    folder = toy.save("gemma2", tmp_path / "gemma2")
    assert load(folder).attn_implementation == "eager"
    with pytest.raises(ModelError, match=r"no-kernel.*Use --attn-implementation auto"):
        load(folder, attn_implementation="sdpa")
    assert load(toy.save("gemma3_text", tmp_path / "gemma3")).attn_implementation == "sdpa"


def test_what_the_sites_cannot_describe_is_refused(model):
    model.config.use_bidirectional_attention = True
    with pytest.raises(ModelError, match=r"unsupported-family.*both ways"):
        adapt(model)


def test_frequencies_that_depend_on_the_length_are_refused():
    model = toy.build("gemma3_text", layers=2)
    model.config.rope_parameters["full_attention"]["rope_type"] = "dynamic"
    with pytest.raises(ModelError, match=r"unsupported-family.*full_attention"):
        adapt(model)
