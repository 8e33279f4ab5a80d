"""Dictionaries that must be each other where their difference is switched off: E1, E2, E3."""

from __future__ import annotations

import pytest
import torch

from jobs.batches import Widths
from jobs.dictionaries.array_feed import ArrayFeed
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.contract import VARIANTS, Moment
from jobs.dictionaries.ranks import WHOLE
from jobs.dictionaries.sparsifiers.minfire import MinFire
from jobs.dictionaries.train import train
from store.errors import InvalidInputError

SAME = {
    "one prefix is BatchTopK": ({"kind": "matryoshka", "shares": ()}, {"kind": "batch_topk"}),
    "no guarantees are BatchTopK": (
        {"kind": "minfire", "period": 0},
        {"kind": "batch_topk", "aux_weight": 0},
    ),
    "no weight of gradients is TopK": ({"kind": "g_sae", "weight": 0}, {"kind": "topk"}),
    "one source is BatchTopK": ({"kind": "crosscoder"}, {"kind": "batch_topk"}),
    "the norm of one source is 1": ({"kind": "crosscoder", "norms": "sum"}, {"kind": "crosscoder"}),
    "one layer is a transcoder": ({"kind": "clt"}, {"kind": "transcoder"}),
}


@pytest.mark.parametrize("pair", SAME.values(), ids=list(SAME))
def test_whole_runs_are_the_same(pair, planted):
    """Bit for bit over forty steps with a short dead window, unless norms are multiplied in."""
    rows, _ = planted(2000, features=24, width=16, active=3, offset=0.3)
    books = []
    for variant in pair:
        needs = VARIANTS.get(variant["kind"]).needs
        feed = ArrayFeed(
            rows,
            128,
            y=rows.flip(1).contiguous() if "target" in needs else None,
            g=torch.randn(rows.shape, generator=torch.Generator().manual_seed(9)),
        )
        cfg = TrainConfig(
            variant={**variant, "latents": 48, "k": 4},
            steps=40,
            batch_rows=128,
            dead_rows=500,
            precision="float32",
        )
        run = train(feed, cfg)
        books.append((run.codebook, run.history[-1]))
    (one, told), (other, told_too) = books
    exactly = pair[0].get("norms") != "sum"
    for name in ("W_enc_DL", "b_enc_L", "W_dec_LD", "b_dec_D", "threshold"):
        a, b = getattr(one, name), getattr(other, name)
        assert torch.equal(a, b) if exactly else torch.allclose(a, b, atol=1e-4), name
    assert told["fvu"] == pytest.approx(told_too["fvu"], rel=1e-6 if exactly else 1e-3)


def rows_and(name, **fields):
    dictionary = VARIANTS.get(name)(latents=40, k=5, **fields).build(12, seed=0)
    return dictionary, torch.randn(30, 12, generator=torch.Generator().manual_seed(1))


