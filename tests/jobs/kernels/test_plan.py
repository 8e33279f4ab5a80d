"""A plan is its lists: mask, density and bytes follow from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from jobs.errors import JobError
from jobs.kernels.plan import BlockPlan
from store.errors import CorruptError


@pytest.fixture(scope="module")
def truth(oracle):
    return oracle("sparse_attention")


@pytest.mark.parametrize("routed", [False, True], ids=["tiles", "routed"])
def test_the_mask_and_densities_are_those_of_the_lists(problem, problems, truth, routed):
    qkv, tiles = problem
    plan = problems.any_plan(qkv, tiles, routed=routed)
    mask = plan.to_mask().numpy()
    for batch, head in np.ndindex(mask.shape[:2]):
        assert np.array_equal(mask[batch, head], truth.mask_of(plan, batch, head))
    assert np.array_equal(plan.to_mask(slice(3, 11)).numpy(), mask[:, :, 3:11])
    seen = truth.visible(plan.geometry)
    density = plan.density()
    assert density.rho_token == pytest.approx(mask.sum() / (seen.sum() * mask[..., 0, 0].size))
    listed = int(plan.kv_num.sum() + plan.full_num.sum())
    assert density.rho_tile == pytest.approx(listed / (plan.layout.tiles * mask[..., 0, 0].size))
    assert int(plan.listed().sum()) == listed


def test_lists_are_ascending_distinct_disjoint_and_int32(problem, problems):
    qkv, tiles = problem
    plan = problems.any_plan(qkv, tiles, share=0.8)
    for num, idx in ((plan.kv_num, plan.kv_idx), (plan.full_num, plan.full_idx)):
        assert num.dtype == idx.dtype == torch.int32
        assert idx.is_contiguous()
        for place in np.ndindex(*num.shape):
            held = idx[place][: num[place]].tolist()
            assert held == sorted(set(held))
            assert not idx[place][num[place] :].any()
    partial, full = (
        plan._spread(plan.kv_idx, plan.kv_num),
        plan._spread(plan.full_idx, plan.full_num),
    )
    assert not (partial & full).any()


@pytest.mark.parametrize("routed", [False, True], ids=["tiles", "routed"])
def test_a_plan_survives_its_bytes(problem, problems, routed):
    qkv, tiles = problem
    plan = problems.any_plan(qkv, tiles, routed=routed)
    again = BlockPlan.deserialise(load(save(plan.serialise())))
    assert again.geometry == plan.geometry
    assert (again.bq, again.bk, again.heads, dict(again.stats)) == (
        plan.bq,
        plan.bk,
        plan.heads,
        dict(plan.stats),
    )
    assert torch.equal(again.to_mask(), plan.to_mask())
    assert torch.equal(again.forced(), plan.forced())


def test_bytes_of_something_else_are_refused(problems):
    qkv, tiles = problems.make()
    arrays = problems.any_plan(qkv, tiles).serialise()
    lacking = {name: array for name, array in arrays.items() if name != "kv_idx"}
    newer = {
        **arrays,
        "plan": np.frombuffer(arrays["plan"].tobytes().replace(b'"v": 1', b'"v": 9'), np.uint8),
    }
    for wrong in ({}, lacking, newer):
        with pytest.raises(CorruptError, match="bad-plan"):
            BlockPlan.deserialise(wrong)


def test_a_plan_for_other_shapes_or_heads_is_refused(problems):
    qkv, tiles = problems.make(T=64)
    plan = problems.any_plan(qkv, tiles)
    for other in ({"T": 65}, {"T": 64, "H": 8}, {"T": 64, "causal": False}, {"T": 64, "window": 9}):
        wrong, _ = problems.make(**other)
        with pytest.raises(JobError, match=r"plan-differs.*Nothing was computed"):
            plan.check_for(wrong.geometry, wrong.heads, wrong.groups)


def test_full_density_is_one_and_routing_shows_as_inflation(problems):
    qkv, tiles = problems.make(T=64)
    density = problems.any_plan(qkv, tiles, share=2.0).density()
    assert density.rho_token == density.rho_tile == density.tile_inflation == 1.0
    routed = problems.any_plan(qkv, tiles, share=2.0, routed=True).density()
    assert routed.rho_tile == 1.0
    assert routed.tile_inflation == pytest.approx(1 / routed.rho_token)
