"""What flows between a family's modules: laws over the registry, bit for bit at equal batches."""

from __future__ import annotations

import pytest
import torch

from ingest.models import adapt, toy

LAYERS = 3
POST_NORM = ("bert",)  # whose norms come behind each sum
BARE = ("clip_text_model",)  # whose last hidden state is the stream before the last norm
AFTER = ("mamba",)  # whose hidden states are what each block puts out


@pytest.fixture(params=toy.reading(), scope="module")
def family(request):
    """Return (name, model, adapter, all sites of one batch with padding)."""
    model = toy.build(request.param, seed=5, layers=LAYERS)
    adapter = adapt(model)
    got = adapter.capture(*batch(), list(adapter.sites()))
    return request.param, model, adapter, got


def batch():
    ids = torch.randint(5, 200, (2, 45), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    return ids, mask


def test_the_stream_is_what_transformers_calls_hidden_states(family):
    name, model, _, got = family
    ids, mask = batch()
    end = "resid_post" if name in AFTER else "resid_pre"
    with torch.inference_mode():
        states = model(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
        ).hidden_states
    end_of_stream = got[f"blocks.{LAYERS - 1}.resid_post"]
    last = end_of_stream if name in BARE else got.get("final.normalized", end_of_stream)
    for layer in range(LAYERS):
        assert torch.equal(got[f"blocks.{layer}.{end}"], states[layer])
    assert torch.equal(last, states[LAYERS])


def test_a_block_begins_where_the_one_before_it_ended(family):
    *_, got = family
    for layer in range(1, LAYERS):
        assert torch.equal(got[f"blocks.{layer}.resid_pre"], got[f"blocks.{layer - 1}.resid_post"])


def test_the_stream_is_the_sum_of_what_its_halves_add(family):
    name, _, _, got = family
    for layer in range(LAYERS):
        at = {site.split(".", 2)[2]: value for site, value in got.items() if f"s.{layer}." in site}
        halves = [
            at.get(f"{half}.post_norm", at.get(f"{half}.out")) for half in ("attn", "mlp", "mixer")
        ]
        sums = [at["resid_pre"]]
        for half in [half for half in halves if half is not None]:
            sums.append(sums[-1] + half)
        if name in POST_NORM:
            assert not torch.equal(sums[-1], at["resid_post"])
        elif "resid_mid" in at:
            assert torch.equal(sums[1], at["resid_mid"])
            assert torch.equal(sums[2], at["resid_post"])
        else:  # both halves at once: their order of summation is the model's own
            torch.testing.assert_close(sums[-1], at["resid_post"], rtol=1e-5, atol=1e-5)


PROJECTIONS = {"attn.z": "attn.out", "mlp.post": "mlp.out", "mixer.post": "mixer.out"}


def test_the_last_projection_of_a_half_gives_what_it_adds(family):
    _, _, adapter, got = family
    halves = {a: b for a, b in PROJECTIONS.items() if f"blocks.1.{a}" in got}
    assert halves
    for before, after in halves.items():
        tap, out = (adapter._taps[f"blocks.1.{name}"] for name in (before, after))
        assert (tap.module, tap.end, out.end) == (out.module, "in", "out")
        given = got[f"blocks.1.{before}"].flatten(2)
        with torch.inference_mode():
            project = adapter.base.get_submodule(tap.module)
            found = project(given.flatten(0, 1) if tap.within else given)
        assert torch.equal(found.view(2, 45, -1), got[f"blocks.1.{after}"])
