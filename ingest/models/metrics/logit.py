"""An answer's logit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ingest.models.metrics.contract import METRICS, Examples, last_logits, of_answer

if TYPE_CHECKING:
    from torch import Tensor


@METRICS.register("logit")
@dataclass(frozen=True, kw_only=True, slots=True)
class Logit:
    """The logit of one answer at one position of each example, nats."""

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
        return of_answer(logits_BV, examples, self.answer)
