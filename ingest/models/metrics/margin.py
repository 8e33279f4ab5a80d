"""How far an answer leads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ingest.models.metrics.contract import METRICS, Examples, last_logits, named, of_answer


@METRICS.register("margin")
@dataclass(frozen=True, kw_only=True, slots=True)
class Margin:
    """The logit of one answer less the largest of all others, at one position of each example, nats."""

    kind: ClassVar[str]
    needs_clean: ClassVar[bool] = False
    least_tokens: ClassVar[int] = 1
    needs_answers: ClassVar[bool] = True
    answer: str = "correct"
    """Name of the examples' answer that is looked at."""
    span: str = ""
    """Its last position is read; empty for the last token."""

    def value(self, logits_BTV: Tensor, examples: Examples, clean_BTV: Tensor | None) -> Tensor:
        """Return one number per example ``[B]``."""
        del clean_BTV
        logits_BV = last_logits(logits_BTV, examples, self.span)
        asked = named(examples.answers, self.answer, "answer")
        others_BV = logits_BV.scatter(1, asked[:, None], -torch.inf)
        return of_answer(logits_BV, examples, self.answer) - others_BV.amax(1)
