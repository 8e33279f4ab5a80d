"""What operations on sparse codes and their fast forms agree on.

An operation says what is computed and what that costs at least; a form says how. Three products of a code
(decode, its gradient by weights, values at pairs) are each one method of ``CodeOps``, so that every form of
them can be handed to whoever takes ``ops=``; the encoders choose which pairs there are.

Dimensions: R rows, D width, L latents, N active (row, latent) pairs, K kept a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from jobs.codes import CodeOps, Pattern
from store.registry import Registry

OPS: Registry = Registry("operation", "jobs.kernels.ops")
FORMS: Registry = Registry("form of the code products", "jobs.kernels.impls")

PRODUCTS = ("gather_sum", "scatter_sum", "dots")
"""The methods of ``CodeOps``: decoding, a weight's gradient, values at pairs."""

Encoder = Callable[[Tensor, Tensor, Tensor, int], Pattern]
"""``encoder(x_RD, w_LD, b_L, k)`` returns the pairs an encoder keeps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The size of one product: R rows of width D, L latents, N pairs."""

    rows: int
    width: int
    latents: int
    pairs: int

    @property
    def ratio(self) -> float:
        """L/k with k the mean pairs of a row: how many times more a dense product multiplies."""
        return self.rows * self.latents / max(self.pairs, 1)

    @property
    def sparse_terms(self) -> int:
        """Multiply-adds over the pairs, N·D."""
        return self.pairs * self.width

    @property
    def dense_terms(self) -> int:
        """Multiply-adds of the dense product, R·L·D."""
        return self.rows * self.latents * self.width


@dataclass(frozen=True, kw_only=True)
class Case:
    """Inputs of the products: a pattern, its values [N], weights [L, D], rows [R, D]; one dtype."""

    pattern: Pattern
    value: Tensor
    w: Tensor
    x: Tensor

    @property
    def shape(self) -> Shape:
        """The size of it."""
        rows, width = self.x.shape
        return Shape(rows=rows, width=width, latents=len(self.w), pairs=len(self.pattern.row))

    def to(self, dtype: torch.dtype) -> Case:
        """Return the same case in another dtype."""
        tensors = {name: getattr(self, name).to(dtype) for name in ("value", "w", "x")}
        return Case(pattern=self.pattern, **tensors)

    def magnitudes(self) -> Case:
        """Return the same case with all values replaced by their absolute values."""
        tensors = {name: getattr(self, name).abs() for name in ("value", "w", "x")}
        return Case(pattern=self.pattern, **tensors)

    def dense(self) -> Tensor:
        """Return the code as a matrix; pairs that repeat add up. For references and few rows."""
        pattern = self.pattern
        flat = pattern.row * pattern.latents + pattern.latent
        z = self.value.new_zeros(pattern.rows * pattern.latents)
        return z.index_add_(0, flat, self.value).view(pattern.rows, pattern.latents)


class Product(Protocol):
    """An operation that is one method of ``CodeOps``."""

    kind: ClassVar[str]
    product: ClassVar[str]
    """Which of ``PRODUCTS``."""

    def reference(self, case: Case) -> Tensor:
        """Return the result by autograd or matrix product over the dense code, in the case's dtype."""
        ...

    def magnitude(self, case: Case) -> Tensor:
        """Return, for every entry of the result, the sum of its terms' absolute values."""
        ...

    def terms(self, case: Case) -> Tensor:
        """Return how many terms every entry of the result sums, broadcastable against it."""
        ...

    def bytes(self, shape: Shape, *, latents_hit: int) -> int:
        """Return the bytes of float32 that have to move once: inputs that are touched, and the result."""
        ...


class Form(CodeOps, Protocol):
    """A registered way of computing the three products."""

    kind: ClassVar[str]
    dense: ClassVar[bool]
    """Whether its cost follows R·L·D, not N·D."""
    rounding: ClassVar[str]
    """``input``: products in the dtype of the input; ``bfloat16``: factors are rounded to it first."""
    products: ClassVar[tuple[str, ...]]
    """Methods it brings a way of its own for; the others are those of the plain form."""
    devices: ClassVar[tuple[str, ...]]
    """Device types it runs on."""


def run(product: str, ops: CodeOps, case: Case) -> Tensor:
    """Call one of the ``PRODUCTS`` of ``ops`` on a case."""
    if product == "dots":
        return ops.dots(case.pattern, case.x, case.w)
    if product == "gather_sum":
        return ops.gather_sum(case.pattern, case.value, case.w)
    return ops.scatter_sum(case.pattern, case.value, case.x)


def products() -> Mapping[str, Any]:
    """Return the operations that are products, by method name."""
    found = [OPS.get(name)() for name in OPS.names() if hasattr(OPS.get(name), "product")]
    return {op.product: op for op in found}
