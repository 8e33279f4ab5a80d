"""Every form of the code products does what its operation says: nothing to edit here for a newcomer."""

from __future__ import annotations

import pytest
import torch

from jobs.codes import Pattern
from jobs.dictionaries.decoder import decode
from jobs.dictionaries.encoders.linear import pre_activations
from jobs.kernels.codes.check import check, poisoned
from jobs.kernels.codes.contract import FORMS, PRODUCTS, Case, Shape, products, run
from jobs.kernels.codes.inputs import drawn, redraw, synthetic

DEVICE = "cpu"
NAMES = [name for name in FORMS.names() if DEVICE in FORMS.get(name).devices]
EXACT = [name for name in NAMES if FORMS.get(name).rounding == "input"]
each_form = pytest.mark.parametrize("name", NAMES)
each_exact_form = pytest.mark.parametrize("name", EXACT)
each_product = pytest.mark.parametrize("product", PRODUCTS)


def pattern_of(pairs, rows, latents):
    row, latent = zip(*pairs, strict=True) if pairs else ((), ())
    return Pattern(torch.tensor(row).long(), torch.tensor(latent).long(), rows, latents)


def case_of(kind):
    counts = torch.tensor([0, 3, 1, 0, 7, 2, 0])
    made = {
        "odd sizes": lambda: synthetic(Shape(rows=37, width=29, latents=53, pairs=37 * 5 + 3)),
        "uniform": lambda: synthetic(Shape(rows=16, width=64, latents=128, pairs=64), exponent=0.0),
        "rows without pairs": lambda: drawn(redraw(counts, 11, exponent=1.0, seed=0), 8, seed=0),
        "no pairs": lambda: drawn(pattern_of([], 5, 9), 6, seed=0),
        "one row, one latent, one column": lambda: drawn(pattern_of([(0, 0)], 1, 1), 1, seed=0),
        "every pair": lambda: synthetic(Shape(rows=6, width=5, latents=7, pairs=42)),
        "a pair that repeats": lambda: drawn(
            pattern_of([(0, 2), (0, 2), (1, 0), (1, 3), (1, 3), (1, 3)], 3, 5), 4, seed=0
        ),
        "a latent in every row": lambda: drawn(
            pattern_of([(r, c) for r in range(300) for c in (1, 4)], 300, 6), 16, seed=0
        ),
        "no rows": lambda: drawn(pattern_of([], 0, 4), 3, seed=0),
    }
    return made[kind]()


CASES = (
    "odd sizes", "uniform", "rows without pairs", "no pairs", "one row, one latent, one column", "every pair",
    "a pair that repeats", "a latent in every row", "no rows",
)  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
@each_product
@each_form
def test_a_form_errs_no_more_than_the_plain_product_and_repeats_to_the_bit(name, product, kind):
    form = FORMS.get(name)()
    found = check(products()[product], form, case_of(kind), rounding=form.rounding)
    assert found.passed, found.reason


@each_product
@each_exact_form
def test_the_result_has_the_dtype_of_the_input_and_is_exact_in_it(name, product):
    case = case_of("odd sizes").to(torch.float64)
    found = run(product, FORMS.get(name)(), case)
    assert found.dtype == torch.float64
    assert torch.allclose(found, products()[product].reference(case), rtol=1e-13, atol=1e-13)


@each_exact_form
def test_gradients_through_a_form_are_those_of_the_dense_code(name):
    """Decoding and encoding as training runs them, against autograd over the dense matrix, float64."""
    case, form = case_of("rows without pairs").to(torch.float64), FORMS.get(name)()
    value, w, x = (t.clone().requires_grad_() for t in (case.value, case.w, case.x))
    b = torch.zeros(len(w), dtype=torch.float64, requires_grad=True)
    goal = torch.randn(case.x.shape, generator=torch.Generator().manual_seed(1)).double()
    row, latent = case.pattern.row, case.pattern.latent

    def dense_decode():
        flat = row * len(w) + latent
        z = torch.zeros(len(x) * len(w), dtype=torch.float64).index_put((flat,), value)
        return z.view(len(x), len(w)) @ w

    ours = torch.autograd.grad(
        ((decode(value, w, case.pattern, form) - goal) ** 2).sum(), (value, w)
    )
    theirs = torch.autograd.grad(((dense_decode() - goal) ** 2).sum(), (value, w))
    pre = pre_activations(x, w, b, case.pattern, form)
    ours += torch.autograd.grad((pre**3).sum(), (x, w, b))
    dense = (x @ w.t() + b)[row, latent]
    theirs += torch.autograd.grad((dense**3).sum(), (x, w, b))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


