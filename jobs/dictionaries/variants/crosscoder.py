"""Crosscoder: one code for several layers, or for the same layer of several models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jobs.batches import Widths
from jobs.dictionaries.activations import activation, check_activation
from jobs.dictionaries.contract import VARIANTS, check_sizes, require
from jobs.dictionaries.dictionary import Dictionary
from jobs.dictionaries.losses.auxk import auxk
from jobs.dictionaries.losses.nmse import nmse
from jobs.dictionaries.scores import BySourceNorms, Raw

NORMS = ("whole", "sum")


@VARIANTS.register("crosscoder")
@dataclass(frozen=True, kw_only=True, slots=True)
class Crosscoder:
    """Reads several columns of a row at once and rebuilds each from one code.

    ``π = Σ_s (x_s − b_dec,s) W_enc,s + b_enc``, ``x̂_s = f W_dec,s + b_dec,s``; loss ``NMSE`` over the columns side by
    side, each scaled to a mean square of 1, ``+ aux_weight · AuxK``. With ``activation="relu"`` norms are free and the
    penalty is ``l1_weight · Σ f_i Σ_s ‖d_i,s‖``, so a latent of one column alone is cheap; else a latent's row over all
    columns has norm 1. Which column a latent is of: the relative norm of its share.

    Notes
    -----
    Source: Anthropic, "Sparse Crosscoders for Cross-Layer Features and Model Diffing", October 2024; the BatchTopK form:
    Minder et al., "Robustly identifying concepts introduced during chat fine-tuning" (2504.02922). Deviations: rows are
    centred; the L1 weight is steered.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"columns"})

    latents: int
    """Number of latents, >= 1."""
    k: int
    """Mean active latents of a row, in [1, latents]."""
    activation: str = "batch_topk"
    """``batch_topk``, ``topk``, or ``relu`` with an L1 penalty steered to k."""
    norms: str = "whole"
    """What a code is multiplied by where codes are compared: ``whole``, the norm over all columns, which is 1; or
    ``sum``, the sum of the norms of its shares, which favours latents of many columns."""
    l1_weight: float = 0.05
    """Weight of that penalty before it is steered, >= 0."""
    aux_weight: float = 1 / 32
    """Weight of the AuxK loss, >= 0."""

    def __post_init__(self) -> None:
        check_sizes(
            "crosscoder", latents=self.latents, k=self.k, aux_weight=self.aux_weight, l1_weight=self.l1_weight
        )  # fmt: skip
        check_activation(self.activation)
        require("norms", self.norms, f"one of {', '.join(NORMS)}", holds=self.norms in NORMS)

    def build(self, widths: int | Widths, *, seed: int) -> Dictionary:
        """Return a fresh dictionary for rows of these widths."""
        chosen = activation(self.activation, self.k, self.l1_weight)
        return Dictionary(
            widths,
            self.latents,
            sparsifier=chosen.sparsifier,
            penalty=chosen.penalty,
            losses=((1.0, nmse), (self.aux_weight, auxk)),
            unit=chosen.penalty is None,
            score=BySourceNorms() if self.norms == "sum" else Raw(),
            seed=seed,
        )
