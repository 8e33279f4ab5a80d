"""OPT: queries scaled before attention, an MLP over a flat batch, and the size whose norms come last."""

from __future__ import annotations

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from ingest.models import adapt, attend, attention_sites, toy
from ingest.models.rules import RULES


@pytest.fixture(params=["sdpa", "eager"])
def model(request):
    built = toy.build("opt", seed=5, layers=2)
    built.set_attn_implementation(request.param)
    return built


def batch():
    ids = torch.randint(1, 320, (2, 21), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    return ids, mask


def captured(model, *names):
    return adapt(model).capture(*batch(), [f"blocks.1.{name}" for name in names]).values()


def test_every_site_is_its_modules_own(model):
    names = (
        "resid_pre",
        "attn.q",
        "attn.k",
        "attn.v",
        "resid_mid",
        "mlp.in",
        "mlp.pre",
        "mlp.post",
    )
    resid, q, k, v, middle, entering, pre, post = captured(model, *names)
    block = model.model.decoder.layers[1]
    with torch.inference_mode():
        normal = block.self_attn_layer_norm(resid)
        for value, project in ((q, "q_proj"), (k, "k_proj"), (v, "v_proj")):
            assert torch.equal(value.flatten(2), getattr(block.self_attn, project)(normal))
        flat = block.final_layer_norm(middle.flatten(0, 1))
        assert torch.equal(flat, entering.flatten(0, 1))
        assert torch.equal(block.fc1(flat), pre.flatten(0, 1))
        assert torch.equal(torch.relu(pre), post)


def test_queries_are_stored_before_they_are_scaled(model):
    adapter, (ids, mask) = adapt(model), batch()
    spec = adapter.attention(1)
    assert spec.scale == 8**-0.5
    seen = []
    own = type(model.model.decoder.layers[1].self_attn)
    with adapter.listen("blocks.1.attn.q", seen.append):
        q, k, v, z = adapter.capture(ids, mask, attention_sites(adapter, 1)).values()
    again, _ = attend(q, k, v, spec, mask, block=8)
    assert (again - z)[mask.bool()].norm() <= 1e-5 * z[mask.bool()].norm()
    assert own.__name__ == "OPTAttention"
    assert torch.equal(seen[0], q)


def test_an_edit_inside_the_flat_mlp_lands_where_it_was_meant(model):
    adapter = adapt(model)
    ids, mask = batch()

    def edit(value):
        assert value.shape == (2, 21, 128)
        value = value.clone()
        value[0, 3] += 5.0
        return value

    plain = adapter.capture(ids, mask, ["blocks.1.mlp.out"])["blocks.1.mlp.out"]
    with adapter.listen("blocks.1.mlp.post", edit):
        edited = adapter.capture(ids, mask, ["blocks.1.mlp.out"])["blocks.1.mlp.out"]
    changed = (plain != edited).any(-1)
    assert changed.nonzero().tolist() == [[0, 3]]


def test_the_size_whose_norms_come_last_and_whose_embedding_is_narrow():
    config = OPTConfig(
        vocab_size=320,
        hidden_size=32,
        word_embed_proj_dim=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=64,
        max_position_embeddings=64,
        do_layer_norm_before=False,
    )
    model = OPTForCausalLM(config).eval()
    adapter = adapt(model)
    assert "final.normalized" not in adapter.sites()
    names = ("resid_pre", "attn.out", "resid_mid", "mlp.in", "mlp.out", "resid_post")
    resid, attn, middle, entering, mlp, left = captured(model, *names)
    block = model.model.decoder.layers[1]
    with torch.inference_mode():
        assert torch.equal(block.self_attn_layer_norm(resid + attn), middle)
        assert torch.equal(entering, middle)
        assert torch.equal(block.final_layer_norm(middle + mlp), left)
    embed = adapter.capture(*batch(), ["embed"])["embed"]
    with torch.inference_mode():
        decoder = model.model.decoder
        assert torch.equal(decoder.project_in(decoder.embed_tokens(batch()[0])), embed)


def test_norms_without_weights_have_rules_too():
    config = OPTConfig(
        vocab_size=320,
        hidden_size=32,
        word_embed_proj_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=64,
        max_position_embeddings=64,
        layer_norm_elementwise_affine=False,
    )
    adapter = adapt(OPTForCausalLM(config).eval())
    found = {
        name: adapter.gradients(*batch(), ["embed"], lambda x: x[:, 3, 5], RULES[name])[0]["embed"]
        for name in ("exact", "relp")
    }
    assert found["relp"].any()
    assert not torch.allclose(found["relp"], found["exact"])
