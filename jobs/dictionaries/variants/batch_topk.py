"""BatchTopK: a fixed number of active latents in every batch, shared out by need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jobs.batches import Widths
from jobs.dictionaries.contract import VARIANTS, check_sizes
from jobs.dictionaries.dictionary import Dictionary
from jobs.dictionaries.losses.auxk import auxk
from jobs.dictionaries.losses.nmse import nmse
from jobs.dictionaries.sparsifiers import batch_topk


@VARIANTS.register("batch_topk")
@dataclass(frozen=True, kw_only=True, slots=True)
class BatchTopK:
    """Keeps the R·k largest latents of a batch of R rows.

    ``f = M ⊙ ReLU(π)`` with M the R·k largest entries of ``π = (x − b_dec) W_enc + b_enc`` over the
    batch; loss ``NMSE + aux_weight · AuxK``; unit decoder rows. A hard row gets more latents.

    Notes
    -----
    Source: Bussmann, Leask, Nanda, "BatchTopK Sparse Autoencoders" (2412.06410). The exported threshold
    is set on training rows with the final weights, not taken from the running mean.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    latents: int
    """Number of latents, >= 1."""
    k: int
    """Mean active latents of a row, in [1, latents]."""
    aux_weight: float = 1 / 32
    """Weight of the AuxK loss, >= 0."""

    def __post_init__(self) -> None:
        check_sizes("batch_topk", latents=self.latents, k=self.k, aux_weight=self.aux_weight)

    def build(self, widths: int | Widths, *, seed: int) -> Dictionary:
        """Return a fresh dictionary for rows of these widths."""
        return Dictionary(
            widths,
            self.latents,
            sparsifier=batch_topk.BatchTopK(self.k),
            losses=((1.0, nmse), (self.aux_weight, auxk)),
            seed=seed,
        )
