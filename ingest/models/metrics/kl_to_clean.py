"""Divergence from the model left alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ingest.models.metrics.contract import METRICS, Examples, wide


@METRICS.register("kl_to_clean")
@dataclass(frozen=True, kw_only=True, slots=True)
class KlToClean:
    """Mean over a span's positions of ``KL(p_clean ‖ p_changed)`` of the next token, nats."""

    kind: ClassVar[str]
    needs_clean: ClassVar[bool] = True
    least_tokens: ClassVar[int] = 1
    needs_answers: ClassVar[bool] = False
    span: str = ""
    """Name of the examples' span; empty for every position."""

    def value(self, logits_BTV: Tensor, examples: Examples, clean_BTV: Tensor | None) -> Tensor:
        """Return the divergence of each example ``[B]``; exactly 0 for equal logits."""
        assert clean_BTV is not None
        clean = torch.log_softmax(wide(clean_BTV), 2)
        changed = torch.log_softmax(wide(logits_BTV), 2)
        each_BT = (clean.exp() * (clean - changed)).sum(2)
        inside = examples.within(self.span)
        return each_BT.masked_fill(~inside, 0.0).sum(1) / inside.sum(1).clamp(min=1)
