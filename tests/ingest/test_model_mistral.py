"""Mistral: the sites of Llama's layout, and attention that ends at the window."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ingest.models import adapt, attend, attention_sites, toy

LAYERS, WINDOW = 3, 16


@pytest.fixture(params=["sdpa", "eager"])
def model(request):
    built = toy.build("mistral", seed=5, layers=LAYERS)
    built.set_attn_implementation(request.param)
    return built


def batch():
    ids = torch.randint(1, 320, (2, 45), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    return ids, mask


def test_attention_recomputed_within_the_window_is_z(model):
    ids, mask = batch()
    adapter = adapt(model)
    for layer in range(LAYERS):
        spec = adapter.attention(layer)
        assert spec.window == WINDOW
        q, k, v, z = adapter.capture(ids, mask, attention_sites(adapter, layer)).values()
        again, _ = attend(q, k, v, spec, mask, block=8)
        seen = mask.bool()
        assert (again - z)[seen].norm() <= 1e-5 * z[seen].norm()
        wide, _ = attend(q, k, v, dataclasses.replace(spec, window=None), mask)
        assert (wide - z)[seen].norm() > 0.05 * z[seen].norm()


def test_sites_are_the_modules_own(model):
    ids, mask = batch()
    adapter = adapt(model)
    states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    names = [f"blocks.{layer}.resid_pre" for layer in range(LAYERS)]
    got = adapter.capture(ids, mask, [*names, "final.normalized"])
    assert all(torch.equal(*pair) for pair in zip(got.values(), states, strict=True))
    block = model.model.layers[1]
    inside = adapter.capture(
        ids, mask, [f"blocks.1.{n}" for n in ("attn.z", "attn.out", "mlp.in", "mlp.out")]
    )
    z, out, entering, mlp = inside.values()
    with torch.no_grad():
        assert torch.equal(block.self_attn.o_proj(z.flatten(2)), out)
        assert torch.equal(block.mlp(entering), mlp)


def test_without_a_window_a_block_sees_everything():
    built = toy.build("mistral")
    built.config.sliding_window = None
    assert adapt(built).attention(0).window is None
