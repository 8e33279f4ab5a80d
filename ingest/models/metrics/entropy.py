"""How undecided a model is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ingest.models.metrics.contract import METRICS, Examples, last_logits


@METRICS.register("entropy")
@dataclass(frozen=True, kw_only=True, slots=True)
class Entropy:
    """Entropy of the next token behind one position of each example, nats."""

    kind: ClassVar[str]
    needs_clean: ClassVar[bool] = False
    least_tokens: ClassVar[int] = 1
    needs_answers: ClassVar[bool] = False
    span: str = ""
    """Its last position is read; empty for the last token."""

    def value(self, logits_BTV: Tensor, examples: Examples, clean_BTV: Tensor | None) -> Tensor:
        """Return one number per example ``[B]``."""
        del clean_BTV
        logits_BV = last_logits(logits_BTV, examples, self.span)
        logs_BV = torch.log_softmax(logits_BV, 1)
        return -(logs_BV.exp() * logs_BV).sum(1)
