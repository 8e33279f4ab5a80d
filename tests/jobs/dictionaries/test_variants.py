"""Laws over every registered variant: nothing to edit here for a newcomer."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from jobs.codebook import Codebook
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.contract import VARIANTS
from jobs.dictionaries.evaluate import evaluate
from jobs.dictionaries.learner import Learner
from jobs.dictionaries.sparsifiers.gate import Gate
from jobs.dictionaries.sparsifiers.jump import Jump
from jobs.dictionaries.train import train
from jobs.dictionaries.training_mode import TrainingMode
from store.errors import InvalidInputError
from store.registry import to_json

each_variant = pytest.mark.parametrize("name", VARIANTS.names())


def exact(name):
    """Whether a variant keeps k by itself, with no penalty steered towards it."""
    return built(name).penalty is None


def built(name):
    return VARIANTS.get(name)(latents=8, k=2).build(4, seed=0)


@pytest.fixture(scope="module")
def trained():
    """One finished run of each variant, shared by the tests that only look at it."""
    return {}


@pytest.fixture
def run_of(trained, small_run):
    def give(name):
        if name not in trained:
            feed, cfg = small_run(name, steps=400, rows=4000, batch_rows=256, latents=64, k=3)
            trained[name] = feed, train(feed, cfg, log_every=20)
        return trained[name]

    return give


@each_variant
def test_config_round_trips_through_json(name):
    config = VARIANTS.get(name)(latents=32, k=4)
    assert VARIANTS.parse(json.loads(json.dumps(to_json(config)))) == config
    cfg = TrainConfig(variant=to_json(config), steps=5, lr=0.1, warmup_steps=0)
    assert TrainConfig.from_json(json.loads(json.dumps(cfg.to_json()))) == cfg


@each_variant
def test_more_active_latents_than_latents_are_refused(name):
    with pytest.raises(InvalidInputError) as caught:
        VARIANTS.get(name)(latents=8, k=9)
    assert caught.value.kind == "k-too-large"
    for word in ("k = 9", "8 latents", "Nothing was started", "Lower k"):
        assert word in str(caught.value)


@each_variant
@pytest.mark.parametrize("fields", [{"latents": 0, "k": 0}, {"latents": 8, "k": 0}])
def test_sizes_below_one_are_refused(name, fields):
    with pytest.raises(InvalidInputError, match="invalid-config"):
        VARIANTS.get(name)(**fields)


@each_variant
def test_the_same_seed_builds_the_same_bits_and_another_does_not(name):
    config = VARIANTS.get(name)(latents=16, k=4)
    one, same, other = (config.build(8, seed=seed) for seed in (1, 1, 2))
    torch.rand(3)  # the global generator plays no part
    assert torch.equal(one.w_enc_LD, same.w_enc_LD)
    assert not torch.equal(one.w_enc_LD, other.w_enc_LD)
    tied, empty = torch.equal(one.w_enc_LD, one.w_dec_LD), not bool(one.w_dec_LD.any())
    assert empty if "target" in config.needs else tied


@each_variant
def test_shapes_of_a_forward(name):
    dictionary = VARIANTS.get(name)(latents=16, k=4).build(8, seed=0)
    x, g = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    forward = dictionary(x, g_RD=g)
    assert forward.x_hat.shape == (5, 8)
    assert forward.pre.shape == forward.value.shape
    assert forward.pattern.row.shape == forward.pattern.latent.shape == forward.value.shape
    assert int(forward.pattern.row.max()) < 5
    assert int(forward.pattern.latent.max()) < 16
    pairs = forward.pattern.row * 16 + forward.pattern.latent
    assert bool((pairs.diff() > 0).all())


@each_variant
def test_the_loss_falls_and_the_history_tells_so(name, run_of):
    _, run = run_of(name)
    first, last = run.history[0], run.history[-1]
    share = (
        0.5 if exact(name) else 1.0
    )  # a penalty that grows meanwhile costs some of what is learned
    assert last["fvu"] < share * first["fvu"]
    assert last["step"] == 400
    assert last["rows"] == 400 * 256
    assert last["l0"] == pytest.approx(3, rel=0.02 if exact(name) else 0.25)
    assert last["seconds_left"] == 0
    assert set(first) == {
        *("step", "rows", "loss", "fvu", "l0", "dead", "lr", "gradient_norm", "threshold"),
        *("seconds", "rows_per_second", "seconds_left"),
    }


@each_variant
def test_the_result_is_a_unit_norm_dictionary_with_its_making(name, run_of):
    feed, run = run_of(name)
    book = run.codebook
    assert (book.W_dec_LD.norm(dim=1) - 1).abs().max() < 1e-6
    assert book.meta["variant"] == name
    assert book.meta["k"] == 3
    assert book.meta["recipe"]["feed"] == feed.state()
    assert TrainConfig.from_json(book.meta["recipe"]["train"]) == run.learner.cfg


@each_variant
def test_the_result_survives_its_files(name, run_of, tmp_path):
    feed, run = run_of(name)
    run.codebook.save(tmp_path)
    found = Codebook.load(tmp_path)
    assert found.sha == run.codebook.sha
    assert torch.equal(found.reconstruct(feed.x[:50]), run.codebook.reconstruct(feed.x[:50]))


@each_variant
def test_folding_the_input_scale_keeps_reconstruction_and_active_set(name, run_of):
    """E5: the live form on scaled rows and the frozen form on raw rows agree."""
    feed, run = run_of(name)
    learner, book, x = run.learner, run.codebook, feed.x[:300]
    scale_in, scale_out = learner.calibration.scale_in, learner.calibration.scale_out
    own, rows = learner.dictionary, learner.dictionary.w_dec_LD.detach().double()
    norm = (rows / scale_out).norm(dim=1)
    with torch.no_grad():
        scaled = x.double() * scale_in
        pre = own.read(scaled) @ own.w_enc_LD.double().t() + own.b_enc_L
        strength, theta = live(own.double(), pre, book.theta.double() / norm)
        own.float()
        code = strength * (strength > theta)
        skipped = 0 if own.w_skip_DE is None else scaled @ own.w_skip_DE.double()
        hat = (code @ rows + own.b_dec_D + skipped) / scale_out
    dense = book.encode_dense(x).double()
    near = (strength - theta).abs() * norm < 1e-4 * (book.theta.double() + dense.max())
    assert bool(((dense > 0) == (code > 0))[~near].all())
    assert torch.allclose(dense[~near], (code * norm)[~near], atol=1e-5 * float(dense.max()))
    whole = ~near.any(dim=1)
    error = (book.reconstruct(x).double() - hat)[whole].abs().max()
    assert error < 1e-5 * x.abs().max()


def live(own, pre, theta):
    """Return what a latent would be worth and what it must exceed, from a dictionary's own parameters."""
    if isinstance(own.sparsifier, Gate):
        gain = own.sparsifier.r_L.exp()
        strength = (pre - own.b_enc_L) * gain + own.sparsifier.b_mag_L
        closed = torch.full_like(strength, torch.inf)
        return torch.relu(strength), torch.where(pre > 0, 0.0, closed)
    if isinstance(own.sparsifier, Jump):
        return pre, own.sparsifier.log_theta_L.exp().expand_as(pre)
    return pre, theta.expand_as(pre)


