"""What encoders have to find, and that the ones training uses find it."""

from __future__ import annotations

import pytest
import torch

from jobs.kernels.codes.contract import OPS
from jobs.verbs.bench_codes import _encoders

ENCODERS = {
    f"{op} {name}": (op, form) for op, of in _encoders().items() for name, form in of.items()
}
each_op = pytest.mark.parametrize("kind", sorted(_encoders()))
each_encoder = pytest.mark.parametrize(("kind", "form"), ENCODERS.values(), ids=list(ENCODERS))


def inputs(rows=13, width=9, latents=37, *, dtype=torch.float32, bias=0.0):
    generator = torch.Generator().manual_seed(4)
    x, w = (
        torch.randn(rows, width, generator=generator),
        torch.randn(latents, width, generator=generator),
    )
    return x.to(dtype), w.to(dtype), torch.full((latents,), bias, dtype=dtype)


def by_definition(kind, x, w, b, k):
    """Return the pairs by sorting Python numbers."""
    scores = (x @ w.t() + b).tolist()
    pairs = [
        (score, r, c) for r, row in enumerate(scores) for c, score in enumerate(row) if score > 0
    ]
    if kind == "encode_threshold":
        chosen = sorted(pairs, reverse=True)[: k * len(scores)]
    else:
        by_row = [
            sorted((p for p in pairs if p[1] == r), reverse=True)[:k] for r in range(len(scores))
        ]
        chosen = [pair for row in by_row for pair in row]
    return sorted((r, c) for _, r, c in chosen)


@each_op
@pytest.mark.parametrize("k", [1, 5, 30])
@pytest.mark.parametrize(
    "bias", [0.0, -4.0, -100.0], ids=["half positive", "few positive", "none positive"]
)
def test_the_reference_is_the_definition(kind, k, bias):
    x, w, b = inputs(dtype=torch.float64, bias=bias)
    op = OPS.get(kind)()
    found = op.reference(x, w, b, k)
    pairs = list(zip(found.row.tolist(), found.latent.tolist(), strict=True))
    assert pairs == by_definition(kind, x, w, b, k)
    assert float(op.shortfall(found, x, w, b, k).max()) == 0.0


@each_encoder
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize(
    "bias", [0.0, -4.0, -100.0], ids=["half positive", "few positive", "none positive"]
)
def test_encoders_of_training_lag_the_best_scores_by_rounding_only(kind, form, k, bias):
    x, w, b = inputs(bias=bias)
    found = form(x, w, b, k)
    lag = OPS.get(kind)().shortfall(found, x.double(), w.double(), b.double(), k)
    assert float(lag.max()) <= 2 * 3 * 2.0**-8 * float(
        (x.abs() @ w.abs().t()).max() + b.abs().max()
    )
    assert len(found.row) <= k * len(x)
    flat = found.row * found.latents + found.latent
    assert bool((flat[1:] > flat[:-1]).all())


@each_op
def test_a_missed_score_shows_as_shortfall(kind):
    x, w, b = inputs(dtype=torch.float64)
    op = OPS.get(kind)()
    found = op.reference(x, w, b, 3)
    fewer = type(found)(found.row[1:], found.latent[1:], found.rows, found.latents)
    lost = float((x @ w.t())[found.row[0], found.latent[0]])
    assert float(op.shortfall(fewer, x, w, b, 3).sum()) == pytest.approx(lost)


@each_op
def test_operations_are_those_of_the_scores(kind):
    assert OPS.get(kind)().flops(7, 5, 11) == 2 * 7 * 5 * 11
