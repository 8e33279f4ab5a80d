"""MinFire: BatchTopK that lets no latent die."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jobs.batches import Widths
from jobs.dictionaries.contract import VARIANTS, check_sizes, require
from jobs.dictionaries.dictionary import Dictionary
from jobs.dictionaries.losses.nmse import nmse
from jobs.dictionaries.sparsifiers.minfire import MinFire


@VARIANTS.register("minfire")
@dataclass(frozen=True, kw_only=True, slots=True)
class MinFireBatchTopK:
    """BatchTopK in which one latent in ``period``, in turn, keeps its strongest row whatever the others score.

    The budget of R·k pairs stays what it is; nothing is guaranteed in the last tenth of the run. Loss ``NMSE``; unit
    decoder rows.

    Notes
    -----
    Source: the MinFire option of SAELens (6.51 and later).
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    latents: int
    """Number of latents, >= 1."""
    k: int
    """Mean active latents of a row, in [1, latents]."""
    period: int | None = None
    """Steps in which every latent has its turn, >= 0; None: the fewest for which guarantees take at most 70 % of a
    batch's budget; 0: no guarantees."""

    def __post_init__(self) -> None:
        check_sizes("minfire", latents=self.latents, k=self.k)
        legal = self.period is None or self.period >= 0
        require("period", self.period, ">= 0 or null", holds=legal)

    def check_batch(self, rows: int) -> None:
        """Refuse a period whose guarantees alone are more than a batch's budget of ``rows · k`` pairs."""
        least = -(-self.latents // (rows * self.k))
        fits = not self.period or self.period >= least
        legal = f">= {least}, or {self.latents} latents have more turns than {rows} rows times k {self.k} have pairs"
        require("period", self.period, legal, holds=fits)

    def build(self, widths: int | Widths, *, seed: int) -> Dictionary:
        """Return a fresh dictionary for rows of these widths."""
        return Dictionary(
            widths,
            self.latents,
            sparsifier=MinFire(self.k, self.period),
            losses=((1.0, nmse),),
            seed=seed,
        )