@each_variant
def test_the_exported_threshold_gives_the_promised_l0(name, run_of):
    """E6, first half: mean L0 within 10 % of k on rows the threshold was not set on."""
    feed, run = run_of(name)
    x = feed.x[:2000] * 1.0
    found = evaluate(run.codebook, [(x, np.zeros(len(x), int))])
    promised = 3 if exact(name) else run.learner.dictionary.penalty.l0
    assert found.l0 == pytest.approx(promised, rel=0.1)


@each_variant
def test_training_mode_is_evaluated_like_the_frozen_form(name, run_of):
    feed, run = run_of(name)
    blocks = [(block, np.arange(len(block))) for block in feed.x[:1024].split(256)]
    live = evaluate(TrainingMode(run.learner), blocks)
    assert live.l0 == pytest.approx(run.history[-1]["l0"], rel=0.1)
    assert live.fvu == pytest.approx(run.history[-1]["fvu"], rel=0.25)


@pytest.mark.parametrize("name", [name for name in VARIANTS.names() if built(name).unit])
def test_rows_stay_on_the_sphere_and_the_projected_gradient_is_tangent(name, small_run):
    """E8, after every step."""
    feed, cfg = small_run(name)
    from jobs.dictionaries.calibration import calibrate

    learner = Learner(cfg, calibrate(feed, cfg), precision="float32")
    unit = learner.dictionary.w_dec_LD
    seen = []
    step = learner.optimizer._adam.step

    def spy():
        seen.append(float((unit.grad * unit).sum(dim=1).abs().max() / unit.grad.norm()))
        step()

    learner.optimizer._adam.step = spy
    for _, batch in zip(range(10), feed.batches(0), strict=False):
        learner.learn(batch)
        assert (unit.norm(dim=1) - 1).abs().max() < 1e-6
    assert len(seen) == 10
    assert max(seen) < 1e-6


def test_one_row_batches_make_batch_topk_the_same_as_topk():
    """E1: the same weights, the same codes, the same gradients."""
    row = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    results = []
    for name in ("batch_topk", "topk"):
        dictionary = VARIANTS.get(name)(latents=32, k=3).build(8, seed=0)
        forward = dictionary(row, dead=torch.tensor([1, 5]))
        dictionary.loss(forward).backward()
        grads = [parameter.grad for parameter in dictionary.parameters()]
        results.append([forward.pattern.latent, forward.value.detach(), *grads])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@each_variant
def test_a_budget_of_all_latents_is_relu(name):
    """E2."""
    dictionary = VARIANTS.get(name)(latents=12, k=12).build(8, seed=0)
    x, g = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        dictionary.w_dec_LD.copy_(dictionary.w_enc_LD)
        if isinstance(dictionary.sparsifier, Jump):
            dictionary.sparsifier.log_theta_L.fill_(-torch.inf)
        pre = dictionary.read(x) @ dictionary.w_enc_LD.t() + dictionary.b_enc_L
        hat = torch.relu(pre) @ dictionary.w_dec_LD + dictionary.b_dec_D
        assert torch.allclose(dictionary(x, g_RD=g).x_hat, hat, atol=1e-6)
