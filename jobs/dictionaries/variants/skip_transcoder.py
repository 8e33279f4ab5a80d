"""Skip transcoder: a transcoder with a straight line past its latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jobs.batches import Widths
from jobs.dictionaries.activations import activation, check_activation
from jobs.dictionaries.contract import VARIANTS, check_sizes
from jobs.dictionaries.dictionary import Dictionary
from jobs.dictionaries.losses.auxk import auxk
from jobs.dictionaries.losses.nmse import nmse


@VARIANTS.register("skip_transcoder")
@dataclass(frozen=True, kw_only=True, slots=True)
class SkipTranscoder:
    """A transcoder plus an affine map: ``ŷ = f(x) W_dec + x W_skip + b_dec``; what is linear takes no latents.

    ``π = x W_enc + b_enc``; loss ``NMSE(y) + aux_weight · AuxK``; ``W_dec`` and ``W_skip`` start at 0, ``b_dec`` at
    the mean of y; free decoder norms.

    Notes
    -----
    Source: Paulo, Shabalin, Belrose, "Transcoders Beat Sparse Autoencoders for Interpretability" (2501.18823), with its
    activation at ``activation="topk"``. Deviation: BatchTopK unless asked otherwise.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"target"})

    latents: int
    """Number of latents, >= 1."""
    k: int
    """Mean active latents of a row, in [1, latents]."""
    activation: str = "batch_topk"
    """``batch_topk``, ``topk``, or ``relu`` with an L1 penalty steered to k."""
    l1_weight: float = 0.05
    """Weight of that penalty before it is steered, >= 0."""
    aux_weight: float = 1 / 32
    """Weight of the AuxK loss, >= 0."""

    def __post_init__(self) -> None:
        check_sizes(
            "skip_transcoder", latents=self.latents, k=self.k, aux_weight=self.aux_weight, l1_weight=self.l1_weight
        )  # fmt: skip
        check_activation(self.activation)

    def build(self, widths: int | Widths, *, seed: int) -> Dictionary:
        """Return a fresh dictionary for rows of these widths."""
        chosen = activation(self.activation, self.k, self.l1_weight)
        return Dictionary(
            widths,
            self.latents,
            sparsifier=chosen.sparsifier,
            penalty=chosen.penalty,
            losses=((1.0, nmse), (self.aux_weight, auxk)),
            centred=False,
            unit=False,
            tied=False,
            skip=True,
            seed=seed,
        )
