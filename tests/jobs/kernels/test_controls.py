"""Each control destroys what it says and keeps what it says."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ingest.models import Rotary
from jobs.errors import UsageError
from jobs.kernels.controls import CONTROLS, WINDOW_TILES, controlled
from jobs.kernels.inputs import turned
from jobs.kernels.scores import dense, weights

each_control = pytest.mark.parametrize("name", sorted(CONTROLS))
ROTARY = Rotary((1.0, 0.1, 0.01), magnitude=1.25)


def rotary_problem(problems, **options):
    """Return a problem with keys turned to their positions, the keys before, and its tiles."""
    qkv, tiles = problems.make(bq=4, bk=4, **options)
    at = torch.arange(qkv.k.shape[2])[None] + 3
    k = turned(qkv.k, at, ROTARY)
    return dataclasses.replace(qkv, k=k, rotary=ROTARY, positions=at), qkv.k, tiles


@each_control
def test_a_control_is_a_problem_of_the_same_shape_drawn_from_seed_and_key(name, problems):
    qkv, tiles = problems.make(T=50, H=4, G=2, key=5)
    one, again = (controlled(qkv, name, tiles, seed=0) for _ in range(2))
    assert one.geometry == qkv.geometry
    assert (one.q.shape, one.k.shape, one.v.dtype) == (qkv.q.shape, qkv.k.shape, qkv.v.dtype)
    assert torch.equal(one.k, again.k)
    assert dense(one)[0].isfinite().all()
    if name == "real":
        assert one is qkv
        return
    other = controlled(qkv, name, tiles, seed=1)
    elsewhere = controlled(dataclasses.replace(qkv, key=6), name, tiles, seed=0)
    assert not torch.equal(one.k, other.k)
    assert not torch.equal(one.k, elsewhere.k)


@pytest.mark.parametrize("name", ["perm_tok", "perm_rot"])
def test_a_permutation_keeps_what_each_bidirectional_query_attends_to(name, problems):
    qkv, tiles = problems.make(T=200, causal=False)
    moved = controlled(qkv, name, tiles, seed=0)
    before, after = (weights(x, 0, 200).sort(-1).values for x in (qkv, moved))
    assert torch.allclose(before, after, atol=1e-6)
    assert torch.allclose(dense(moved)[0], dense(qkv)[0], atol=1e-5)
    assert not torch.allclose(weights(qkv, 0, 200), weights(moved, 0, 200), atol=1e-3)


def test_causal_permutations_stay_within_their_windows_and_pair_keys_with_values(problems):
    qkv, tiles = problems.make(T=100, bq=4, bk=4)
    moved = controlled(qkv, "perm_tok", tiles, seed=0)
    window = WINDOW_TILES * 4
    for low in range(0, 100, window):
        high = min(low + window, 100)
        ours = [qkv.k[0, 0, j].tolist() for j in range(low, high)]
        theirs = [moved.k[0, 0, j].tolist() for j in range(low, high)]
        assert sorted(ours) == sorted(theirs)
        for place, key in enumerate(theirs):
            source = low + ours.index(key)
            assert torch.equal(moved.v[0, :, low + place], qkv.v[0, :, source])
            assert torch.equal(moved.k[0, :, low + place], qkv.k[0, :, source])


def test_perm_tok_turns_keys_to_where_they_go_and_perm_rot_does_not(problems):
    qkv, plain, tiles = rotary_problem(problems, T=60)
    moved = controlled(qkv, "perm_tok", tiles, seed=0)
    unturned = turned(moved.k, qkv.positions, ROTARY, back=True)
    rows = [plain[0, 0, j] for j in range(60)]
    sources = [
        min(range(60), key=lambda j: float((rows[j] - unturned[0, 0, place]).norm()))
        for place in range(60)
    ]
    assert sorted(sources) == list(range(60))
    assert sources != list(range(60))
    assert torch.allclose(unturned, plain[:, :, sources], atol=1e-5)
    carried = controlled(qkv, "perm_rot", tiles, seed=0)
    assert sorted(map(tuple, carried.k[0, 0].tolist())) == sorted(map(tuple, qkv.k[0, 0].tolist()))


def test_turning_back_undoes_turning(problems):
    qkv, plain, _ = rotary_problem(problems, T=40)
    assert torch.allclose(turned(qkv.k, qkv.positions, ROTARY, back=True), plain, atol=1e-5)


def test_gauss_cov_keeps_each_heads_first_two_moments(problems):
    qkv, tiles = problems.make(T=4000, H=2, G=2, d=4)
    mix = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(3))
    shaped = dataclasses.replace(qkv, k=qkv.k @ mix + torch.tensor([3.0, 0.0, -2.0, 0.0]))
    found = controlled(shaped, "gauss_cov", tiles, seed=0)
    for h in range(2):
        ours, theirs = shaped.k[0, h], found.k[0, h]
        size = float(ours.T.cov().norm())
        assert float((ours.mean(0) - theirs.mean(0)).norm()) <= 0.1 * size**0.5 + 0.1
        assert float((ours.T.cov() - theirs.T.cov()).norm()) <= 0.1 * size


def test_gauss_cov_works_where_there_are_fewer_rows_than_features(problems):
    qkv, tiles = problems.make(T=5, d=8)
    assert controlled(qkv, "gauss_cov", tiles, seed=0).k.isfinite().all()


def test_gauss_iid_keeps_the_scale_alone(problems):
    qkv, tiles = problems.make(T=3000, H=1, G=1, d=4)
    loud = dataclasses.replace(qkv, k=qkv.k * torch.tensor([5.0, 1.0, 1.0, 1.0]) + 2.0)
    found = controlled(loud, "gauss_iid", tiles, seed=0).k
    assert float(found.square().mean()) == pytest.approx(float(loud.k.square().mean()), rel=0.05)
    assert float(found.mean().abs()) < 0.1
    spread = found[0, 0].std(0)
    assert float(spread.max() / spread.min()) < 1.1


def test_an_unknown_control_is_refused(problems):
    qkv, tiles = problems.make()
    with pytest.raises(UsageError, match=r"unknown-name.*'placebo'.*perm_tok"):
        controlled(qkv, "placebo", tiles, seed=0)