def test_a_gate_with_equal_biases_and_no_gain_is_relu():
    gated, x = rows_and("gated")
    relu, _ = rows_and("relu")
    bias = 0.1 * torch.randn(40, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for own in (gated, relu):
            own.b_enc_L.copy_(bias)
        gated.sparsifier.b_mag_L.copy_(bias)
        gated.w_enc_LD.copy_(relu.w_enc_LD)
        assert torch.allclose(gated(x).x_hat, relu(x).x_hat, atol=1e-6)


def test_the_gates_own_reconstruction_gives_the_decoder_no_gradient():
    gated, x = rows_and("gated")
    forward = gated(x)
    aside = next(loss for _, loss in gated.losses if loss.__name__ == "gate_aux")
    grads = torch.autograd.grad(
        aside(forward), (gated.w_dec_LD, gated.w_enc_LD), materialize_grads=True
    )
    assert not bool(grads[0].any())
    assert bool(grads[1].any())


def test_a_transcoder_of_rows_to_themselves_is_an_autoencoder():
    """E3: with centring written into the bias, the same reconstruction."""
    sae, x = rows_and("batch_topk")
    transcoder, _ = rows_and("transcoder")
    with torch.no_grad():
        sae.b_dec_D.copy_(torch.linspace(-1, 1, 12))
        transcoder.w_enc_LD.copy_(sae.w_enc_LD)
        transcoder.w_dec_LD.copy_(sae.w_dec_LD)
        transcoder.b_dec_D.copy_(sae.b_dec_D)
        transcoder.b_enc_L.copy_(sae.b_enc_L - sae.w_enc_LD @ sae.b_dec_D)
        one, other = sae(x), transcoder(x, x)
    assert torch.equal(one.pattern.latent, other.pattern.latent)
    assert torch.allclose(one.x_hat, other.x_hat, atol=1e-5)


def test_a_skip_that_is_zero_is_none():
    plain, x = rows_and("transcoder")
    skip, _ = rows_and("skip_transcoder")
    with torch.no_grad():
        for own in (plain, skip):
            own.w_dec_LD.normal_(generator=torch.Generator().manual_seed(3))
    assert torch.equal(plain(x, x).x_hat, skip(x, x).x_hat)


class Given:
    """A matrix as scores, in blocks of a few rows."""

    share = WHOLE

    def __init__(self, matrix, step):
        self.matrix, self.step = matrix, step
        self.rows, self.latents = matrix.shape

    def blocks(self):
        for start in range(0, self.rows, self.step):
            yield start, self.matrix[start : start + self.step].clone()


@pytest.mark.parametrize("step", [1, 7, 64])
def test_minfire_guarantees_a_turn_and_keeps_the_budget(step):
    """Against the definition: forced pairs first, then the largest others, the same budget in all."""
    matrix = torch.randn(64, 50, generator=torch.Generator().manual_seed(4))
    matrix[:, 7] = -1  # nowhere positive: nothing to guarantee
    sparsifier, k, period = MinFire(3, 4), 3, 4
    for number in range(8):
        pattern = sparsifier.choose(Given(matrix, step), Moment(number, 100))
        found = set(zip(pattern.row.tolist(), pattern.latent.tolist(), strict=True))
        turn = range(number % period, 50, period)
        forced = {(int(matrix[:, i].argmax()), i) for i in turn if float(matrix[:, i].max()) > 0}
        order = matrix.flatten().argsort(descending=True, stable=True).tolist()
        rest = [divmod(at, 50) for at in order if divmod(at, 50) not in forced]
        assert found == forced | set(rest[: 64 * k - len(forced)])
    late = sparsifier.choose(Given(matrix, step), Moment(95, 100))
    largest = {divmod(at, 50) for at in order[: 64 * k]}
    assert set(zip(late.row.tolist(), late.latent.tolist(), strict=True)) == largest


def test_every_latent_of_minfire_fires_within_its_period():
    rows = torch.randn(256, 16, generator=torch.Generator().manual_seed(5))
    dictionary = VARIANTS.get("minfire")(latents=400, k=2).build(16, seed=0)
    fired = torch.zeros(400, dtype=torch.bool)
    for step in range(2):  # ceil(400 / (.7 * 512)) = 2
        fired[dictionary(rows, when=Moment(step, 100)).pattern.latent] = True
    assert bool(fired.all())


def test_a_cross_layer_transcoder_reads_and_writes_where_it_may():
    widths = Widths((6, 6, 6), (4, 5, 6))
    clt = VARIANTS.get("clt")(latents=30, k=6).build(widths, seed=0)
    x, y = torch.randn(20, 18), torch.randn(20, 15)
    optimizer = torch.optim.Adam(clt.parameters(), lr=0.05)
    for _ in range(5):
        clt.loss(clt(x, y, dead=torch.tensor([0, 12, 25]))).backward()
        optimizer.step()
        optimizer.zero_grad()
    decoder = clt.w_dec_LD.detach()
    assert bool(decoder[:10].any(dim=0).all())
    assert not bool(decoder[10:20, :4].any())
    assert bool(decoder[10:20, 4:].any(dim=0).all())
    assert not bool(decoder[20:, :9].any())
    encoder = clt.encoder().detach()
    for layer in range(3):
        rows = torch.zeros(18, dtype=torch.bool)
        rows[6 * layer : 6 * layer + 6] = True
        mine = slice(10 * layer, 10 * layer + 10)
        assert not bool(encoder[~rows][:, mine].any())
        assert bool(encoder[rows][:, mine].any(dim=0).all())
    with torch.no_grad():
        forward = clt(x, y)
        pre = x @ encoder + clt.b_enc_L
        code = torch.zeros_like(pre)
        at = (forward.pattern.row, forward.pattern.latent)
        code[at] = torch.relu(pre)[at]
        assert torch.allclose(forward.x_hat, code @ decoder + clt.b_dec_D, atol=1e-5)
        kept = torch.relu(pre).flatten().topk(20 * 6).indices.sort().values
        assert torch.equal(forward.pattern.row * 30 + forward.pattern.latent, kept)


def test_layers_that_do_not_match_are_refused():
    config = VARIANTS.get("clt")(latents=30, k=6)
    with pytest.raises(InvalidInputError, match="layers-differ"):
        config.build(Widths((6, 6), (6,)), seed=0)
    with pytest.raises(InvalidInputError, match="multiple of 4"):
        config.build(Widths((6,) * 4, (6,) * 4), seed=0)
