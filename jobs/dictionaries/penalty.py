"""A loss whose weight is ramped up and, where a number of active latents is asked for, steered towards it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from jobs.dictionaries.contract import Loss, Moment

L0_DECAY = 0.9
"""Decay of the running mean of active latents that the controller looks at."""
PROPORTION = 1.0
GAIN = 12.0
"""Largest change of the logarithm of the weight over a whole run, were L0 always far off."""
SLOWEST_GAIN = 3e-4
"""Of a step, however long the run: SynthSAEBench (2602.14687) tunes L0 at this rate."""


@dataclass
class Penalty:
    """The weight of a sparsity loss: ``weight · min(1, share / ramp) · factor``.

    With a target k the factor is a controller's, proportional and integral: with ``e = tanh(log(L0 / k))`` of L0's
    running mean, ``log factor`` moves by ``gain · e`` and by the change of ``e`` since the step before. Without the second
    part it overshoots: a ReLU dictionary on planted rows swings between .1 and 37 active latents around 4 (400 steps),
    with it L0 is within 5 % of 4 from two fifths of the run on.

    Notes
    -----
    Source: the L0 autotuner of SynthSAEBench (2602.14687), which integrates the difference from the target at a rate for
    runs of 200,000 steps; the ratio used here is the same close to it, and treats half and double alike.
    """

    weight: float
    loss: Loss
    k: int | None
    """Mean active latents to be reached; None: the weight stays what it is."""
    ramp: float = 0.05
    """First share of the run, over which the weight rises from 0."""
    log_factor: float = field(default=0.0, init=False)
    error: float = field(default=0.0, init=False)
    l0: float = field(default=math.nan, init=False)

    def weight_at(self, when: Moment) -> float:
        """Return the weight at a step."""
        rise = min(1.0, (when.step + 1) / max(1.0, self.ramp * when.steps))
        return self.weight * rise * math.exp(self.log_factor)

    def note(self, l0: float, when: Moment) -> None:
        """Take in the mean active latents of the batch of a step."""
        self.l0 = l0 if math.isnan(self.l0) else L0_DECAY * self.l0 + (1 - L0_DECAY) * l0
        if self.k is None or when.share < self.ramp:
            return
        gain = max(SLOWEST_GAIN, GAIN / when.steps)
        before, self.error = self.error, math.tanh(math.log(max(self.l0, 1e-3) / self.k))
        self.log_factor += gain * self.error + PROPORTION * (self.error - before)

    def state(self) -> dict[str, Any]:
        """Return what a resume needs, JSON values."""
        l0 = None if math.isnan(self.l0) else self.l0
        return {"log_factor": self.log_factor, "error": self.error, "l0": l0}

    def restore(self, state: dict[str, Any]) -> None:
        """Undo ``state``."""
        self.log_factor, self.error = float(state["log_factor"]), float(state["error"])
        self.l0 = math.nan if state["l0"] is None else float(state["l0"])
