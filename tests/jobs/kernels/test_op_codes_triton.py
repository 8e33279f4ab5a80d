"""The Triton form in Triton's interpreter, in a process of its own: it has to be switched on before the import."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from jobs.codes import Pattern
from jobs.errors import JobError
from jobs.kernels.codes.contract import FORMS, PRODUCTS, Shape, run
from jobs.kernels.codes.inputs import synthetic
from jobs.kernels.impls.sparse_decode_triton import _pieces

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs the package triton"
)

CODE = """
import torch
from jobs.codes import Pattern
from jobs.kernels.codes.check import check, poisoned
from jobs.kernels.codes.contract import FORMS, PRODUCTS, Shape, products, run
from jobs.kernels.codes.inputs import drawn, redraw, synthetic

form = FORMS.get("triton")(block=16, rows=4, piece_pairs=5)
none = Pattern(torch.zeros(0).long(), torch.zeros(0).long(), 3, 4)
twice = Pattern(torch.tensor([0, 0, 2]), torch.tensor([3, 3, 1]), 3, 4)
cases = {
    "odd sizes": synthetic(Shape(rows=19, width=29, latents=23, pairs=101)),
    "one column": synthetic(Shape(rows=5, width=1, latents=7, pairs=11)),
    "rows without pairs": drawn(redraw(torch.tensor([0, 3, 0, 7, 1]), 11, exponent=1.0, seed=0), 20, seed=0),
    "no pairs": drawn(none, 6, seed=0),
    "a pair that repeats": drawn(twice, 6, seed=0),
    "a latent in every row": synthetic(Shape(rows=40, width=8, latents=3, pairs=80)),
}
for name, case in cases.items():
    for product in PRODUCTS:
        found = check(products()[product], form, case)
        assert found.passed, (name, product, found)
        halves = run(product, form, case.to(torch.float16))
        assert halves.dtype == torch.float16
        truth = products()[product].reference(case.to(torch.float16).to(torch.float64))
        assert torch.allclose(halves.double(), truth, rtol=4e-3, atol=4e-3), (name, product)
strided = synthetic(Shape(rows=6, width=12, latents=9, pairs=20))
x = torch.stack([strided.x, strided.x], dim=2)[..., 0]
plain = form.dots(strided.pattern, strided.x, strided.w)
assert torch.equal(form.dots(strided.pattern, x, strided.w.t().contiguous().t()), plain)
# The pieces of a popular latent cancel, and each alone is beyond float16.
n = 40
loud = Pattern(torch.arange(n), torch.zeros(n).long(), n, 2)
value = torch.full((n,), 2.0, dtype=torch.float16)
value[n // 2 :] = -2.0
wide = torch.full((n, 6), 10_000.0, dtype=torch.float16)
assert (form.scatter_sum(loud, value, wide) == 0).all()
unused = torch.ones(9, dtype=torch.bool)
unused[strided.pattern.latent] = False
strided.w[unused] = torch.nan
assert torch.isfinite(form.gather_sum(strided.pattern, strided.value, strided.w)).all()
print("all right")
"""


@needs_triton
@pytest.mark.slow
def test_the_interpreter_gives_what_the_operations_say():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("all right")


COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from jobs.kernels.impls import sparse_decode_triton as module

segment_sum, pair_dots = module._kernels()
for float_ in ("*fp32", "*fp16", "*bf16"):
    signatures = {
        segment_sum: {"out": float_, "table": float_, "index": "*i64", "value": float_, "starts": "*i64",
                      "ends": "*i64", "width": "i32", "WEIGHTED": "constexpr", "BLOCK": "constexpr",
                      "ROWS": "constexpr"},
        pair_dots: {"out": float_, "left": float_, "right": float_, "left_index": "*i64", "right_index": "*i64",
                    "pairs": "i32", "width": "i32", "BLOCK": "constexpr", "PAIRS": "constexpr"},
    }
    constants = {"WEIGHTED": True, "BLOCK": 512, "ROWS": 8, "PAIRS": 8}
    for kernel, signature in signatures.items():
        held = {name: constants[name] for name, kind in signature.items() if kind == "constexpr"}
        found = compile(ASTSource(kernel, signature, constexprs=held), target=GPUTarget("cuda", 90, 32))
        assert found.asm["cubin"]
print("all right")
"""


@needs_triton
@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu_that_is_not_there():
    """What the interpreter accepts the compiler may not: annotations, dtypes, shapes."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILED],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="triton is installed")
@pytest.mark.parametrize("product", PRODUCTS)
def test_without_the_package_the_form_says_what_to_install(product):
    case = synthetic(Shape(rows=3, width=4, latents=5, pairs=6))
    with pytest.raises(JobError, match=r"missing-package.*actlake\[gpu\]"):
        run(product, FORMS.get("triton")(), case)


def test_pieces_cover_every_pair_once_and_every_latent():
    latent = torch.tensor([0] * 11 + [2] * 5 + [3])
    pattern = Pattern(torch.arange(17), latent, 17, 5)
    _, _, starts_L = pattern.by_latent
    starts, ends, pieces = _pieces(starts_L, 17, 5)
    assert pieces.tolist() == [3, 1, 1, 1, 1]
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == [
        (0, 5), (5, 10), (10, 11), (11, 11), (11, 16), (16, 17), (17, 17),
    ]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("product", PRODUCTS)
def test_on_a_device_the_form_is_right_and_repeats_to_the_bit(product):
    case = synthetic(Shape(rows=2048, width=384, latents=4096, pairs=65536))
    pattern = Pattern(case.pattern.row.cuda(), case.pattern.latent.cuda(), 2048, 4096)
    on_device = type(case)(
        pattern=pattern, value=case.value.cuda(), w=case.w.cuda(), x=case.x.cuda()
    )
    form = FORMS.get("triton")()
    found = run(product, form, on_device)
    assert torch.allclose(
        found.cpu(), run(product, FORMS.get("bags")(), case), rtol=1e-4, atol=1e-4
    )
    assert all(torch.equal(found, run(product, form, on_device)) for _ in range(20))


@pytest.mark.parametrize("product", PRODUCTS)
def test_float64_is_refused_where_it_would_be_rounded_without_a_word(product):
    case = synthetic(Shape(rows=4, width=3, latents=5, pairs=6)).to(torch.float64)
    with pytest.raises(JobError, match="dtype-mismatch"):
        run(product, FORMS.get("triton")(), case)
