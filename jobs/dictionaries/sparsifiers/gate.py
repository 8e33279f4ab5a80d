"""Gate: one affine map says whether a latent is on, another how strong it is.

Dimensions: L latents, N pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jobs.codes import Pattern
from jobs.dictionaries.contract import Frozen, Moment, Scores
from jobs.dictionaries.sparsifiers.relu import above


class Gate(nn.Module):
    """``f = 1[π > 0]·ReLU((π − b_enc)·exp(r) + b_mag)``; the encoder's bias is the gate's.

    Notes
    -----
    Both maps share their weights up to the factors ``exp(r) > 0``, so the gate is a threshold on the second:
    ``π > 0`` where ``p = (π − b_enc)·exp(r) + b_mag`` exceeds ``b_mag − b_enc·exp(r)``. Source: Rajamanoharan et al.,
    "Improving Dictionary Learning with Gated Sparse Autoencoders" (2404.16014), section 3 and appendix E.
    """

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.r_L = nn.Parameter(torch.zeros(latents))
        self.b_mag_L = nn.Parameter(torch.zeros(latents))

    def choose(self, scores: Scores, _when: Moment) -> Pattern:
        """Return the pairs whose gate is open."""
        return above(scores, None)

    def value(self, pre_N: Tensor, pattern: Pattern, bias_L: Tensor) -> Tensor:
        """Return the magnitudes where the gate is open."""
        latent_N = pattern.latent
        strength_N = (pre_N - bias_L[latent_N]) * self.r_L.exp()[latent_N] + self.b_mag_L[latent_N]
        return torch.relu(strength_N) * (pre_N.detach() > 0)

    def frozen(self, bias_L: Tensor) -> Frozen:
        """Return the map of the magnitudes, with the gate as its threshold."""
        gain_L = self.r_L.detach().exp()
        bias_mag_L = self.b_mag_L.detach()
        return Frozen(gain_L, bias_mag_L, (bias_mag_L - bias_L * gain_L).clamp(min=0))

    @torch.no_grad()
    def restart(self, latents_A: Tensor) -> None:
        """Give latents their first magnitudes again."""
        self.r_L[latents_A] = 0
        self.b_mag_L[latents_A] = 0
