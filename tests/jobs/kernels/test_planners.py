"""Laws over every planner, and what each of them promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from jobs.errors import JobError, RefusedError, UsageError
from jobs.kernels.assemble import own_tiles, top
from jobs.kernels.contract import EXECUTORS, PLANNERS, QKV, Budget, Tiles, plan
from jobs.kernels.metrics import block_recall, envelope, exact, fidelity, plan_mass
from jobs.kernels.planners.oracle import Oracle
from jobs.kernels.scores import block_mass, dense, mean_key_gate

NAMES = PLANNERS.names()
each_planner = pytest.mark.parametrize("name", NAMES)
each_sharing = pytest.mark.parametrize("heads", ["query", "kv"])


def asked(name, qkv, tiles, **budget):
    return plan(PLANNERS.get(name)(), qkv, tiles, Budget(**budget))


def shared(tiles, heads):
    return Tiles(bq=tiles.bq, bk=tiles.bk, heads=heads)


@each_planner
@each_sharing
def test_a_full_budget_is_dense_attention(name, heads, problem):
    qkv, tiles = problem
    if PLANNERS.get(name).causal_only and not qkv.causal:
        with pytest.raises(RefusedError, match="causal-planner"):
            asked(name, qkv, shared(tiles, heads), density=1.0)
        return
    found = asked(name, qkv, shared(tiles, heads), density=1.0)
    assert found.density().rho_token == found.density().rho_tile == 1.0
    o, lse = EXECUTORS.get("torch_blocks")().run(qkv, found)
    truth, truth_lse = dense(qkv)
    assert float((o - truth).norm() / truth.norm()) <= 1e-5
    assert float((lse - truth_lse).abs().max()) <= 1e-5


@each_planner
@each_sharing
@pytest.mark.parametrize("density", [0.1, 0.4, 0.75])
def test_a_budget_is_kept_and_no_row_is_left_empty(name, heads, density, problems):
    qkv, tiles = problems.make(T=101, H=4, G=2)
    found = asked(name, qkv, shared(tiles, heads), density=density)
    visible = found.layout.visible.sum(1)
    allowed = Budget(density=density).counts(visible)
    listed = found.listed().sum(-1)
    if found.token_bits is None:
        assert (listed == allowed).all()
    else:
        routed = found.to_mask()[:, :, :, :: tiles.bk].sum(
            -1
        )  # a tile's first key is seen or nothing is
        seen = Budget(density=density).counts((found.layout.seen > 0).sum(1))
        assert (routed == seen).all()
        assert (listed >= allowed).all()
    assert found.to_mask().any(-1).all()
    assert not (found.to_mask() & ~qkv.geometry.visible()).any()


@each_planner
def test_equal_problems_have_equal_plans(name, problems):
    qkv, tiles = problems.make(T=90)
    one, other = (asked(name, qkv, tiles, density=0.3) for _ in range(2))
    assert torch.equal(one.to_mask(), other.to_mask())
    assert torch.equal(one.forced(), other.forced())


@each_planner
def test_forced_tiles_are_listed_and_within_the_budget(name, problems):
    qkv, tiles = problems.make(T=128)
    found = asked(name, qkv, tiles, count=1)
    assert not (found.forced() & ~found.listed()).any()
    if found.forced().any():
        assert torch.equal(found.listed(), own_tiles(qkv, tiles).expand_as(found.listed()))


@each_planner
def test_bidirectional_attention_is_planned_or_refused(name, problems):
    qkv, tiles = problems.make(T=40, causal=False)
    if not PLANNERS.get(name).causal_only:
        assert asked(name, qkv, tiles, density=0.4).to_mask().any(-1).all()
        return
    with pytest.raises(
        RefusedError, match=r"causal-planner.*bidirectional.*--planners oracle,random"
    ):
        asked(name, qkv, tiles, density=0.4)


def planted(blocks=8, size=16, width=16):
    """Return a problem where each query tile attends to one key tile, and that tile's number by tile.

    Keys of tile J are the unit vector J; queries of tile I are 300 times that of its target, so that what
    lies elsewhere is below the smallest float32.
    """
    target = torch.tensor([0, 0, 1, 0, 3, 2, 5, 4])[:blocks]
    tile = torch.arange(blocks * size) // size
    k = torch.nn.functional.one_hot(tile, width).float()
    q = 300.0 * torch.nn.functional.one_hot(target[tile], width).float()
    v = torch.randn(blocks * size, width, generator=torch.Generator().manual_seed(0))
    return QKV(q=q[None, None], k=k[None, None], v=v[None, None], scale=1.0, causal=True), target


@pytest.mark.parametrize(
    ("name", "recalls"),
    [("oracle", True), ("moba", True), ("random", False), ("sink_local", False)],
)
def test_planted_blocks_are_recalled_exactly_by_who_looks(name, recalls):
    qkv, target = planted()
    tiles = Tiles(bq=16, bk=16)
    found = asked(name, qkv, tiles, count=2)
    truth = exact(qkv, tiles)
    figures = fidelity(qkv, found, EXECUTORS.get("torch_blocks")().run(qkv, found), truth)
    if recalls:
        assert figures["mass_recall"].tolist() == [1.0]
        assert figures["mass_recall_p05"].tolist() == [1.0]
        assert found.listed()[0, 0, torch.arange(8), target].all()
        assert float(figures["out_rel_err"]) <= 1e-6
        assert float(figures["regret"]) == pytest.approx(0, abs=1e-6)
    else:
        assert float(figures["mass_recall"]) < 0.95
        assert float(figures["regret"]) > 0.05


def test_no_tiles_hold_more_mass_than_the_oracles(problems):
    qkv, tiles = problems.make(T=75, H=2, G=2)
    mass = block_mass(qkv, tiles)
    found = asked("oracle", qkv, tiles, count=2).listed()
    for head, row in itertools.product(range(2), range(5)):
        pairs = itertools.combinations(range(row + 1), min(2, row + 1))
        best = max(float(mass[0, head, row, list(pair)].sum()) for pair in pairs)
        assert float(mass[0, head, row][found[0, head, row]].sum()) == pytest.approx(best)


@each_planner
def test_regret_is_never_negative_for_tiles_and_nothing_for_the_oracle(name, problems):
    qkv, tiles = problems.make(T=100)
    found = asked(name, qkv, tiles, density=0.4)
    truth = exact(qkv, tiles)
    figures = fidelity(qkv, found, EXECUTORS.get("reference")().run(qkv, found), truth)
    assert (figures["regret"] >= -1e-6).all()
    if name == "oracle":
        assert figures["regret"].abs().max() <= 1e-6
        assert block_recall(found, truth).tolist() == [[1.0] * 4]
        assert float(envelope(found, plan_mass(found, truth)).mean()) == pytest.approx(
            float(figures["mass_recall"].mean()), abs=1e-6
        )


def test_block_mass_is_the_mass_of_float64_weights(problem, oracle):
    qkv, tiles = problem
    truth = oracle("sparse_attention")
    found = block_mass(qkv, tiles).numpy()
    seen = truth.visible(qkv.geometry)
    for b, h in np.ndindex(found.shape[:2]):
        g = h * qkv.groups // qkv.heads
        one = (qkv.q[b, h].numpy(), qkv.k[b, g].numpy(), qkv.v[b, g].numpy())
        _, _, weights = truth.attention(*one, seen, qkv.scale, qkv.softcap)
        for i, j in np.ndindex(found.shape[2:]):
            rows = weights[i * tiles.bq : (i + 1) * tiles.bq]
            wanted = rows[:, j * tiles.bk : (j + 1) * tiles.bk].sum() / len(rows)
            assert found[b, h, i, j] == pytest.approx(wanted, abs=1e-5)
    assert np.allclose(found.sum(-1), 1.0, atol=1e-4)


def test_the_gate_is_the_mean_key_of_real_keys(problems):
    qkv, tiles = problems.make(T=41, H=4, G=2)
    gate = mean_key_gate(qkv, tiles)
    for h, i, j in itertools.product(range(4), (0, 17, 40), range(3)):
        keys = qkv.k[0, h // 2, j * 16 : (j + 1) * 16]  # the last tile has nine
        assert float(gate[0, h, i, j]) == pytest.approx(
            float(qkv.q[0, h, i] @ keys.mean(0)), abs=1e-4
        )


def test_moba_counts_the_own_block_inside_k(problems):
    qkv, tiles = problems.make(T=64)
    alone = asked("moba", qkv, tiles, count=1)
    own = own_tiles(qkv, tiles)
    assert torch.equal(alone.listed(), own.expand_as(alone.listed()))
    two = asked("moba", qkv, tiles, count=2)
    blocks = two.to_mask().unflatten(-1, (4, 16)).any(-1).sum(-1)
    assert (blocks == torch.tensor([1] * 16 + [2] * 48)).all()
    assert two.density().tile_inflation > 1.2


def test_sink_local_keeps_the_own_tile_then_the_sinks_then_the_nearest(problems):
    qkv, tiles = problems.make(T=96, H=1, G=1)
    rows = {
        n: asked("sink_local", qkv, tiles, count=n).listed()[0, 0, 5].tolist() for n in (1, 2, 4)
    }
    assert rows[1] == [False, False, False, False, False, True]
    assert rows[2] == [True, False, False, False, False, True]
    assert rows[4] == [True, False, False, True, True, True]


def test_random_draws_by_seed_and_problem(problems):
    qkv, tiles = problems.make(T=128)
    draws = [
        plan(PLANNERS.get("random")(seed=seed), problem, tiles, Budget(density=0.3)).to_mask()
        for seed, problem in ((0, qkv), (1, qkv), (0, problems.make(T=128, key=7)[0]))
    ]
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_plan_that_empties_a_causal_row_is_refused():
    # Keys 8..15 win for the tile of queries 0..31, of which the first eight cannot see them.
    k = torch.zeros(1, 1, 64, 4)
    k[..., 8:16, 0] = 1.0
    q = torch.zeros(1, 1, 64, 4)
    q[..., 0] = 50.0
    qkv = QKV(q=q, k=k, v=torch.ones_like(k), scale=1.0, causal=True)
    tiles = Tiles(bq=32, bk=8)
    with pytest.raises(
        RefusedError, match=r"empty-row.*'oracle' left 8 of 64 query rows.*query 0.*own tile"
    ):
        plan(Oracle(), qkv, tiles, Budget(count=1))
    mended = plan(Oracle(own=True), qkv, tiles, Budget(count=1))
    assert mended.to_mask().any(-1).all()


def test_head_counts_that_do_not_divide_are_refused():
    q, k = torch.zeros(1, 6, 8, 4), torch.zeros(1, 4, 8, 4)
    with pytest.raises(
        JobError, match=r"heads-differ: attention with 6 query heads and 4 key heads"
    ):
        QKV(q=q, k=k, v=k, scale=1.0, causal=True)
    with pytest.raises(JobError, match="bad-shape"):
        QKV(q=q, k=k[..., :3], v=k, scale=1.0, causal=True)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"density": 0.0}, {"density": 1.5}, {"count": 0}, {"density": 0.5, "count": 3}],
    ids=str,
)
def test_a_budget_is_one_of_two_numbers(wrong):
    with pytest.raises(UsageError, match="bad-budget"):
        Budget(**wrong)


def test_tiles_have_sides_and_owners():
    for wrong in ({"bq": 0}, {"bk": 0}, {"heads": "all"}):
        with pytest.raises(UsageError, match="bad-tiles"):
            Tiles(**wrong)


def test_the_first_of_equal_scores_is_taken():
    scores = torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 2.0], [-torch.inf, 1.0, -torch.inf]])
    assert top(scores, torch.tensor([2, 1, 3])).tolist() == [
        [True, True, False],
        [False, True, False],
        [False, True, False],
    ]
