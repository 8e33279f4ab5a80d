"""Attention by blocks: equal to the dense formula, however it is cut; the merge and its laws."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import ModelError
from ingest.models import AttentionSpec, Rotary, attend, merge, rotate

PLAIN = AttentionSpec(heads=4, kv_heads=4, head_width=8, scale=8**-0.5, causal=False)
SPECS = {
    "plain": PLAIN,
    "causal": replace(PLAIN, causal=True),
    "grouped": replace(PLAIN, kv_heads=2, causal=True),
    "one key head": replace(PLAIN, kv_heads=1),
    "softcap": replace(PLAIN, softcap=0.7, scale=1.3),
    "window": replace(PLAIN, window=5, causal=True),
    "window both ways": replace(PLAIN, window=3),
    "all": replace(PLAIN, kv_heads=2, causal=True, window=6, softcap=2.0, scale=0.9),
}


def tensors(spec, length=23, size=2, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    shapes = [
        (size, length, heads, spec.head_width) for heads in (spec.heads, *[spec.kv_heads] * 2)
    ]
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]


def some_mask(size=2, length=23):
    mask = torch.ones(size, length, dtype=torch.long)
    mask[0, 15:] = 0
    mask[1, :4] = 0
    return mask


def dense(q, k, v, spec, mask=None):
    """The formula in float64, the whole matrix at once; zeros and -inf where no key is seen."""
    q, k, v = (t.double() for t in (q, k, v))
    group = spec.heads // spec.kv_heads
    k, v = (t.repeat_interleave(group, dim=2) for t in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) * spec.scale
    if spec.softcap:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    i, j = torch.arange(q.shape[1])[:, None], torch.arange(k.shape[1])[None]
    seen = torch.ones_like(scores, dtype=torch.bool)
    if spec.causal:
        seen &= j <= i
    if spec.window:
        seen &= (i - j).abs() < spec.window
    if mask is not None:
        seen &= mask.bool()[:, None, None, :]
    weights = torch.exp(scores) * seen
    total = weights.sum(-1)
    z = torch.einsum("bhts,bshd->bthd", weights, v) / total.clamp(min=1e-300).mT.unsqueeze(-1)
    return z, total.log().mT


def close(got, want, bound):
    (z, lse), (true_z, true_lse) = got, want
    assert torch.equal(torch.isneginf(lse), torch.isneginf(true_lse))
    there = torch.isfinite(true_lse)
    assert (z - true_z).norm() <= bound * true_z.norm()
    assert (lse - true_lse)[there].abs().max() <= 10 * bound


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "masked"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_equals_the_formula(spec, masked):
    q, k, v = tensors(spec)
    mask = some_mask() if masked else None
    got = attend(q, k, v, spec, mask, block=7)
    assert got[0].dtype == got[1].dtype == torch.float32
    close(got, dense(q, k, v, spec, mask), 1e-6)
    exact = attend(q.double(), k.double(), v.double(), spec, mask, block=7)
    assert exact[0].dtype == torch.float64
    close(exact, dense(q, k, v, spec, mask), 1e-13)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_low_precision_inputs_are_accumulated_in_float32(spec):
    q, k, v = tensors(spec, dtype=torch.bfloat16)
    got = attend(q, k, v, spec, block=4)
    assert got[0].dtype == torch.float32
    close(got, dense(q, k, v, spec), 1e-6)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("name", ["plain", "causal", "grouped"])
def test_equals_torchs_fused_attention(name, dtype, bound):
    spec = SPECS[name]
    q, k, v = tensors(spec, dtype=dtype)
    fused = torch.nn.functional.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in (q, k, v)), is_causal=spec.causal, enable_gqa=True
    ).transpose(1, 2)
    z, _ = attend(q, k, v, spec)
    assert (z - fused.float()).norm() <= bound * fused.float().norm()


@given(block=st.integers(1, 40), name=st.sampled_from(sorted(SPECS)), length=st.integers(1, 30))
def test_any_block_gives_the_same(block, name, length):
    spec = SPECS[name]
    q, k, v = tensors(spec, length=length, size=1)
    whole = attend(q, k, v, spec, block=1000)
    close(attend(q, k, v, spec, block=block), whole, 1e-6)


@given(cuts=st.lists(st.integers(0, 23), max_size=4), name=st.sampled_from(sorted(SPECS)))
def test_any_cut_of_the_keys_merges_to_the_whole(cuts, name):
    spec, mask = SPECS[name], some_mask()
    q, k, v = tensors(spec)
    edges = [0, *sorted(cuts), 23]
    parts = [
        attend(q, k[:, a:b], v[:, a:b], spec, mask[:, a:b], key_start=a, block=6)
        for a, b in itertools.pairwise(edges)
    ]
    done = parts[0]
    for part in parts[1:]:
        done = merge(done, part)
    close(done, attend(q, k, v, spec, mask), 1e-6)


def test_queries_may_be_a_slice_of_the_sequence():
    for spec in SPECS.values():
        q, k, v = tensors(spec)
        whole = attend(q, k, v, spec)
        tail = attend(q[:, 17:], k, v, spec, query_start=17, block=5)
        close(tail, (whole[0][:, 17:], whole[1][:, 17:]), 1e-6)


def test_rows_that_see_nothing_are_zeros():
    q, k, v = tensors(PLAIN)
    mask = torch.ones(2, 23, dtype=torch.bool)
    mask[1] = False
    z, lse = attend(q, k, v, PLAIN, mask, block=8)
    assert torch.equal(z[1], torch.zeros_like(z[1]))
    assert torch.isneginf(lse[1]).all()
    assert torch.isfinite(lse[0]).all()


def test_no_keys_and_no_queries_are_no_trouble():
    q, k, v = tensors(PLAIN)
    z, lse = attend(q, k[:, :0], v[:, :0], PLAIN)
    assert not z.any()
    assert torch.isneginf(lse).all()
    z, lse = attend(q[:, :0], k, v, PLAIN)
    assert (z.shape, lse.shape) == ((2, 0, 4, 8), (2, 0, 4))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_what_the_mask_hides_is_never_read(spec):
    q, k, v = tensors(spec)
    mask = some_mask()
    clean = attend(q, k, v, spec, mask, block=6)
    k[mask == 0] = torch.nan
    v[mask == 0] = torch.inf
    poisoned = attend(q, k, v, spec, mask, block=6)
    assert torch.equal(clean[0], poisoned[0])
    assert torch.equal(clean[1], poisoned[1])


def test_a_visible_nan_is_not_hidden():
    q, k, v = tensors(SPECS["causal"])
    k[0, 5, 2] = torch.nan
    z, lse = attend(q, k, v, SPECS["causal"], block=4)
    assert torch.isnan(z[0, 5:, 2]).all()
    assert torch.isnan(lse[0, 5:, 2]).all()
    assert torch.isfinite(z[0, :5]).all()
    assert torch.isfinite(z[1]).all()


def test_large_scores_do_not_overflow():
    q, k, v = tensors(PLAIN)
    z, lse = attend(q * 1e3, k * 1e3, v, PLAIN, block=5)
    assert torch.isfinite(z).all()
    assert torch.isfinite(lse).all()


def test_gradients_equal_the_formulas():
    spec = SPECS["all"]
    inputs = [t.requires_grad_() for t in tensors(spec, dtype=torch.float64)]
    mask = some_mask()
    blocks = attend(*inputs, spec, mask, block=6)[0].sin().sum()
    formula = dense(*inputs, spec, mask)[0].sin().sum()
    for one, other in zip(
        *(torch.autograd.grad(f, inputs) for f in (blocks, formula)), strict=True
    ):
        assert torch.isfinite(one).all()
        assert torch.allclose(one, other, atol=1e-12)


def test_memory_is_bounded_by_the_block(monkeypatch):
    largest = 0
    exp = torch.exp

    def watched(x):
        nonlocal largest
        largest = max(largest, x.numel())
        return exp(x)

    monkeypatch.setattr(torch, "exp", watched)
    q, k, v = tensors(PLAIN, length=128, size=1)
    attend(q, k, v, PLAIN, block=16)
    assert largest == 4 * 16 * 16


def pairs(seed, count):
    g = torch.Generator().manual_seed(seed)
    for _ in range(count):
        lse = torch.randn(2, 3, 4, generator=g) * 30
        lse[torch.rand(lse.shape, generator=g) < 0.3] = -torch.inf
        z = torch.randn(2, 3, 4, 8, generator=g)
        yield z * torch.isfinite(lse)[..., None], lse


@given(seed=st.integers(0, 1000))
def test_merge_is_associative_and_commutative(seed):
    a, b, c = pairs(seed, 3)
    one, other = merge(merge(a, b), c), merge(a, merge(b, c))
    assert torch.allclose(one[0], other[0], atol=1e-5)
    assert torch.allclose(one[1], other[1], rtol=1e-6)
    for left, right in zip(merge(a, b), merge(b, a), strict=True):
        assert torch.equal(left, right)


@given(seed=st.integers(0, 1000))
def test_the_empty_pair_changes_nothing(seed):
    (a,) = pairs(seed, 1)
    empty = (torch.zeros_like(a[0]), torch.full_like(a[1], -torch.inf))
    for merged in (merge(a, empty), merge(empty, a)):
        assert torch.equal(merged[0], a[0])
        assert torch.equal(merged[1], a[1])


def test_gradients_of_a_merge_of_empties_are_finite():
    z = torch.zeros(1, 1, 1, 2, requires_grad=True)
    lse = torch.full((1, 1, 1), -torch.inf, requires_grad=True)
    merged, _ = merge((z, lse), (z, lse))
    merged.sum().backward()
    assert torch.isfinite(z.grad).all()


def test_rotation_is_that_of_transformers_llama():
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(hidden_size=32, num_attention_heads=4, head_dim=8)
    theirs = LlamaRotaryEmbedding(config)
    rotary = Rotary(tuple(theirs.inv_freq.tolist()), float(theirs.attention_scaling))
    q, k, _ = tensors(PLAIN)
    positions = torch.arange(23).expand(2, -1) + torch.tensor([[0], [100]])
    cos, sin = theirs(q, positions)
    want = apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
    for mine, other in zip((rotate(t, positions, rotary) for t in (q, k)), want, strict=True):
        assert torch.allclose(mine, other, atol=1e-6)


def test_rotation_leaves_the_features_behind_it_alone():
    q, _, _ = tensors(PLAIN, dtype=torch.bfloat16)
    turned = rotate(q, torch.arange(23).expand(2, -1), Rotary((1.0, 0.1)))
    assert turned.dtype == torch.float32
    assert torch.equal(turned[..., 4:], q[..., 4:].float())
    assert torch.equal(turned[:, 0], q[:, 0].float())
    assert torch.allclose(turned.norm(dim=-1), q.float().norm(dim=-1))


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, v: (q[:, :, :3], k, v, None),
        lambda q, k, v: (q, k[:, :, :1], v, None),
        lambda q, k, v: (q, k[:, :5], v, None),
        lambda q, k, v: (q, k, v[..., :3], None),
        lambda q, k, v: (q[0], k, v, None),
        lambda q, k, v: (q, k, v, torch.ones(2, 22)),
    ],
    ids=["query heads", "key heads", "lengths", "value width", "axes", "mask"],
)
def test_tensors_that_do_not_fit_are_refused(change):
    q, k, v, mask = change(*tensors(PLAIN))
    with pytest.raises(ModelError, match="bad-input"):
        attend(q, k, v, PLAIN, mask)
