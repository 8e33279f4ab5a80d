"""Gradient groups: a metric's gradient at the sites of every row, by one rule.

A group is one rule and one metric. The metric is measured sequence by sequence, so a row's gradient depends on its own
sequence alone; a sequence that the metric says nothing of, as one of a single token, has zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ingest.errors import IngestError
from ingest.models.metrics import METRICS, Examples
from ingest.models.rules import GradRule, rule_of

if TYPE_CHECKING:
    from torch import Tensor

    from ingest.config import HarvestConfig
    from ingest.models import LoadedModel

STORED_DTYPE = "float32"
"""Of gradient columns where nothing else is asked: they span more orders of magnitude than values do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gradient:
    """What is differentiated, and how."""

    rule: GradRule
    metric: Any
    """A registered metric that reads nothing but a sequence's own tokens and logits."""

    @staticmethod
    def of_recipe(recipe: Mapping[str, Any]) -> Gradient | None:
        """Return what a group's recipe says; None where it holds values."""
        if recipe["gradient"] is None:
            return None
        return Gradient(rule=GradRule(**recipe["gradient"]), metric=METRICS.parse(recipe["metric"]))

    @staticmethod
    def of_config(config: HarvestConfig) -> Gradient | None:
        """Return what a harvest is asked for.

        Raises
        ------
        ModelError
            ``unknown-name`` of a rule.
        InvalidInputError
            ``unknown-name`` of a metric.
        IngestError
            ``metric-needs``: the metric compares with another run.
        """
        if config.gradient is None:
            return None
        rule, metric = rule_of(config.gradient), METRICS.get(config.metric)()
        if metric.needs_clean:
            raise IngestError(
                f"the gradient of {config.metric!r} was asked for, which compares with another run; a row's gradient is "
                "taken in one. Nothing was written. Use --metric nll or logit_diff.",
                kind="metric-needs",
            )
        return Gradient(rule=rule, metric=metric)

    def at(
        self,
        adapter: Any,
        ids_BT: Tensor,
        mask_BT: Tensor,
        sites: Sequence[str],
        count: int,
        answers: Mapping[str, Tensor] | None = None,
        partner_BT: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return ``{site: [B, T, *shape]}``: the gradient of each of the first ``count`` sequences' own metric.

        Parameters
        ----------
        answers
            Token ids by name, int64 ``[B]``; −1 where a sequence is not asked for any.
        partner_BT
            Ids of each sequence's partner, for rules that take points between the two.
        """
        told = mask_BT.sum(1) >= self.metric.least_tokens
        told[count:] = False
        given = answers or {}
        for asked in given.values():
            told &= asked >= 0
        examples = (
            Examples(
                ids=ids_BT[told],
                mask=mask_BT[told],
                answers={name: asked[told] for name, asked in given.items()},
            )
            if bool(told.any())
            else None
        )

        def objective(logits_BTV: Tensor) -> Tensor:
            if examples is None:
                return logits_BTV.sum((1, 2)) * 0
            found: Tensor = self.metric.value(logits_BTV[told], examples, None)
            return found

        found: dict[str, Tensor]
        found, _ = adapter.gradients(ids_BT, mask_BT, sites, objective, self.rule, partner_BT)
        return found


def check_differentiable(loaded: LoadedModel) -> None:
    """Raise ``not-causal`` or ``no-head`` where a model predicts no next token."""
    from ingest.models.backward import check_head

    if not loaded.adapter.causal:
        raise IngestError(
            f"gradients of what a model predicts next were asked for; {loaded.name} ({loaded.adapter.family}) reads both "
            "ways. Nothing was written. Use a causal model.",
            kind="not-causal",
        )
    check_head(loaded.model)


def check_answers(config: HarvestConfig, *, there: bool) -> None:
    """Raise ``metric-needs`` where a metric asks for answers and the rows have none."""
    gradient = Gradient.of_config(config)
    if gradient is not None and gradient.metric.needs_answers and not there:
        raise IngestError(
            f"the gradient of {config.metric!r} was asked for, which compares named answers; these rows have none. "
            "Nothing was written. Use --metric nll, or rows of a task (--source induction, --source pairs); where its ingest was "
            "not finished, run that again first.",
            kind="metric-needs",
        )
    if gradient is not None and gradient.rule.point != "here" and not there:
        raise IngestError(
            f"gradients by rule {config.gradient!r} were asked for, which takes points between the two prompts of a pair; "
            "these rows are none. Nothing was written. Use another rule, or rows of a task.",
            kind="rule-needs",
        )


def stored_dtype(config: HarvestConfig, usual: str) -> str:
    """Return the dtype of the columns: as asked, else float32 for gradients."""
    if config.gradient is None or config.store_dtype not in {None, "auto"}:
        return usual
    return STORED_DTYPE