@each_exact_form
def test_the_products_pass_autograds_own_check(name):
    case, form = case_of("rows without pairs").to(torch.float64), FORMS.get(name)()
    value, w, x = (t.requires_grad_() for t in (case.value, case.w, case.x))
    b = torch.zeros(len(w), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, w: decode(v, w, case.pattern, form), (value, w))
    assert torch.autograd.gradcheck(
        lambda x, w, b: pre_activations(x, w, b, case.pattern, form), (x, w, b)
    )


@each_product
@each_form
def test_inputs_need_not_be_contiguous_nor_without_gradient(name, product):
    case, form = case_of("odd sizes"), FORMS.get(name)()
    strided = {
        "value": case.value.repeat_interleave(2)[::2],
        "w": case.w.t().contiguous().t().requires_grad_(),
        "x": torch.stack([case.x, case.x], dim=2)[..., 0].requires_grad_(),
    }
    with torch.no_grad():
        found = run(product, form, Case(pattern=case.pattern, **strided))
    assert torch.allclose(found, run(product, form, case), rtol=1e-6, atol=1e-6)
    assert not found.requires_grad


@pytest.mark.parametrize("name", [name for name in EXACT if not FORMS.get(name).dense])
def test_sparse_forms_never_touch_weights_that_no_pair_uses(name):
    case = case_of("rows without pairs")
    unused = torch.ones(len(case.w), dtype=torch.bool)
    unused[case.pattern.latent] = False
    assert bool(unused.any())
    case.w[unused] = torch.nan
    form = FORMS.get(name)()
    with poisoned():
        assert bool(torch.isfinite(form.gather_sum(case.pattern, case.value, case.w)).all())
        assert bool(torch.isfinite(form.dots(case.pattern, case.x, case.w)).all())


class Wrong:
    """Forms with one fault each, to see the gate shut."""

    def __init__(self, fault):
        self.fault, self.plain, self.calls = fault, FORMS.get("bags")(), 0

    def gather_sum(self, pattern, value_N, w_LD):
        found = self.plain.gather_sum(pattern, value_N, w_LD)
        self.calls += 1
        if self.fault == "unwritten":
            return torch.cat([found[:-1], torch.empty_like(found[-1:])])
        if self.fault == "noisy":
            return found * (1 + 1e-7 * self.calls)
        return found * (1 + 1e-4) if self.fault == "off" else found.bfloat16().float()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("unwritten", "not finite"),
        ("noisy", "other bits"),
        ("off", "allowed"),
        ("rounded", "allowed"),
    ],
)
def test_the_gate_shuts(fault, said):
    found = check(products()["gather_sum"], Wrong(fault), case_of("odd sizes"))
    assert not found.passed
    assert said in found.reason


@each_product
def test_the_reference_is_the_sum_over_pairs(product):
    """Pair by pair in float64: the definition itself."""
    case = case_of("odd sizes").to(torch.float64)
    pattern = case.pattern
    out = {
        "gather_sum": torch.zeros_like(case.x),
        "scatter_sum": torch.zeros_like(case.w),
        "dots": torch.zeros_like(case.value),
    }[product]
    for n, (r, c) in enumerate(zip(pattern.row.tolist(), pattern.latent.tolist(), strict=True)):
        if product == "gather_sum":
            out[r] += case.value[n] * case.w[c]
        elif product == "scatter_sum":
            out[c] += case.value[n] * case.x[r]
        else:
            out[n] = (case.x[r] * case.w[c]).sum()
    op = products()[product]
    assert torch.allclose(op.reference(case), out, rtol=1e-12, atol=1e-12)
    assert bool((op.magnitude(case) >= out.abs() - 1e-12).all())


def test_bytes_and_operations_are_counted_as_stated():
    shape = Shape(rows=100, width=64, latents=1000, pairs=3200)
    assert shape.ratio == 31.25
    assert shape.sparse_terms * shape.ratio == shape.dense_terms == 100 * 1000 * 64
    ops = products()
    assert ops["gather_sum"].bytes(shape, latents_hit=500) == 12 * 3200 + 4 * 64 * 600
    assert ops["dots"].bytes(shape, latents_hit=500) == 12 * 3200 + 4 * 64 * 600
    assert ops["scatter_sum"].bytes(shape, latents_hit=500) == 12 * 3200 + 4 * 64 * 1100
