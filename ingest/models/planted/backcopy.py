"""F3: one layer, one head, trained on the Bigram-Backcopy process: a head that copies behind triggers and idles elsewhere.

Source: Guo et al., Active-Dormant Attention Heads (arXiv 2410.13835), section 2.1; smaller and trained for less, after the
cheap form of the circuit specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ingest.models.planted.contract import PLANTED, symbols_and_begin
from ingest.models.planted.training import losses_of, trained, untrained
from ingest.sources.backcopy import BackcopyProcess
from store.schema import subseed

SYMBOLS, TOKENS = 32, 64
_HELD_OUT = -1


@PLANTED.register("backcopy")
@dataclass(frozen=True, kw_only=True, slots=True)
class BackcopyModel:
    """One head trained to copy behind triggers, with an MLP that knows the bigrams."""

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    steps: int = 500
    """Steps of training; fewer give an earlier state of the same run."""
    process_seed: int = 0
    """Root of the bigrams' seeds, as the source ``backcopy`` has it."""
    seed: int = 0
    """Root of the weights' and texts' seeds."""

    @property
    def process(self) -> BackcopyProcess:
        """What it is trained on."""
        return BackcopyProcess(symbols=SYMBOLS, seed=self.process_seed)

    def words(self) -> list[str]:
        """Return ``t0`` to ``t31`` and ``<bos>``."""
        return symbols_and_begin(SYMBOLS)

    def draw(self, step: int, count: int) -> Tensor:
        """Return the texts of a step, ``int64[B, 64]``."""
        rng = np.random.Generator(np.random.Philox(key=subseed(self.seed, "texts", step + 1)))
        begin = np.full((count, 1), SYMBOLS, np.int64)
        text = self.process.draw(rng, count, TOKENS - 1)
        return torch.from_numpy(np.concatenate([begin, text], axis=1))

    def build(self) -> Any:
        """Return the model; a minute on a laptop's core."""
        model = untrained(
            vocab_size=SYMBOLS + 1,
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=1,
            head_dim=64,
            intermediate_size=256,
            max_position_embeddings=TOKENS,
            bos_token_id=SYMBOLS,
            eos_token_id=SYMBOLS,
            pad_token_id=SYMBOLS,
        )
        return trained(model, self.draw, steps=self.steps, batch=128, rate=1e-3, seed=self.seed)

    def truth(self) -> dict[str, Any]:
        """Return the process."""
        return {
            "process": self.process.truth(),
            "formed_where": "loss of the token behind a trigger is below 0.3 nat",
        }


def loss_behind_triggers(model: Any, config: BackcopyModel, count: int = 256) -> float:
    """Return the mean loss of tokens that triggers decide, nats."""
    ids_BT = config.draw(_HELD_OUT, count)
    with torch.inference_mode():
        losses, _ = losses_of(model, ids_BT)
    triggers = torch.from_numpy(config.process.trigger_symbols.copy())
    behind = torch.isin(ids_BT[:, :-1], triggers)
    behind[:, :2] = False  # nothing stands before a first token to be copied
    return float(losses[behind].mean())
