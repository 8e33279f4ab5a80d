"""Qwen3: norms on every head's q and k, heads of their own width, windows by layer."""

from __future__ import annotations

import pytest
import torch

from ingest.models import adapt, rotate, toy

LAYERS = 3


@pytest.fixture(params=["sdpa", "eager"])
def model(request):
    built = toy.build("qwen3", seed=5, layers=LAYERS)
    built.set_attn_implementation(request.param)
    return built


def batch():
    ids = torch.randint(1, 320, (2, 45), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    return ids, mask


def test_q_and_k_are_behind_their_norms_and_before_rotation(model):
    adapter = adapt(model)
    names = ("attn.q", "attn.k", "attn.v", "attn.rot_q", "attn.rot_k")
    got = adapter.capture(*batch(), [f"blocks.1.{name}" for name in names])
    q, k, v, rot_q, rot_k = got.values()
    assert (q.shape[-1], k.shape[-2]) == (
        16,
        2,
    )  # wider than the stream's share; half as many heads
    attn, block = model.model.layers[1].self_attn, model.model.layers[1]
    resid = adapter.capture(*batch(), ["blocks.1.resid_pre"])["blocks.1.resid_pre"]
    with torch.no_grad():
        normal = block.input_layernorm(resid)
        for value, project, norm in ((q, attn.q_proj, attn.q_norm), (k, attn.k_proj, attn.k_norm)):
            assert torch.equal(value, norm(project(normal).view(value.shape)))
        assert torch.equal(v.flatten(2), attn.v_proj(normal))
    places = torch.arange(45).expand(2, 45)
    for plain, turned in ((q, rot_q), (k, rot_k)):
        again = rotate(plain, places, adapter.attention(1).rotary)
        torch.testing.assert_close(again, turned, atol=2e-5, rtol=2e-5)


def test_windows_are_those_of_each_layer():
    built = toy.build("qwen3", layers=2)
    built.config.layer_types = ["full_attention", "sliding_attention"]
    built.config.sliding_window = 7
    adapter = adapt(built)
    assert [adapter.attention(layer).window for layer in range(2)] == [None, 7]
