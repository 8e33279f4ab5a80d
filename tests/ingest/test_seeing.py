"""Models that see: laws of their sites, images through a store, and what does not go together refused."""

from __future__ import annotations

import pytest
import torch

from ingest.attended import check_attention
from ingest.errors import ModelError
from ingest.models import ADAPTERS, adapt, toy
from ingest.models.contract import Given

LAYERS = 3
TOWERS = ("vit", "dinov2", "clip_vision_model")
ROWS = 17  # a class token and 4 x 4 patches


def test_every_family_that_sees_is_tried_here():
    assert set(ADAPTERS.names()) - set(toy.reading()) == {*TOWERS, "clip"}


def images(count=2, seed=0):
    values = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return Given(pixels=values)


def batch(count=2, rows=ROWS):
    ids = torch.zeros(count, rows, dtype=torch.long)
    return ids, torch.ones_like(ids)


@pytest.fixture(params=TOWERS, scope="module")
def tower(request):
    """Return (name, model, adapter, all sites of one batch)."""
    model = toy.build(request.param, seed=5, layers=LAYERS)
    adapter = adapt(model)
    got = adapter.capture(*batch(), list(adapter.sites()), given=images())
    return request.param, model, adapter, got


def test_the_stream_is_what_transformers_calls_hidden_states(tower):
    name, model, _, got = tower
    with torch.inference_mode():
        out = model(pixel_values=images().pixels, output_hidden_states=True)
    for layer in range(LAYERS):
        assert torch.equal(got[f"blocks.{layer}.resid_pre"], out.hidden_states[layer])
    assert torch.equal(got[f"blocks.{LAYERS - 1}.resid_post"], out.hidden_states[LAYERS])
    last = got.get("final.normalized", got[f"blocks.{LAYERS - 1}.resid_post"])
    assert torch.equal(last, out.last_hidden_state)
    if name != "clip_vision_model":
        assert torch.equal(got["embed"], out.hidden_states[0])


def test_the_stream_is_the_sum_of_what_its_halves_add(tower):
    *_, got = tower
    for layer in range(LAYERS):
        at = {site.split(".", 2)[2]: value for site, value in got.items() if f"s.{layer}." in site}
        attn, mlp = (at.get(f"{half}.scaled", at[f"{half}.out"]) for half in ("attn", "mlp"))
        assert torch.equal(at["resid_pre"] + attn, at["resid_mid"])
        assert torch.equal(at["resid_mid"] + mlp, at["resid_post"])


def test_what_is_between_is_what_the_modules_make_of_it(tower):
    _, _, adapter, got = tower
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        tap = adapter._taps
        with torch.inference_mode():
            for before, after in (("attn.z", "attn.out"), ("mlp.post", "mlp.out")):
                module = adapter.base.get_submodule(tap[f"{block}.{after}"].module)
                given = got[f"{block}.{before}"].flatten(2)
                assert torch.equal(module(given), got[f"{block}.{after}"])
            first = adapter.base.get_submodule(tap[f"{block}.mlp.pre"].module)
            assert torch.equal(first(got[f"{block}.mlp.in"]), got[f"{block}.mlp.pre"])
            if f"{block}.mlp.pre_linear" not in got:
                act = adapter.base.get_submodule(adapter.bends.activations[0].format(l=layer))
                assert torch.equal(act(got[f"{block}.mlp.pre"]), got[f"{block}.mlp.post"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", TOWERS)
def test_every_tower_attends_as_it_says(family, dtype):
    adapter = adapt(toy.build(family, layers=2).to(dtype))
    error = check_attention(adapter, *batch(), list(adapter.sites()), images())
    assert 0 < error < (1e-5 if dtype == torch.float32 else 1e-2)


def test_the_forward_stops_at_the_deepest_site(tower):
    name, model, adapter, _ = tower
    ran = []
    handles = [
        module.register_forward_hook(lambda *_, path=path: ran.append(path))
        for path, module in model.base_model.named_modules()
    ]
    adapter.capture(*batch(), ["blocks.0.resid_post"], given=images())
    for handle in handles:
        handle.remove()
    assert any("0" in path.split(".") for path in ran)
    assert not any("1" in path.split(".") and "layer" in path for path in ran), name


def test_a_gated_dinov2_has_both_branches():
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    config.use_swiglu_ffn = True
    adapter = adapt(Dinov2Model(config).eval())
    sites = [f"blocks.1.mlp.{name}" for name in ("pre", "pre_linear", "post")]
    got = adapter.capture(*batch(), sites, given=images())
    gate, linear, post = got.values()
    torch.testing.assert_close(torch.nn.functional.silu(gate) * linear, post)


def test_dinov2_takes_other_sizes_in_whole_patches_and_vit_does_not():
    wide = Given(pixels=torch.randn(2, 3, 24, 40))
    got = adapt(toy.build("dinov2")).capture(*batch(2, 16), ["embed"], given=wide)
    assert got["embed"].shape == (2, 16, 32)
    with pytest.raises(ModelError, match=r"image-size.*24 x 40.*takes 32 x 32"):
        adapt(toy.build("vit")).capture(*batch(2, 16), ["embed"], given=wide)
    uneven, dinov2 = Given(pixels=torch.randn(2, 3, 24, 41)), adapt(toy.build("dinov2"))
    with pytest.raises(ModelError, match=r"image-size.*multiples of 8"):
        dinov2.capture(*batch(2, 16), ["embed"], given=uneven)


@pytest.mark.parametrize("family", [*TOWERS, "clip"])
def test_a_model_that_sees_is_not_run_blind(family):
    adapter = adapt(toy.build(family))
    with pytest.raises(ModelError, match=r"no-images.*--source images"):
        adapter.capture(*batch(), list(adapter.sites())[:1])


def test_both_halves_of_a_pair_are_what_clip_makes_of_them():
    model = toy.build("clip", seed=3)
    text = torch.tensor([[1, 30, 40, 0, 0], [1, 50, 60, 70, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    given = Given(pixels=images().pixels, text=text, text_mask=mask)
    adapter = adapt(model)
    got = adapter.capture(*batch(2, 1), list(adapter.sites()), given=given)
    with torch.inference_mode():
        out = model(pixel_values=given.pixels, input_ids=text, attention_mask=mask)
    for half, embeds in (("image", out.image_embeds), ("text", out.text_embeds)):
        mine = got[f"{half}.embed"][:, 0]
        torch.testing.assert_close(mine / mine.norm(dim=-1, keepdim=True), embeds)
    with torch.inference_mode():
        for half, project in (
            ("image", model.visual_projection),
            ("text", model.text_projection),
        ):
            assert torch.equal(project(got[f"{half}.pooled"]), got[f"{half}.embed"])
