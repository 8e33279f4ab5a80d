"""Matryoshka: the first latents must do well alone, so that general ones stay general."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jobs.batches import Widths
from jobs.dictionaries.contract import VARIANTS, check_sizes, require
from jobs.dictionaries.dictionary import Dictionary
from jobs.dictionaries.losses.auxk import auxk
from jobs.dictionaries.losses.nmse import nmse
from jobs.dictionaries.sparsifiers.batch_topk import BatchTopK


@VARIANTS.register("matryoshka")
@dataclass(frozen=True, kw_only=True, slots=True)
class Matryoshka:
    """BatchTopK whose growing prefixes of latents must each rebuild the rows.

    One BatchTopK mask over all latents; ``x̂_g`` decodes those below the g-th bound; loss
    ``mean_g NMSE(x, x̂_g) + aux_weight · AuxK`` of the whole; unit decoder rows.

    Notes
    -----
    Source: Bussmann et al., "Learning Multi-Level Features with Matryoshka Sparse Autoencoders" (2503.17547). The mean
    over prefixes, not their sum, so AuxK weighs as it does elsewhere; no term of ``b_dec`` alone.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    latents: int
    """Number of latents, >= 1."""
    k: int
    """Mean active latents of a row, in [1, latents]."""
    shares: tuple[float, ...] = (1 / 32, 3 / 32, 7 / 32, 15 / 32)
    """Bounds of the prefixes below the whole, rising shares of the latents in (0, 1)."""
    aux_weight: float = 1 / 32
    """Weight of the AuxK loss, >= 0."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", tuple(self.shares))
        check_sizes("matryoshka", latents=self.latents, k=self.k, aux_weight=self.aux_weight)
        rising = list(self.shares) == sorted(set(self.shares))
        inside = all(0 < share < 1 for share in self.shares)
        require("shares", self.shares, "rising, each in (0, 1)", holds=rising and inside)

    def build(self, widths: int | Widths, *, seed: int) -> Dictionary:
        """Return a fresh dictionary for rows of these widths."""
        bounds = sorted({max(1, round(share * self.latents)) for share in self.shares})
        return Dictionary(
            widths,
            self.latents,
            sparsifier=BatchTopK(self.k),
            losses=((1.0, nmse), (self.aux_weight, auxk)),
            prefixes=[bound for bound in bounds if bound < self.latents],
            seed=seed,
        )
