"""The gate before any timing: a form errs no more than the plain product, plus what its own rounding explains.

Truth is float64. Every entry of a product sums n terms; rounding them in another order moves it by at most
``n·u·Σ|terms|`` with u half the spacing of float32 at 1 (Higham, Accuracy and Stability of Numerical Algorithms,
section 4.2). Rounding both factors and the result to bfloat16 adds ``3·u'·Σ|terms|`` with u' that of bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jobs.codes import CodeOps
from jobs.kernels.codes.contract import Case, run

HALF_SPACING = {name: torch.finfo(getattr(torch, name)).eps / 2 for name in ("float32", "bfloat16")}
ROUNDED = 3
"""Roundings of a term to bfloat16: two factors and the result."""
TINY = 1e-30
"""Where every term is 0, results must be 0 but for this."""


@dataclass(frozen=True, slots=True)
class Check:
    """How a form's result compares with the truth."""

    rel_err: float
    """‖result − truth‖ / ‖truth‖, Frobenius."""
    plain_rel_err: float
    """The same of the dense product in the working dtype."""
    excess: float
    """Largest error over what is allowed, entry by entry: at most 1 where the form is right."""
    finite: bool
    """Whether the result holds numbers only."""
    repeats: bool
    """Whether a second call gave the same bits."""

    @property
    def passed(self) -> bool:
        """Whether the form may be timed."""
        return self.finite and self.repeats and self.excess <= 1.0

    @property
    def reason(self) -> str:
        """What is wrong; empty where nothing is."""
        if not self.finite:
            return "result is not finite"
        if not self.repeats:
            return "a second call gave other bits"
        return "" if self.passed else f"error {self.excess:.3g} times what is allowed"


def check(op: Any, form: CodeOps, case: Case, *, rounding: str = "input") -> Check:
    """Compare one product of a form with the truth, outputs poisoned.

    Parameters
    ----------
    op
        The operation (``contract.Product``).
    case
        Inputs in float32.
    rounding
        The form's: ``input`` or ``bfloat16``.
    """
    truth = op.reference(case.to(torch.float64))
    plain = op.reference(case).double()
    with poisoned():
        found = run(op.product, form, case)
        again = run(op.product, form, case)
    error = (found.double() - truth).abs()
    allowed = (plain - truth).abs().max() if truth.numel() else truth.new_zeros(())
    allowed = allowed + _moved(op, case, rounding)
    return Check(
        rel_err=_relative(found.double() - truth, truth),
        plain_rel_err=_relative(plain - truth, truth),
        excess=float((error / (allowed + TINY)).max()) if truth.numel() else 0.0,
        finite=bool(torch.isfinite(found).all()),
        repeats=torch.equal(found, again),
    )


def _moved(op: Any, case: Case, rounding: str) -> Tensor:
    """Return how far rounding may move each entry of a product."""
    share = HALF_SPACING["float32"] * op.terms(case).double()
    if rounding == "bfloat16":
        share = share + ROUNDED * HALF_SPACING["bfloat16"]
    moved: Tensor = share * op.magnitude(case.to(torch.float64))
    return moved


def _relative(difference: Tensor, truth: Tensor) -> float:
    return float(difference.norm() / truth.norm().clamp(min=TINY))


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill fresh memory with NaN, so that an entry nobody wrote is noticed."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=before)
