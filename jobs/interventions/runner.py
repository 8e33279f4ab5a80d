"""Runs a model with and without interventions and puts the metrics side by side.

The base is computed once per `Runner`, however many interventions follow: a sweep over heads costs one
forward each. Metrics that compare logits with the clean run's recompute those instead of keeping them.

Dimensions: E examples of all batches, B of one, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ingest.models.metrics import Examples, metric_name
from jobs.errors import JobError

if TYPE_CHECKING:
    from ingest.models import LoadedModel
    from ingest.models.metrics import Metric
    from jobs.interventions.contract import Intervention

Array = np.ndarray[Any, np.dtype[Any]]


class Runner:
    """A model, examples, and what is measured on them.

    Parameters
    ----------
    model
        A causal model with a language-modelling head, in evaluation mode.
    batches
        The examples; batch composition is kept, for results depend on it in the last bits.
    metrics
        What is measured.

    Raises
    ------
    JobError
        ``not-causal``, ``no-head``, ``too-long`` or ``training-mode``; nothing was run.
    """

    def __init__(
        self, model: LoadedModel, batches: Sequence[Examples], metrics: Sequence[Metric]
    ) -> None:
        _check_model(model, batches)
        self.model, self.batches, self.metrics = model, tuple(batches), tuple(metrics)
        self.examples = sum(len(batch.ids) for batch in batches)
        self._base: list[Array] | None = None

    def base(self) -> list[Array]:
        """Return each metric's value per example with the model left alone, ``float64[E]`` each."""
        if self._base is None:
            self._base = self._measured(())
        return self._base

    def run(self, interventions: Sequence[Intervention]) -> dict[str, Any]:
        """Return the table (example, metric, base, intervened), all interventions in force at once.

        Raises
        ------
        JobError
            ``bad-intervention``, before anything runs.
        SiteError
            ``unknown-site``, before anything runs.
        """
        for one in interventions:
            one.check(self.model.adapter, self.examples)
        base, changed = self.base(), self._measured(interventions)
        names = [metric_name(metric) for metric in self.metrics]
        return {
            "example": np.tile(np.arange(self.examples), len(names)),
            "metric": [name for name in names for _ in range(self.examples)],
            "base": np.concatenate(base),
            "intervened": np.concatenate(changed),
        }

    def _measured(self, interventions: Sequence[Intervention]) -> list[Array]:
        found: list[list[Tensor]] = [[] for _ in self.metrics]
        for batch, rows in _numbered(self.batches):
            logits = self._logits(batch, rows, interventions)
            needed = any(metric.needs_clean for metric in self.metrics) and interventions
            clean = self._logits(batch, rows, ()) if needed else logits
            for values, metric in zip(found, self.metrics, strict=True):
                values.append(metric.value(logits, batch, clean).double().cpu())
        return [torch.cat(values).numpy() for values in found]

    def _logits(
        self, batch: Examples, rows: slice, interventions: Sequence[Intervention]
    ) -> Tensor:
        """Return the logits ``[B, T, V]`` of one forward; several edits of one site happen in order."""
        device = next(self.model.model.parameters()).device
        with ExitStack() as hooks, torch.inference_mode():
            for one in interventions:
                hooks.enter_context(self.model.adapter.listen(one.site, _edit(one, batch, rows)))
            out = self.model.model(
                input_ids=batch.ids.to(device),
                attention_mask=batch.mask.to(device),
                use_cache=False,
            )
            return _logits_of(out, batch, self.model).to(batch.ids.device)


def site_values(model: LoadedModel, batches: Sequence[Examples], site: str) -> Tensor:
    """Return a site's values on all examples, ``[E, T, *shape]``; batches must be of one length.

    Raises
    ------
    JobError
        ``uneven``: the batches differ in length.
    """
    lengths = sorted({batch.ids.shape[1] for batch in batches})
    if len(lengths) != 1:
        raise JobError(
            f"values of {site} on batches of {lengths} positions were asked for as one array. Nothing was "
            "run. Give batches of one length.",
            kind="uneven",
        )
    got = [model.adapter.capture(b.ids, b.mask, [site])[site] for b in batches]
    return torch.cat(got).clone()


def site_means(
    model: LoadedModel, batches: Sequence[Examples], sites: Sequence[str], *, span: str = ""
) -> dict[str, Tensor]:
    """Return each site's mean over a span's tokens (default: all), float64 ``[*shape]``, padding left out."""
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        mask = batch.within(span)
        count += int(mask.sum())
        for site, value in model.adapter.capture(batch.ids, batch.mask, sites).items():
            total = value[mask.to(value.device)].double().sum(0)
            sums[site] = sums[site] + total if site in sums else total
    return {site: (total / count).clone() for site, total in sums.items()}


def _numbered(batches: Sequence[Examples]) -> Iterator[tuple[Examples, slice]]:
    first = 0
    for batch in batches:
        yield batch, slice(first, first + len(batch.ids))
        first += len(batch.ids)


def _edit(one: Intervention, batch: Examples, rows: slice) -> Any:
    return lambda value: one.changed(value, batch, rows)


def _check_model(model: LoadedModel, batches: Sequence[Examples]) -> None:
    name, adapter = model.name, model.adapter
    longest = max((batch.ids.shape[1] for batch in batches), default=0)
    embeddings = getattr(model.model, "get_output_embeddings", None)
    if not adapter.causal:
        kind, found = "not-causal", f"the {adapter.family} model {name} is bidirectional"
        mend = "Use a causal model"
    elif embeddings is None or embeddings() is None:
        kind, found = "no-head", f"the {adapter.family} model {name} has no language-modelling head"
        mend = "Load a checkpoint whose architecture ends in ForCausalLM or LMHeadModel"
    elif model.model.training:
        kind, found, mend = (
            "training-mode",
            f"{name} is in training mode",
            "Call model.eval() first",
        )
    elif adapter.max_positions is not None and longest > adapter.max_positions:
        kind, found = "too-long", f"{name} holds {adapter.max_positions} positions, not {longest}"
        mend = "Use shorter examples"
    elif longest == 0:
        kind, found, mend = "bad-input", "there are no examples", "Give at least one batch"
    else:
        return
    raise JobError(
        f"a run that reads next-token logits under interventions was asked for; {found}. Nothing was run. "
        f"{mend}.",
        kind=kind,
    )


def _logits_of(out: Any, batch: Examples, model: LoadedModel) -> Tensor:
    logits = getattr(out, "logits", None)
    if not isinstance(logits, Tensor) or logits.shape[:2] != batch.ids.shape:
        shape = list(logits.shape) if isinstance(logits, Tensor) else "no logits"
        raise JobError(
            f"logits of {list(batch.ids.shape)} tokens were asked of {model.name}; its forward gave "
            f"{shape}. Nothing was kept. Load a checkpoint with a language-modelling head.",
            kind="no-head",
        )
    return logits
