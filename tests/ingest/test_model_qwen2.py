"""Qwen2: biases on q, k, v, and a window on the blocks that have one."""

from __future__ import annotations

import pytest
import torch

from ingest.models import adapt, attend, attention_sites, rotate, toy

LAYERS, WINDOW = 3, 16


@pytest.fixture(params=["sdpa", "eager"])
def model(request):
    built = toy.build("qwen2", seed=5, layers=LAYERS)
    built.set_attn_implementation(request.param)
    return built


def batch():
    ids = torch.randint(1, 320, (2, 45), generator=torch.Generator().manual_seed(1))
    return ids, torch.ones_like(ids)


def test_attention_recomputed_is_z_with_a_window_in_the_last_block(model):
    adapter = adapt(model)
    specs = [adapter.attention(layer) for layer in range(LAYERS)]
    assert [spec.window for spec in specs] == [None, None, WINDOW]
    for layer, spec in enumerate(specs):
        q, k, v, z = adapter.capture(*batch(), attention_sites(adapter, layer)).values()
        again, _ = attend(q, k, v, spec, block=8)
        assert (again - z).norm() <= 1e-5 * z.norm()


def test_q_k_and_v_are_with_their_biases(model):
    adapter = adapt(model)
    names = ("attn.q", "attn.k", "attn.v", "attn.rot_k")
    q, k, v, rot_k = adapter.capture(*batch(), [f"blocks.1.{name}" for name in names]).values()
    block = model.model.layers[1]
    with torch.no_grad():
        normal = block.input_layernorm(
            adapter.capture(*batch(), ["blocks.1.resid_pre"])["blocks.1.resid_pre"]
        )
        for value, module in ((q, "q_proj"), (k, "k_proj"), (v, "v_proj")):
            own = getattr(block.self_attn, module)
            assert own.bias is not None
            assert torch.equal(value.flatten(2), own(normal))
    places = torch.arange(45).expand(2, 45)
    turned = rotate(k, places, adapter.attention(1).rotary)
    torch.testing.assert_close(turned, rot_k, atol=2e-5, rtol=2e-5)


def test_residuals_are_the_hidden_states_of_transformers(model):
    ids, mask = batch()
    states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    names = [f"blocks.{layer}.resid_pre" for layer in range(LAYERS)]
    got = adapt(model).capture(ids, mask, [*names, "final.normalized"])
    assert all(torch.equal(*pair) for pair in zip(got.values(), states, strict=True))
