"""F2 and F8: a small model trained to repeat, whose induction circuit forms within a run.

Sequences are a begin token and a block of distinct tokens said twice; the block's length is drawn for each, from 8 to 24. With
one length for all, a head that looks a fixed way back would do, and no induction head would be needed. The learning rate is
constant: runs of fewer steps are this run's checkpoints.

Own definition: the fixtures F2 and F8 of the circuit specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ingest.models.planted.contract import PLANTED, symbols_and_begin
from ingest.models.planted.training import losses_of, trained, untrained
from store.schema import subseed

SYMBOLS, LOW, HIGH, POSITIONS = 32, 8, 24, 64
_HELD_OUT = -1  # a step no training draws


@PLANTED.register("trained_induction")
@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedInduction:
    """Two layers of attention trained on repeated blocks, in which induction heads form."""

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    steps: int = 1000
    """Steps of training; fewer give an earlier state of the same run."""
    seed: int = 0
    """Root of the weights' and sequences' seeds."""

    def words(self) -> list[str]:
        """Return ``t0`` to ``t31`` and ``<bos>``."""
        return symbols_and_begin(SYMBOLS)

    def draw(self, step: int, count: int) -> Tensor:
        """Return the sequences of a step, ``int64[B, 49]``, −1 behind their ends."""
        rng = np.random.Generator(np.random.Philox(key=subseed(self.seed, "repeats", step + 1)))
        ids_BT = np.full((count, 1 + 2 * HIGH), -1, np.int64)
        ids_BT[:, 0] = SYMBOLS
        periods = LOW + (rng.random(count) * (HIGH - LOW + 1)).astype(np.int64)
        blocks = np.argsort(rng.random((count, SYMBOLS)), axis=1, kind="stable")
        for row, period, block in zip(ids_BT, periods, blocks, strict=True):
            row[1 : 1 + 2 * period] = np.tile(block[:period], 2)
        return torch.from_numpy(ids_BT)

    def build(self) -> Any:
        """Return the model; minutes on a laptop's core."""
        model = untrained(
            vocab_size=SYMBOLS + 1,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            head_dim=16,
            max_position_embeddings=POSITIONS,
            bos_token_id=SYMBOLS,
            eos_token_id=SYMBOLS,
            pad_token_id=SYMBOLS,
        )
        return trained(model, self.draw, steps=self.steps, batch=64, rate=1e-3, seed=self.seed)

    def truth(self) -> dict[str, Any]:
        """Return what the process is; which heads carry it is for a statistic to find."""
        return {
            "process": {"symbols": SYMBOLS, "period": [LOW, HIGH], "copies": 2},
            "formed_where": "loss from the second token of the second copy on is below 1 nat, of the first copy above 3",
        }


def losses_by_copy(model: Any, config: TrainedInduction, count: int = 256) -> tuple[float, float]:
    """Return the mean losses, nats, of tokens of first copies and of second copies from their second token on.

    The first token of a second copy is predicted by nothing, and counts for neither.
    """
    ids_BT = config.draw(_HELD_OUT, count)
    with torch.inference_mode():
        losses, real = losses_of(model, ids_BT)
    at = torch.arange(1, ids_BT.shape[1])
    period = (real.sum(1) // 2)[:, None]
    first, second = (at <= period) & real, (at >= period + 2) & real
    return float(losses[first].mean()), float(losses[second].mean())
