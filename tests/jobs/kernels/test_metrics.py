"""Every metric against its definition in float64 loops, and the identities that tie them together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from jobs.kernels.assemble import own_tiles, plan_of
from jobs.kernels.contract import EXECUTORS, PLANNERS, Budget, plan
from jobs.kernels.metrics import METRICS, exact, fidelity, over_heads
from jobs.kernels.scores import dense


@pytest.fixture(scope="module")
def truth(oracle):
    return oracle("sparse_attention")


def figures(qkv, tiles, chosen, name="reference"):
    return fidelity(qkv, chosen, EXECUTORS.get(name)().run(qkv, chosen), exact(qkv, tiles))


@pytest.mark.parametrize("routed", [False, True], ids=["tiles", "routed"])
def test_metrics_are_their_definitions(problems, truth, routed):
    qkv, tiles = problems.make(T=45, H=4, G=2, softcap=3.0)
    chosen = problems.any_plan(qkv, tiles, routed=routed, share=0.3, seed=3)
    chosen = chosen if routed else own_too(qkv, tiles, chosen)
    found = figures(qkv, tiles, chosen)
    for h in range(4):
        one = (qkv.q[0, h].numpy(), qkv.k[0, h // 2].numpy(), qkv.v[0, h // 2].numpy())
        o, lse, p = truth.attention(*one, truth.visible(qkv.geometry), qkv.scale, qkv.softcap)
        mask = truth.mask_of(chosen, 0, h)
        o_hat, lse_hat, p_hat = truth.attention(*one, mask, qkv.scale, qkv.softcap)
        recall = (p * mask).sum(1)
        assert float(found["out_rel_err"][h]) == pytest.approx(
            np.linalg.norm(o_hat - o) / np.linalg.norm(o), rel=1e-4, abs=1e-6
        )
        assert float(found["mass_recall"][h]) == pytest.approx(recall.mean(), rel=1e-5)
        assert float(found["mass_recall_p05"][h]) == pytest.approx(
            np.quantile(recall, 0.05), abs=1e-5
        )
        if routed:  # rows may be empty: no divergence, no cosine
            continue
        assert float(found["lse_err"][h]) == pytest.approx(
            np.abs(lse_hat - lse).mean(), rel=1e-4, abs=1e-6
        )
        cosine = (o * o_hat).sum(1) / np.linalg.norm(o, axis=1) / np.linalg.norm(o_hat, axis=1)
        assert float(found["out_cos"][h]) == pytest.approx(cosine.mean(), rel=1e-4)
        ratio = np.where(mask, np.log(np.where(mask, p_hat, 1) / np.where(mask, p, 1)), 0)
        kl = (p_hat * ratio).sum(1)
        assert np.allclose(kl, -np.log(recall), atol=1e-9)  # masking and renormalising
        assert float(found["head_kl"][h]) == pytest.approx(kl.mean(), rel=1e-4, abs=1e-6)


def own_too(qkv, tiles, chosen):
    """Return a plan with the own tiles added, so that no row is empty."""
    kept = chosen.listed() | own_tiles(qkv, tiles)
    return plan_of(qkv, tiles, kept, forced_IJ=own_tiles(qkv, tiles), stats={})


def test_a_full_plan_misses_nothing(problem, problems):
    qkv, tiles = problem
    found = figures(qkv, tiles, problems.any_plan(qkv, tiles, share=2.0), "torch_blocks")
    assert (found["mass_recall"] == 1.0).all()
    assert (found["regret"].abs() <= 1e-6).all()
    for name in ("out_rel_err", "lse_err", "head_kl", "self_check"):
        assert (found[name].abs() <= 1e-5).all(), name
    assert torch.allclose(found["out_cos"], torch.ones(qkv.heads))


def test_the_self_check_catches_a_run_of_another_plan(problems):
    qkv, tiles = problems.make(T=80)
    chosen = plan(PLANNERS.get("random")(), qkv, tiles, Budget(density=0.5))
    other = plan(PLANNERS.get("random")(seed=1), qkv, tiles, Budget(density=0.5))
    good = fidelity(
        qkv, chosen, EXECUTORS.get("torch_blocks")().run(qkv, chosen), exact(qkv, tiles)
    )
    bad = fidelity(qkv, chosen, EXECUTORS.get("torch_blocks")().run(qkv, other), exact(qkv, tiles))
    assert float(good["self_check"].max()) <= 1e-5
    assert float(bad["self_check"].max()) > 0.05


def test_block_recall_leaves_forced_tiles_out_of_both_sets(problems):
    qkv, tiles = problems.make(T=64, H=1, G=1)
    found = figures(qkv, tiles, plan(PLANNERS.get("random")(), qkv, tiles, Budget(count=1)))
    assert found["block_recall"].isnan().all()  # only own tiles, all forced: nothing was chosen
    truth = exact(qkv, tiles)
    kept = own_tiles(qkv, tiles).clone()
    mass = truth.mass[0, 0]
    best = mass[3].masked_fill(own_tiles(qkv, tiles)[3], -1.0).argmax()
    worst = mass[3, :3].argmin()
    for column, recall in ((best, 1.0), (worst, 0.0)):
        listed = kept.clone()
        listed[3, column] = True
        chosen = plan_of(qkv, tiles, listed[None, None], forced_IJ=own_tiles(qkv, tiles), stats={})
        assert figures(qkv, tiles, chosen)["block_recall"].tolist() == [recall]


def test_free_mass_is_told(problems, truth):
    qkv, tiles = problems.make(T=45, H=2, G=1)
    found = exact(qkv, tiles)
    for h in range(2):
        one = (qkv.q[0, h].numpy(), qkv.k[0, 0].numpy(), qkv.v[0, 0].numpy())
        _, _, p = truth.attention(*one, truth.visible(qkv.geometry), qkv.scale)
        assert float(found.sink_mass[h]) == pytest.approx(p[:, :4].sum(1).mean(), abs=1e-5)
        own = [p[i, i // 16 * 16 : i // 16 * 16 + 16].sum() for i in range(45)]
        assert float(found.own_mass[h]) == pytest.approx(np.mean(own), abs=1e-5)


def test_large_problems_are_measured_without_keeping_their_weights(problems, monkeypatch):
    from jobs.kernels import metrics

    qkv, tiles = problems.make(T=70)
    chosen = plan(PLANNERS.get("moba")(), qkv, tiles, Budget(density=0.5))
    kept = figures(qkv, tiles, chosen)
    monkeypatch.setattr(metrics, "KEPT_FLOATS", 0)
    anew = figures(qkv, tiles, chosen)
    assert all(torch.allclose(kept[n], anew[n], atol=1e-6, equal_nan=True) for n in METRICS)


def test_heads_are_summed_up_as_promised():
    heads = {name: torch.tensor([0.1, 0.2, 0.3, 0.9]) for name in (*METRICS, "self_check")}
    heads["block_recall"] = torch.tensor([torch.nan, 0.5, torch.nan, 1.0])
    found = over_heads(heads)
    assert found["out_rel_err"] == pytest.approx(0.25)
    assert found["out_rel_err_max"] == pytest.approx(0.9)
    assert found["out_rel_err_p95"] == pytest.approx(np.quantile([0.1, 0.2, 0.3, 0.9], 0.95))
    assert found["mass_recall"] == pytest.approx(0.375)
    assert found["block_recall"] == pytest.approx(0.75)
    assert found["self_check"] == pytest.approx(0.9)


def test_scores_of_any_size_give_a_log_sum_exp_the_check_can_judge(problems):
    qkv, tiles = problems.make(T=80)
    loud = dataclasses.replace(qkv, q=qkv.q * 300)
    assert float(dense(loud)[1].abs().max()) > 500
    chosen = plan(PLANNERS.get("oracle")(), loud, tiles, Budget(density=0.5))
    assert float(figures(loud, tiles, chosen, "torch_blocks")["self_check"].max()) <= 1e-4
