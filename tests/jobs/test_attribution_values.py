"""Gradients on F1, where the first order is right, too large, or nothing, each by a known factor."""

import numpy as np
import pytest
import torch

from ingest.errors import ModelError
from ingest.models.metrics import METRICS, Examples
from ingest.models.rules import RULES, GradRule


@pytest.fixture(scope="module")
def f1(oracle):
    return oracle("compiled_induction")


@pytest.fixture(scope="module")
def told(f1):
    """(adapter, clean ids, corrupt ids, the match's place, the objective) of one pair whose corrupt prompt has no match."""
    clean, corrupt, j0 = f1.pair_c1(np.random.default_rng(0))
    answers = {"correct": torch.tensor([clean[j0 + 1]]), "wrong": torch.tensor([corrupt[j0]])}
    metric = METRICS.get("logit_diff")()

    def objective(logits):
        ids = torch.from_numpy(clean)[None]
        return metric.value(
            logits, Examples(ids=ids, mask=torch.ones_like(ids), answers=answers), None
        )

    both = (torch.from_numpy(ids)[None] for ids in (clean, corrupt))
    return f1.loaded().adapter, *both, j0, objective


def estimate(told, head, at, rule=None, *, clean_point=False):
    """⟨a(clean) − a(corrupt), g⟩ of a head at one position, in units of what the clean prompt has over the corrupt."""
    adapter, clean, corrupt, _, objective = told
    layer, number = head
    site, mask = f"blocks.{layer}.attn.z", torch.ones_like(clean)
    values = [adapter.capture(ids, mask, [site])[site][0, at, number] for ids in (clean, corrupt)]
    here, other = (clean, corrupt) if clean_point else (corrupt, clean)
    grads, _ = adapter.gradients(here, mask, [site], objective, rule, other)
    sides = [adapter.gradients(ids, mask, [site], objective)[1] for ids in (clean, corrupt)]
    found = ((values[0] - values[1]) * grads[site][0, at, number]).sum()
    return float(found / (sides[0] - sides[1]))


def test_on_a_linear_way_to_the_logits_the_first_order_is_all(f1, told):
    assert estimate(told, f1.INDUCTION, 16) == pytest.approx(1, abs=1e-3)
    assert estimate(told, f1.DECOY, 16) == 0
    assert estimate(told, f1.ECHO, 16) == pytest.approx(0, abs=1e-8)


def test_through_a_softmax_it_is_too_large_at_the_corrupt_point_and_nothing_at_the_clean_one(
    f1, told
):
    """20/17 of the effect where attention is even, and e^-20 of it where it is decided: the method's false negative."""
    at = told[3] + 1
    assert estimate(told, f1.PREVIOUS, at) == pytest.approx(20 / 17, rel=0.01)
    assert 0 < estimate(told, f1.PREVIOUS, at, clean_point=True) < 1e-5


def test_points_between_the_prompts_find_the_edge_from_either_end(f1, told):
    at, rule = told[3] + 1, GradRule(point="inputs", steps=60)
    one = estimate(told, f1.PREVIOUS, at, rule)
    other = estimate(told, f1.PREVIOUS, at, rule, clean_point=True)
    assert one == pytest.approx(other, rel=1e-3)
    assert 0.5 < one < 2


def test_a_rule_that_the_family_does_not_speak_of_is_refused(f1, told):
    """It would be the exact gradient under another name."""
    for rule in (GradRule(attn="frozen"), RULES["relp"], RULES["grad_drop"]):
        with pytest.raises(ModelError, match=r"rule-unsupported.*exact rule"):
            estimate(told, f1.PREVIOUS, told[3] + 1, rule)
