"""Mamba: the mixer's halves, the state run by hand in float64, and questions about attention it has none of."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from ingest.errors import ModelError
from ingest.models import adapt, toy
from ingest.models.facts import ModelFacts
from ingest.models.rules import RULES


@pytest.fixture(scope="module")
def model():
    return toy.build("mamba", seed=5, layers=2)


def batch():
    ids = torch.randint(1, 320, (2, 21), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    return ids, mask


def captured(model):
    names = ("resid_pre", "in", "x", "gate", "conv", "dt", "b", "c", "post", "out", "resid_post")
    sites = [f"blocks.1.{n if 'resid' in n else f'mixer.{n}'}" for n in names]
    return dict(zip(names, adapt(model).capture(*batch(), sites).values(), strict=True))


def test_every_site_is_its_modules_own(model):
    got, block = captured(model), model.backbone.layers[1]
    mask = batch()[1][..., None]
    with torch.inference_mode():
        assert torch.equal(block.norm(got["resid_pre"]), got["in"])
        entering = block.mixer.in_proj(got["in"] * mask)
        assert torch.equal(entering, torch.cat([got["x"], got["gate"]], -1))
        spread = block.mixer.x_proj(got["conv"])
        assert torch.equal(spread, torch.cat([got["dt"], got["b"], got["c"]], -1))
        assert torch.equal(block.mixer.out_proj(got["post"]), got["out"])
        assert torch.equal(got["resid_pre"] + got["out"], got["resid_post"])


def test_the_convolution_and_the_state_run_by_hand(model):
    got, mixer = captured(model), model.backbone.layers[1].mixer
    mask = batch()[1][..., None].double()
    wide = {name: value.double() for name, value in got.items()}
    weight, bias = mixer.conv1d.weight.double(), mixer.conv1d.bias.double()
    kernel = weight.shape[-1]
    with torch.inference_mode():
        x_BCT = functional.pad(wide["x"].transpose(1, 2), (kernel - 1, 0))
        conv = (
            functional.silu(
                functional.conv1d(x_BCT, weight, bias, groups=weight.shape[0])
            ).transpose(1, 2)
            * mask
        )
        torch.testing.assert_close(conv, wide["conv"], rtol=1e-4, atol=1e-5)
        step = functional.softplus(
            wide["dt"] @ mixer.dt_proj.weight.double().T + mixer.dt_proj.bias.double()
        )
        decay = -torch.exp(mixer.A_log.double())
        state = torch.zeros(2, *decay.shape, dtype=torch.float64)
        read = []
        for at in range(21):
            kept = torch.exp(step[:, at, :, None] * decay) * state
            new = step[:, at, :, None] * wide["b"][:, at, None, :] * wide["conv"][:, at, :, None]
            state = kept + new
            read.append((state * wide["c"][:, at, None, :]).sum(-1))
        y = torch.stack(read, 1) + mixer.D.double() * wide["conv"]
        gated = y * functional.silu(wide["gate"])
        torch.testing.assert_close(gated, wide["post"], rtol=1e-3, atol=1e-4)


def test_what_is_not_there_is_said(model):
    adapter = adapt(model)
    assert not [site for site in adapter.sites() if ".attn." in site]
    with pytest.raises(ModelError, match="no-attention"):
        adapter.attention(0)
    facts = ModelFacts.of(adapter)
    assert facts.attentions == ()
    assert ModelFacts.from_files(facts.to_files()) == facts
    with pytest.raises(ModelError, match="no-attention"):
        facts.attention(0)
    with pytest.raises(ModelError, match="rule-unsupported"):
        adapter.gradients(*batch(), ["embed"], lambda logits: logits.sum((1, 2)), RULES["relp"])


def test_the_exact_gradient_is_the_derivative_of_the_forward(model):
    adapter = adapt(model)
    ids, mask = batch()

    def objective(logits_BTV):
        return torch.tanh(logits_BTV[:, :13, 5].double()).sum(1)

    def measured(site, delta):
        with adapter.listen(site, lambda value: value + delta), torch.inference_mode():
            return objective(model(input_ids=ids, attention_mask=mask, use_cache=False).logits)

    sites = [f"blocks.0.mixer.{name}" for name in ("x", "dt", "b", "c", "post")]
    found, _ = adapter.gradients(ids, mask, sites, objective)
    for site in sites:
        along = torch.randn(found[site].shape, generator=torch.Generator().manual_seed(2))
        along[1, 13:] = 0
        up, down = (measured(site, sign * 1e-2 * along) for sign in (1, -1))
        got = (found[site] * along).flatten(1).sum(1).double()
        assert torch.allclose(got, (up - down) / 2e-2, rtol=5e-2, atol=2e-2), site
