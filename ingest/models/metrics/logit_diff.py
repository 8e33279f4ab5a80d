"""Difference of two answers' logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ingest.models.metrics.contract import METRICS, Examples, named, wide


@METRICS.register("logit_diff")
@dataclass(frozen=True, kw_only=True, slots=True)
class LogitDiff:
    """``logit[correct] − logit[wrong]`` at one position of each example, nats.

    Source: the default metric of patching in Zhang and Nanda (arXiv 2309.16042).
    """

    kind: ClassVar[str]
    needs_clean: ClassVar[bool] = False
    needs_answers: ClassVar[bool] = True
    correct: str = "correct"
    """Name of the examples' answer that should win."""
    wrong: str = "wrong"
    """Name of the answer it is compared with."""
    span: str = ""
    """Its last position is read; empty for the last token."""

    def value(self, logits_BTV: Tensor, examples: Examples, clean_BTV: Tensor | None) -> Tensor:
        """Return the difference of each example ``[B]``."""
        del clean_BTV
        rows = torch.arange(len(logits_BTV), device=logits_BTV.device)
        logits_BV = wide(logits_BTV[rows, examples.last(self.span)])
        correct = named(examples.answers, self.correct, "answer")
        wrong = named(examples.answers, self.wrong, "answer")
        return logits_BV[rows, correct] - logits_BV[rows, wrong]
