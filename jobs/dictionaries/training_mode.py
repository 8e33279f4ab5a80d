"""A dictionary in training, read as a frozen one is: its sparsifier's own choice over each block.

Dimensions: R rows, D width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jobs.codes import Codes, Pattern
from jobs.dictionaries.learner import Learner


class TrainingMode:
    """A dictionary in training as a ``Coder``: selection over the block, rows in raw units.

    Batch-wide sparsifiers choose over each block given, so blocks should have the batch's size. Selection is without
    gradients where a variant trains with them.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner, self._own = learner, learner.dictionary

    @property
    def latents(self) -> int:
        """Number of latents."""
        return self._own.latents

    @torch.no_grad()
    def encode(self, x_RD: Tensor) -> Codes:
        """Return the active latents the sparsifier chooses, values in the units of training."""
        own, scaled_RD = self._own, self._learner.scaled(x_RD)
        scores = own.linear_scores(scaled_RD, own.score.norms(own))
        pattern = own.sparsifier.choose(scores, self._learner.when)
        _, value = own.values(pattern, scaled_RD)
        active = value > 0
        return Codes(
            pattern.row[active].cpu().numpy(),
            pattern.latent[active].cpu().numpy().astype(np.uint32),
            value[active].cpu().numpy(),
        )

    @torch.no_grad()
    def decode(self, codes: Codes, rows: int, x_RD: Tensor | None = None) -> Tensor:
        """Return the reconstruction in raw units."""
        row, latent = (
            torch.from_numpy(index.astype(np.int64)) for index in (codes.row_index, codes.latent)
        )
        pattern = Pattern(row, latent, rows, self._own.latents)
        value = torch.tensor(codes.value)
        scaled = None if x_RD is None else self._learner.scaled(x_RD)
        hat_RE = self._own.decode(pattern, value, scaled)
        return hat_RE / self._learner.calibration.scale_out
