"""Code products by embedding bags: the plain form, everywhere and in every dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jobs.codes import Pattern, PlainCodeOps
from jobs.kernels.codes.contract import FORMS, PRODUCTS

if TYPE_CHECKING:
    from torch import Tensor

_PLAIN = PlainCodeOps()


@FORMS.register("bags")
@dataclass(frozen=True, kw_only=True, slots=True)
class Bags:
    """``PlainCodeOps``: one gather per pair, sums in the order of rows or of latents.

    Sums over rows and latents run at 60 GB/s on one core while the gathered table fits the cache; a product with
    MKL's sparse matrices (``torch.sparse_csr_tensor @ dense``) took 1.5 to 3 times as long at widths 384 and
    k 32 to 128, so there is no form of that (R 2048, L 1024 to 16384, AMD EPYC with AVX512, November 2026).
    """

    kind: ClassVar[str]
    dense: ClassVar[bool] = False
    rounding: ClassVar[str] = "input"
    products: ClassVar[tuple[str, ...]] = PRODUCTS
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def gather_sum(self, pattern: Pattern, value_N: Tensor, w_LD: Tensor) -> Tensor:
        """Return ``z_RL @ w_LD``, [R, D]."""
        return _PLAIN.gather_sum(pattern, value_N, w_LD)

    def scatter_sum(self, pattern: Pattern, value_N: Tensor, x_RD: Tensor) -> Tensor:
        """Return ``z_RL.T @ x_RD``, [L, D]."""
        return _PLAIN.scatter_sum(pattern, value_N, x_RD)

    def dots(self, pattern: Pattern, x_RD: Tensor, w_LD: Tensor) -> Tensor:
        """Return ``(x_RD @ w_LD.T)[row, latent]``, [N]."""
        return _PLAIN.dots(pattern, x_RD, w_LD)
