"""F1 holds its closed forms: pattern, gradient and causal effect differ, each by a known number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def f1(oracle):
    return oracle("compiled_induction")


@pytest.fixture(scope="module")
def w(f1):
    return f1.weights()


@pytest.fixture
def c1(f1, rng):
    """Clean ids, corrupt ids, j0."""
    return f1.pair_c1(rng)


def difference(out, correct, wrong):
    return out.logits[-1, correct] - out.logits[-1, wrong]


def effect(f1, w, c1, head, position):
    """Activation patching of one head at one position, clean into corrupt, on the logit difference."""
    clean, corrupt, j0 = c1
    names = (clean[j0 + 1], corrupt[j0])
    one, other = f1.forward(w, clean), f1.forward(w, corrupt)
    patched = f1.forward(w, corrupt, [((*head, position), one.z[(*head, position)])])
    base = difference(other, *names)
    return (difference(patched, *names) - base) / (difference(one, *names) - base)


def test_the_module_is_the_plain_form(f1, w, rng):
    ids = f1.repeated(rng, 16, count=3)
    model = f1.loaded()
    sites = [f"blocks.{layer}.attn.{name}" for layer in range(2) for name in "qkvz"]
    ids_BT = torch.from_numpy(ids)
    got = model.adapter.capture(ids_BT, torch.ones_like(ids_BT), sites)
    logits = model.model(input_ids=ids_BT).logits
    for row, one in enumerate(ids):
        out = f1.forward(w, one)
        np.testing.assert_allclose(logits[row], out.logits, atol=1e-12)
        for layer in range(2):
            z = got[f"blocks.{layer}.attn.z"][row].numpy().transpose(1, 0, 2)
            np.testing.assert_allclose(z, out.z[layer], atol=1e-12)


def test_patterns_are_perfect(f1, w, rng):
    ids, period = f1.repeated(rng, 12)[0], 12
    out = f1.forward(w, ids)
    rows = np.arange(1, len(ids))
    for head in (f1.PREVIOUS, f1.ECHO):
        assert out.patterns[head][rows, rows - 1].min() > 1 - 1e-7
    second = np.arange(period + 1, len(ids))
    for head in (f1.INDUCTION, f1.DECOY):
        assert out.patterns[head][second, second - period + 1].min() > 1 - 1e-7
        first = out.patterns[head][: period + 1]
        for i, row in enumerate(first):
            np.testing.assert_allclose(row[: i + 1], 1 / (i + 1), atol=1e-12)


def test_the_loss_falls_at_the_second_copy_and_rises_without_the_induction_head(f1, w, rng):
    ids, period = f1.repeated(rng, 12)[0], 12
    late = np.arange(period + 2, len(ids))

    def loss(*heads):
        gone = [((*h, p), 0.0) for h in heads for p in range(len(ids))]
        logits = f1.forward(w, ids, gone).logits
        return float(np.mean(-np.log(f1.softmax(logits))[late - 1, ids[late]]))

    assert loss() == pytest.approx(1e-3, rel=0.5)
    assert loss() == pytest.approx(math.log1p(15 * math.exp(-10) + math.exp(-9.5)), rel=1e-3)
    assert loss(f1.INDUCTION) == pytest.approx(
        math.log(16 + math.exp(0.5)), abs=1e-6
    )  # ln 17 + echo
    assert loss(f1.DECOY) == loss()


def test_patching_the_previous_token_head_moves_the_induction_weight_by_sixteen_seventeenths(
    f1, w, c1
):
    clean, corrupt, j0 = c1
    z = f1.forward(w, clean).z[0, 0, j0 + 1]
    before = f1.forward(w, corrupt).patterns[1, 0, -1]
    after = f1.forward(w, corrupt, [((0, 0, j0 + 1), z)]).patterns[1, 0, -1]
    assert len(clean) == 17
    np.testing.assert_allclose(before, 1 / 17, atol=1e-9)
    assert after[j0 + 1] - before[j0 + 1] == pytest.approx(1 - 1 / 17, abs=1e-6)


def test_activation_patching_has_its_known_values(f1, w, c1):
    j0, last = c1[2], len(c1[0]) - 1
    assert effect(f1, w, c1, f1.PREVIOUS, j0 + 1) == pytest.approx(1, abs=1e-3)
    assert effect(f1, w, c1, f1.INDUCTION, last) == pytest.approx(1, abs=1e-3)
    assert effect(f1, w, c1, f1.DECOY, last) == 0
    assert effect(f1, w, c1, f1.ECHO, last) == pytest.approx(0, abs=1e-8)  # e^-20


def test_gradients_miss_what_patching_finds(f1, w, c1):
    """Of the induction weight by the previous-token head's z at j0 + 1, along clean − corrupt."""
    clean, corrupt, j0 = c1
    ids = torch.from_numpy(np.stack([clean, corrupt]))
    model = f1.loaded()
    z, query, key = (
        model.adapter.capture(ids, torch.ones_like(ids), [site])[site].clone()
        for site in ("blocks.0.attn.z", "blocks.1.attn.q", "blocks.1.attn.k")
    )
    # The key at j0 + 1 is linear in z there: everything else about the query's row is the corrupt run's.
    reads = torch.from_numpy(w.o[0, 0] @ w.k[1, 0])

    def weight(z_at):
        keys = key[1, :, 0].clone()
        keys[j0 + 1] = keys[j0 + 1] + (z_at - z[1, j0 + 1, 0]) @ reads
        scores = keys @ query[1, -1, 0] / math.sqrt(f1.HEAD_WIDTH)
        return torch.softmax(scores, 0)[j0 + 1]

    step = z[0, j0 + 1, 0] - z[1, j0 + 1, 0]

    def slope(share):
        at = (z[1, j0 + 1, 0] + share * step).requires_grad_()
        return float(torch.autograd.grad(weight(at), at)[0] @ step)

    assert slope(0) == pytest.approx(20 * 16 / 17**2, rel=1e-3)  # 1.107
    assert slope(1) == pytest.approx(20 * 16 * math.exp(-20), rel=1e-3)  # 6.6e-7
    for steps, known in ((5, 0.945), (10, 0.980)):
        estimate = sum(slope(k / steps) for k in range(steps)) / steps
        assert estimate == pytest.approx(known, abs=1e-3)
