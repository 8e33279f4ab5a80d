"""Laws over every executor: it computes what a plan lists, exactly that, and writes every row."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ingest.models import merge
from jobs.errors import JobError, UsageError
from jobs.kernels.assemble import plan_of
from jobs.kernels.contract import EXECUTORS
from jobs.kernels.geometry import layout
from jobs.kernels.scores import dense

each_executor = pytest.mark.parametrize("name", EXECUTORS.names())


def run(name, qkv, plan, **options):
    return EXECUTORS.get(name)(**options).run(qkv, plan)


def error(found, wanted):
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))


def truth_of(truth, qkv, plan):
    """Return the oracle's output and log-sum-exp of every head, float64."""
    batch, heads, queries, width = qkv.q.shape
    o, lse = np.zeros((batch, heads, queries, width)), np.zeros((batch, heads, queries))
    for b, h in np.ndindex(batch, heads):
        mask = truth.mask_of(plan, b, h * plan.plan_heads // heads)
        g = h * qkv.groups // heads
        one = (qkv.q[b, h].numpy(), qkv.k[b, g].numpy(), qkv.v[b, g].numpy())
        o[b, h], lse[b, h], _ = truth.attention(*one, mask, qkv.scale, qkv.softcap)
    return torch.from_numpy(o), torch.from_numpy(lse)


@pytest.fixture(scope="module")
def truth(oracle):
    return oracle("sparse_attention")


@pytest.fixture
def _poison():
    """Fill fresh memory with NaN, so that what is not written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@each_executor
@pytest.mark.parametrize("routed", [False, True], ids=["tiles", "routed"])
@pytest.mark.usefixtures("_poison")
def test_any_plan_of_any_shape_equals_float64(name, problem, problems, truth, routed):
    qkv, tiles = problem
    plan = problems.any_plan(qkv, tiles, routed=routed)
    wanted, lse = truth_of(truth, qkv, plan)
    found, found_lse = run(name, qkv, plan)
    seen = lse > -torch.inf
    assert error(found.double(), wanted) <= 1e-5
    assert torch.equal(found_lse > -torch.inf, seen)
    assert float((found_lse.double() - lse)[seen].abs().sum()) <= 1e-5 * max(1, int(seen.sum()))
    assert (found[~seen] == 0).all()


@each_executor
@pytest.mark.parametrize(
    "plan_heads", [1, 2, 6], ids=["one plan", "per key head", "per query head"]
)
def test_heads_share_plans_as_declared(name, problems, truth, plan_heads):
    qkv, tiles = problems.make(B=2, H=6, G=2, T=40)
    plan = problems.any_plan(qkv, tiles, plan_heads=plan_heads, routed=True)
    wanted, _ = truth_of(truth, qkv, plan)
    assert error(run(name, qkv, plan)[0].double(), wanted) <= 1e-5


@each_executor
def test_a_full_plan_is_dense_attention(name, problem, problems):
    qkv, tiles = problem
    o, lse = run(name, qkv, problems.any_plan(qkv, tiles, share=2.0))
    exact, exact_lse = dense(qkv)
    assert error(o, exact) <= 1e-5
    assert float((lse - exact_lse).abs().max()) <= 1e-5


@each_executor
@pytest.mark.usefixtures("_poison")
def test_an_empty_plan_gives_zeros_and_minus_infinity(name, problems):
    qkv, tiles = problems.make(T=37)
    o, lse = run(name, qkv, problems.any_plan(qkv, tiles, share=0.0))
    assert (o == 0).all()
    assert (lse == -torch.inf).all()


@each_executor
def test_tiles_nobody_lists_are_never_read(name, problems):
    qkv, tiles = problems.make(T=64)
    kept = torch.ones(1, 4, 4, 4, dtype=torch.bool)
    kept[..., 1] = False
    plan = plan_of(qkv, tiles, kept, stats={})
    clean = run(name, qkv, plan)
    k, v = qkv.k.clone(), qkv.v.clone()
    k[:, :, 16:32], v[:, :, 16:32] = torch.nan, torch.nan
    dirty = run(name, dataclasses.replace(qkv, k=k, v=v), plan)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


@each_executor
def test_nan_in_a_listed_tile_shows(name, problems):
    qkv, tiles = problems.make(T=64)
    k = qkv.k.clone()
    k[0, 2, 5] = torch.nan
    o, _ = run(name, dataclasses.replace(qkv, k=k), problems.any_plan(qkv, tiles, share=2.0))
    assert o[0, 2, 5:].isnan().all()
    assert not o[0, 1].isnan().any()


@each_executor
def test_two_halves_merge_into_the_whole(name, problem, problems):
    qkv, tiles = problem
    shape = layout(qkv.geometry, tiles.bq, tiles.bk).visible.shape
    heads = (qkv.q.shape[0], qkv.heads, *shape)
    one = torch.rand(heads, generator=torch.Generator().manual_seed(1)) < 0.5
    parts = [run(name, qkv, plan_of(qkv, tiles, kept, stats={})) for kept in (one, ~one)]
    o, lse = merge(*parts)
    exact, exact_lse = dense(qkv)
    assert error(o, exact) <= 1e-5
    assert float((lse - exact_lse).abs().max()) <= 1e-5


@each_executor
def test_a_foreign_plan_is_refused(name, problems):
    qkv, tiles = problems.make(T=64)
    other, _ = problems.make(T=48)
    with pytest.raises(JobError, match="plan-differs"):
        run(name, other, problems.any_plan(qkv, tiles))


@each_executor
def test_an_unknown_precision_is_refused(name):
    with pytest.raises(UsageError, match="float12"):
        EXECUTORS.get(name)(precision="float12")


def test_bfloat16_errs_no_more_than_twice_what_plain_bfloat16_does(problems):
    qkv, tiles = problems.make(T=200, d=32, H=4, G=2)
    plan = problems.any_plan(qkv, tiles, share=2.0)
    exact, exact_lse = run("reference", qkv, plan, precision="float64")
    o, lse = run("torch_blocks", qkv, plan, precision="bfloat16")
    q, k, v = (
        x.bfloat16() for x in (qkv.q, qkv.k.repeat_interleave(2, 1), qkv.v.repeat_interleave(2, 1))
    )
    scores = (q @ k.transpose(2, 3) * qkv.scale).masked_fill(~plan.to_mask(), -torch.inf)
    plain = scores.softmax(-1) @ v
    assert error(o.double(), exact) <= min(1e-2, 2 * error(plain.double(), exact))
    assert float((lse.double() - exact_lse).abs().max()) <= 1e-3


def test_slices_do_not_change_the_result(problems, monkeypatch):
    from jobs.kernels.executors import torch_blocks

    qkv, tiles = problems.make(T=120, H=4, G=2)
    plan = problems.any_plan(qkv, tiles, routed=True)
    whole = run("torch_blocks", qkv, plan)
    monkeypatch.setattr(torch_blocks, "SLICE_FLOATS", 1)
    sliced = run("torch_blocks", qkv, plan)
    for a, b in zip(whole, sliced, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
