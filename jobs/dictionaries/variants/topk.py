"""TopK: a fixed number of active latents in every row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jobs.batches import Widths
from jobs.dictionaries.contract import VARIANTS, check_sizes
from jobs.dictionaries.dictionary import Dictionary
from jobs.dictionaries.losses.auxk import auxk
from jobs.dictionaries.losses.nmse import nmse
from jobs.dictionaries.sparsifiers.row_topk import RowTopK


@VARIANTS.register("topk")
@dataclass(frozen=True, kw_only=True, slots=True)
class TopK:
    """Keeps the k largest latents of each row.

    ``f = ReLU(M ⊙ π)`` with M the k largest of ``π = (x − b_dec) W_enc + b_enc`` in each row;
    loss ``NMSE + aux_weight · AuxK``; unit decoder rows.

    Notes
    -----
    Source: Gao et al., "Scaling and Evaluating Sparse Autoencoders" (2406.04093). Exported with one
    threshold for all latents, set so that the mean number of active latents is k, instead of per-row k.
    On rows that differ in difficulty that explains more (planted rows, A1: FVU .108 against .144 with
    per-row k), on a language model's about as much (.1006, .1001); with few latents that compete
    closely it can explain much less, so compare both with ``evaluate.TrainingMode`` there.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    latents: int
    """Number of latents, >= 1."""
    k: int
    """Active latents of a row, in [1, latents]."""
    aux_weight: float = 1 / 32
    """Weight of the AuxK loss, >= 0."""

    def __post_init__(self) -> None:
        check_sizes("topk", latents=self.latents, k=self.k, aux_weight=self.aux_weight)

    def build(self, widths: int | Widths, *, seed: int) -> Dictionary:
        """Return a fresh dictionary for rows of these widths."""
        return Dictionary(
            widths,
            self.latents,
            sparsifier=RowTopK(self.k),
            losses=((1.0, nmse), (self.aux_weight, auxk)),
            seed=seed,
        )
