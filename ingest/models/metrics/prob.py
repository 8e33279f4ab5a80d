"""The probability of answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ingest.models.metrics.contract import METRICS, Examples, last_logits, of_answer


@METRICS.register("prob")
@dataclass(frozen=True, kw_only=True, slots=True)
class Prob:
    """The probability of some answers together, behind one position of each example, 0 to 1."""

    kind: ClassVar[str]
    needs_clean: ClassVar[bool] = False
    least_tokens: ClassVar[int] = 1
    needs_answers: ClassVar[bool] = True
    answers: tuple[str, ...] = ("correct",)
    """Names of the examples' answers whose probabilities are added; a token under two names counts twice."""
    span: str = ""
    """Its last position is read; empty for the last token."""

    def value(self, logits_BTV: Tensor, examples: Examples, clean_BTV: Tensor | None) -> Tensor:
        """Return one number per example ``[B]``."""
        del clean_BTV
        logits_BV = last_logits(logits_BTV, examples, self.span)
        shares_BV = torch.softmax(logits_BV, 1)
        every = [of_answer(shares_BV, examples, name) for name in self.answers]
        return torch.stack(every).sum(0)
