"""JumpReLU: every latent learns its own threshold, and the number of active ones is penalised itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from jobs.batches import Widths
from jobs.dictionaries.contract import VARIANTS, check_sizes, require
from jobs.dictionaries.dictionary import Dictionary
from jobs.dictionaries.losses.auxk import auxk
from jobs.dictionaries.losses.l0 import l0
from jobs.dictionaries.losses.nmse import nmse
from jobs.dictionaries.losses.pre_act import pre_act
from jobs.dictionaries.penalty import Penalty
from jobs.dictionaries.sparsifiers.jump import Jump


@VARIANTS.register("jumprelu")
@dataclass(frozen=True, kw_only=True, slots=True)
class JumpRelu:
    """Keeps latents above thresholds of their own, which learn by a smoothed step.

    ``f = π·1[π > θ]``, loss ``NMSE + l0_weight/k · mean Σ 1[π_i > θ_i] + aux_weight · AuxK
    + pre_weight · mean Σ_dead ReLU(θ − π)``; unit decoder rows. The weight of L0 is steered.

    Notes
    -----
    Source: Rajamanoharan et al., "Jumping Ahead" (2407.14435); the controller and first values: SynthSAEBench
    (2602.14687), whose rows have norm √D, hence the unit 1/√D here. Deviations: see ``Jump``; AuxK.
    With ``slope`` and ``pre_weight`` it is the form of Anthropic, "Circuits Updates", January 2025, but for its tanh.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    latents: int
    """Number of latents, >= 1."""
    k: int
    """Mean active latents of a row that the penalty is steered to, in [1, latents]."""
    l0_weight: float = 0.02
    """Weight of active latents over k at the end of its ramp, before it is steered, >= 0."""
    steered: bool = True
    """Whether the weight follows k; otherwise k is not used."""
    theta: float = 1.0
    """First threshold, > 0, in units of 1/√D: the spread of an untrained latent's pre-activations."""
    bandwidth: float = 2.0
    """Window around a threshold in which rows move it, > 0, in units of 1/√D. On a language model's rows (width 384, 4096
    latents, k 32, 364 steps) held-out FVU was .1289, .1280 and .1262 at .5, 1 and 2; starting thresholds at .5 or 2 left
    L0 at 18 and 20, from where it comes up slowly."""
    slope: bool = False
    """Whether the step's pseudo-derivative reaches the pre-activations too. On planted rows (A1, 400 steps) the true
    directions came back to .999 without and to .951 with it."""
    aux_weight: float = 1 / 32
    """Weight of the AuxK loss, >= 0."""
    pre_weight: float = 0.0
    """Weight of the pull on dead latents, >= 0."""

    def __post_init__(self) -> None:
        check_sizes(
            "jumprelu",
            latents=self.latents,
            k=self.k,
            aux_weight=self.aux_weight,
            l0_weight=self.l0_weight,
            pre_weight=self.pre_weight,
        )
        require("theta", self.theta, "> 0", holds=self.theta > 0)
        require("bandwidth", self.bandwidth, "> 0", holds=self.bandwidth > 0)

    def build(self, widths: int | Widths, *, seed: int) -> Dictionary:
        """Return a fresh dictionary for rows of these widths."""
        width = widths if isinstance(widths, int) else widths.width
        unit = 1 / math.sqrt(width)
        return Dictionary(
            widths,
            self.latents,
            sparsifier=Jump(
                self.latents,
                theta=self.theta * unit,
                bandwidth=self.bandwidth * unit,
                slope=self.slope,
            ),
            losses=((1.0, nmse), (self.aux_weight, auxk), (self.pre_weight, pre_act)),
            penalty=Penalty(self.l0_weight / self.k, l0, self.k if self.steered else None),
            seed=seed,
        )
