"""g-SAE: latents are kept for their size and for what they do to the model's loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jobs.batches import Widths
from jobs.dictionaries.contract import VARIANTS, check_sizes
from jobs.dictionaries.dictionary import Dictionary
from jobs.dictionaries.losses.auxk import auxk
from jobs.dictionaries.losses.nmse import nmse
from jobs.dictionaries.scores import ByGradient
from jobs.dictionaries.sparsifiers.row_topk import RowTopK


@VARIANTS.register("g_sae")
@dataclass(frozen=True, kw_only=True, slots=True)
class GSae:
    """TopK that chooses by ``z + β z|g·d|``: the code, and the first-order effect of removing it.

    ``z = ReLU(π)``, ``g`` the gradient of the model's summed loss by the row, ``d`` the decoder's row. Values, losses
    and inference are TopK's; weight 0 is TopK bit for bit.

    Notes
    -----
    Source: Olmo et al., "Features that Make a Difference" (2411.10397). Deviation: ``β`` is normalised, see
    ``ByGradient``. Selection sees the label through ``g``, so downstream figures are to be taken with plain selection,
    which is what is exported.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gradient"})

    latents: int
    """Number of latents, >= 1."""
    k: int
    """Active latents of a row, in [1, latents]."""
    weight: float = 1.0
    """How much effects weigh beside sizes, >= 0."""
    aux_weight: float = 1 / 32
    """Weight of the AuxK loss, >= 0."""

    def __post_init__(self) -> None:
        check_sizes(
            "g_sae", latents=self.latents, k=self.k, aux_weight=self.aux_weight, weight=self.weight
        )  # fmt: skip

    def build(self, widths: int | Widths, *, seed: int) -> Dictionary:
        """Return a fresh dictionary for rows of these widths."""
        return Dictionary(
            widths,
            self.latents,
            sparsifier=RowTopK(self.k),
            losses=((1.0, nmse), (self.aux_weight, auxk)),
            score=ByGradient(self.weight),
            seed=seed,
        )
