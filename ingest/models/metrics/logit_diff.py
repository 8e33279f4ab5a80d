"""Difference of two answers' logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ingest.models.metrics.contract import METRICS, Examples, last_logits, of_answer

if TYPE_CHECKING:
    from torch import Tensor


@METRICS.register("logit_diff")
@dataclass(frozen=True, kw_only=True, slots=True)
class LogitDiff:
    """``logit[correct] − logit[wrong]`` at one position of each example, nats.

    Source: the default metric of patching in Zhang and Nanda (arXiv 2309.16042).
    """

    kind: ClassVar[str]
    needs_clean: ClassVar[bool] = False
    least_tokens: ClassVar[int] = 1
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
        logits_BV = last_logits(logits_BTV, examples, self.span)
        correct, wrong = (
            of_answer(logits_BV, examples, name) for name in (self.correct, self.wrong)
        )
        return correct - wrong
