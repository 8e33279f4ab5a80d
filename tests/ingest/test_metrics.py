"""Metrics against their definitions in NumPy, and what no metric can be measured on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import ModelError
from ingest.models.metrics import METRICS, Examples, metric_name

IDS = torch.arange(12).reshape(2, 6)


def metric(name, **fields):
    return METRICS.parse({"kind": name, **fields})


def test_metrics_have_names_for_tables():
    assert metric_name(metric("nll")) == "nll"
    assert metric_name(metric("nll", span="second")) == "nll(second)"
    assert metric_name(metric("logit_diff")) == "logit_diff(correct,wrong)"
    assert metric_name(metric("prob", answers=("correct", "wrong"))) == "prob(correct+wrong)"


def test_metrics_are_those_of_their_definitions(rng):
    """In NumPy, at the last token that is no padding, or a span's."""
    logits = rng.standard_normal((2, 6, 12))
    answers = {"correct": torch.tensor([3, 4]), "wrong": torch.tensor([0, 1])}
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    spans = {"s": torch.tensor([[1, 3], [0, 2]])}
    examples = Examples(ids=IDS, mask=mask, answers=answers, spans=spans)
    for span, ends in (("", (5, 3)), ("s", (2, 1))):
        z = logits[[0, 1], ends]
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        correct, wrong, at = np.array([3, 4]), np.array([0, 1]), np.arange(2)
        others = [np.delete(z[n], correct[n]).max() for n in at]
        wanted = {
            metric("logit", span=span): z[at, correct],
            metric("logit_diff", span=span): z[at, correct] - z[at, wrong],
            metric("prob", span=span): p[at, correct],
            metric("prob", span=span, answers=("correct", "wrong")): p[at, correct] + p[at, wrong],
            metric("entropy", span=span): -(p * np.log(p)).sum(1),
            metric("margin", span=span): z[at, correct] - others,
        }
        for one, values in wanted.items():
            found = one.value(torch.from_numpy(logits), examples, None)
            np.testing.assert_allclose(found.numpy(), values, rtol=1e-12)


@given(seed=st.integers(0, 99))
def test_divergence_is_that_of_the_definition(seed):
    g = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(2, 4, 7, generator=g, dtype=torch.float64) for _ in range(2))
    ids = torch.zeros(2, 4, dtype=torch.long)
    examples = Examples(ids=ids, mask=ids + 1, spans={"s": torch.tensor([[1, 3], [0, 4]])})
    got = metric("kl_to_clean", span="s").value(q, examples, p)
    each = (p.softmax(2) * (p.softmax(2).log() - q.softmax(2).log())).sum(2)
    torch.testing.assert_close(got, torch.stack([each[0, 1:3].mean(), each[1].mean()]))


@pytest.mark.parametrize("name", METRICS.names())
def test_a_metric_is_a_number_for_each_example_and_differentiable(name):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 12, generator=g, requires_grad=True)
    clean = torch.randn(2, 6, 12, generator=g)
    answers = {"correct": torch.tensor([3, 4]), "wrong": torch.tensor([0, 1])}
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    examples = Examples(ids=IDS, mask=mask, answers=answers)
    values = metric(name).value(logits, examples, clean)
    assert values.shape == (2,)
    values.sum().backward()
    assert (logits.grad.abs().sum((1, 2)) > 0).all()
    assert (logits.grad[1, 4:] == 0).all()  # padding plays no part
    half = metric(name).value(logits.bfloat16(), examples, clean)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, values, rtol=0.05, atol=0.05)


def test_a_loss_of_nothing_is_refused():
    examples = Examples(ids=IDS, mask=torch.ones_like(IDS), spans={"s": torch.tensor([[0, 1]] * 2)})
    with pytest.raises(ModelError, match="no token that anything predicts"):
        metric("nll", span="s").value(torch.zeros(2, 6, 12), examples, None)


@pytest.mark.parametrize(
    "bad",
    [
        {"mask": torch.ones(2, 5)},
        {"spans": {"s": torch.tensor([[0, 7]] * 2)}},
        {"spans": {"s": torch.tensor([[3, 3]] * 2)}},
        {"spans": {"s": torch.tensor([0, 3])}},
        {"answers": {"a": torch.tensor([1])}},
        {"ids": IDS[0], "mask": IDS[0]},
    ],
    ids=str,
)
def test_examples_that_do_not_fit_are_refused(bad):
    with pytest.raises(ModelError, match="bad-input"):
        Examples(**{"ids": IDS, "mask": torch.ones_like(IDS), **bad})
