"""GPT-NeoX: fused heads, rotation of their leading features, and both halves of a block on one stream."""

from __future__ import annotations

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from ingest.errors import ModelError
from ingest.models import adapt, rotate, toy

LAYERS, HEADS, HEAD = 3, 4, 8


@pytest.fixture(params=["sdpa", "eager"])
def model(request):
    built = toy.build("gpt_neox", seed=5, layers=LAYERS)
    built.set_attn_implementation(request.param)
    return built


def batch():
    ids = torch.randint(1, 320, (2, 45), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    return ids, mask


def captured(model, *names):
    sites = [f"blocks.1.{name}" for name in names]
    return adapt(model).capture(*batch(), sites).values()


def test_q_k_and_v_are_thirds_of_every_head(model):
    q, k, v, resid = captured(model, "attn.q", "attn.k", "attn.v", "resid_pre")
    block = model.gpt_neox.layers[1]
    with torch.no_grad():
        fused = block.attention.query_key_value(block.input_layernorm(resid))
    for head in range(HEADS):
        mine = fused[..., head * 3 * HEAD : (head + 1) * 3 * HEAD].split(HEAD, -1)
        for value, third in zip((q, k, v), mine, strict=True):
            assert torch.equal(value[:, :, head], third)


def test_half_of_each_head_is_turned(model):
    q, rot_q, k, rot_k = captured(model, "attn.q", "attn.rot_q", "attn.k", "attn.rot_k")
    rotary = adapt(model).attention(1).rotary
    assert len(rotary.inverse_frequencies) == HEAD // 4
    places = torch.arange(45).expand(2, 45)
    for plain, turned in ((q, rot_q), (k, rot_k)):
        assert torch.equal(plain[..., HEAD // 2 :], turned[..., HEAD // 2 :])
        assert not torch.equal(plain[:, 1:, :, : HEAD // 2], turned[:, 1:, :, : HEAD // 2])
        torch.testing.assert_close(rotate(plain, places, rotary), turned, atol=2e-5, rtol=2e-5)


def test_both_halves_read_the_stream_as_it_enters(model):
    names = ("resid_pre", "attn.out", "mlp.in", "mlp.pre", "mlp.post", "mlp.out", "resid_post")
    resid, attn, entering, pre, post, mlp, left = captured(model, *names)
    block = model.gpt_neox.layers[1]
    with torch.no_grad():
        assert torch.equal(block.post_attention_layernorm(resid), entering)
        assert torch.equal(block.mlp.dense_h_to_4h(entering), pre)
        assert torch.equal(block.mlp.act(pre), post)
        assert torch.equal(block.mlp.dense_4h_to_h(post), mlp)
    assert torch.equal(mlp + attn + resid, left)
    assert "blocks.1.resid_mid" not in adapt(model).sites()


def test_one_half_behind_the_other_has_a_stream_between_them():
    config = GPTNeoXConfig(
        vocab_size=320,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=64,
        max_position_embeddings=64,
        use_parallel_residual=False,
    )
    model = GPTNeoXForCausalLM(config).eval()
    resid, attn, middle, mlp, left = captured(
        model, "resid_pre", "attn.out", "resid_mid", "mlp.out", "resid_post"
    )
    assert torch.equal(attn + resid, middle)
    assert torch.equal(mlp + middle, left)


def test_frequencies_that_depend_on_the_length_are_refused():
    built = toy.build("gpt_neox", layers=1)
    built.config.rope_parameters = {**built.config.rope_parameters, "rope_type": "dynamic"}
    with pytest.raises(ModelError, match="unsupported-family"):
        adapt(built)
