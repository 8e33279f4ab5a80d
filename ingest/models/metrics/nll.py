"""Negative log-likelihood of the tokens of a span."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ingest.errors import ModelError
from ingest.models.metrics.contract import METRICS, Examples, wide


@METRICS.register("nll")
@dataclass(frozen=True, kw_only=True, slots=True)
class Nll:
    """Mean over a span's tokens t of ``−ln p(token_t | tokens before t)``, nats.

    The span holds the positions of the tokens *predicted*; the logits read are one position earlier.
    The first token of a sequence is predicted by nothing and never counts.
    """

    kind: ClassVar[str]
    needs_clean: ClassVar[bool] = False
    least_tokens: ClassVar[int] = 2
    needs_answers: ClassVar[bool] = False
    span: str = ""
    """Name of the examples' span; empty for the whole sequence."""

    def value(self, logits_BTV: Tensor, examples: Examples, clean_BTV: Tensor | None) -> Tensor:
        """Return the loss of each example ``[B]``."""
        del clean_BTV
        inside = examples.within(self.span)[:, 1:]
        counts = inside.sum(1)
        if int(counts.min()) == 0:
            raise ModelError(
                f"the loss over span {self.span!r} was asked for; in {int((counts == 0).sum())} examples "
                "it holds no token that anything predicts. Nothing was measured. Begin it at position 1 "
                "or later.",
                kind="bad-input",
            )
        before = wide(logits_BTV[:, :-1])
        right = before.gather(2, examples.ids[:, 1:, None]).squeeze(2)
        losses = torch.logsumexp(before, 2) - right
        return losses.masked_fill(~inside, 0.0).sum(1) / counts
