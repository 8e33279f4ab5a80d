"""Examples and what a metric makes of their logits; interventions and gradients measure the same way.

A metric names its spans and answers; the examples hold them, one value per example, so that one metric
measures sequences whose copies begin at different places.

Dimensions: B examples, T positions, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ingest.errors import ModelError
from store.registry import Registry, to_json

METRICS = Registry("metric", "ingest.models.metrics")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Examples:
    """A batch of sequences and what is to be looked at in each."""

    ids: Tensor
    """int64 token ids ``[B, T]``."""
    mask: Tensor
    """1 for a token, 0 for padding, which comes last, ``[B, T]``."""
    spans: Mapping[str, Tensor] = field(default_factory=dict)
    """Named positions of each example: ``[start, stop)``, int64 ``[B, 2]``; or any, bool ``[B, T]``."""
    answers: Mapping[str, Tensor] = field(default_factory=dict)
    """Named token of each example, int64 ``[B]``."""

    def __post_init__(self) -> None:
        count, length = self.ids.shape if self.ids.dim() == 2 else (-1, -1)
        wrong = [
            *([f"mask {list(self.mask.shape)}"] if self.mask.shape != self.ids.shape else []),
            *[
                f"span {n!r} {list(s.shape)}"
                for n, s in self.spans.items()
                if s.shape != ((count, length) if s.dtype == torch.bool else (count, 2))
            ],
            *[
                f"answer {n!r} {list(a.shape)}"
                for n, a in self.answers.items()
                if a.shape != (count,)
            ],
        ]
        wrong += [
            f"span {name!r} reaching from {int(s[:, 0].min())} to {int(s[:, 1].max())}"
            for name, s in self.spans.items()
            if s.dtype != torch.bool
            and s.shape == (count, 2)
            and not bool(((s[:, 0] >= 0) & (s[:, 0] < s[:, 1]) & (s[:, 1] <= length)).all())
        ]
        if wrong or count < 1 or length < 1:
            raise ModelError(
                f"examples with ids {list(self.ids.shape)} and {', '.join(wrong) or 'no token'} were "
                "given; ids and mask are [B, T], spans [B, 2] with 0 ≤ start < stop ≤ T or bool [B, T], answers [B]. "
                "Nothing was run.",
                kind="bad-input",
            )

    def within(self, span: str) -> Tensor:
        """Return which positions lie in a span and are no padding, bool ``[B, T]``; all for ``""``.

        Raises
        ------
        ModelError
            ``bad-input`` where the examples have no such span.
        """
        mask_BT = self.mask.bool()
        if not span:
            return mask_BT
        start_stop = named(self.spans, span, "span")
        if start_stop.dtype == torch.bool:
            return mask_BT & start_stop
        at = torch.arange(mask_BT.shape[1], device=mask_BT.device)
        inside_BT = (at >= start_stop[:, :1]) & (at < start_stop[:, 1:])
        return mask_BT & inside_BT

    def last(self, span: str) -> Tensor:
        """Return the last position of a span (of the tokens for ``""``), int64 ``[B]``."""
        at = torch.arange(self.ids.shape[1], device=self.ids.device)
        return torch.where(self.within(span), at, -1).amax(1)


class Metric(Protocol):
    """A frozen config, filed in `METRICS`; ``value`` is a pure function."""

    kind: ClassVar[str]
    needs_clean: ClassVar[bool]
    """Whether it compares with the logits of the model left alone."""
    least_tokens: ClassVar[int]
    """Tokens of the shortest example it says something of."""
    needs_answers: ClassVar[bool]
    """Whether it asks the examples for named answers."""

    def value(self, logits_BTV: Tensor, examples: Examples, clean_BTV: Tensor | None) -> Tensor:
        """Return one number per example ``[B]``, float32 (float64 for float64 logits)."""
        ...


def metric_name(metric: Any) -> str:
    """Return a metric's name in tables: ``nll(second)``, ``logit_diff(correct,wrong)``."""
    held = [getattr(metric, f.name) for f in dataclasses.fields(metric)]
    values = ["+".join(one) if isinstance(one, tuple) else str(one) for one in held]
    named_values = ",".join(value for value in values if value)
    return f"{to_json(metric)['kind']}({named_values})" if named_values else str(metric.kind)


def last_logits(logits_BTV: Tensor, examples: Examples, span: str) -> Tensor:
    """Return the logits behind a span's last token (the last of all for ``""``), wide, ``[B, V]``."""
    rows = torch.arange(len(logits_BTV), device=logits_BTV.device)
    return wide(logits_BTV[rows, examples.last(span)])


def of_answer(values_BV: Tensor, examples: Examples, answer: str) -> Tensor:
    """Return the values at each example's token of that name ``[B]``."""
    rows = torch.arange(len(values_BV), device=values_BV.device)
    return values_BV[rows, named(examples.answers, answer, "answer")]


def named(held: Mapping[str, Tensor], name: str, what: str) -> Tensor:
    """Return a span or answer by name, or raise ``bad-input`` with the known ones."""
    if name not in held:
        raise ModelError(
            f"a metric looks at {what} {name!r}; the examples have {', '.join(sorted(held)) or 'none'}. "
            f"Nothing was measured. Give the examples a {what} of that name.",
            kind="bad-input",
        )
    return held[name]


def wide(logits: Tensor) -> Tensor:
    """Return logits in float32, or float64 where they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
