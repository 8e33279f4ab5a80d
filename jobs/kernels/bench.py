"""``bench attention``: planners measured on what a store's attention saw, and on controls.

Fidelity is a map over sequences, so any runtime may place it; each problem is checked against the
stored output first. Times are taken here, alone, last, and only of plans whose results are right.

What is claimed: how much attention mass, output error and tiles each plan keeps on these sequences of
this layer at the length they are stored, cut to the length the model was trained at, and how long our
executor and PyTorch's dense attention take on this machine at that length. What is not: anything about
longer sequences (rows of ``timing`` beyond
the stored length are labelled ``shape only``: real values, meaningless structure), about the model's
loss, about other machines, or about methods that train their models (``exactness``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ingest.contract import Runtime
from ingest.models import hardware_class
from jobs.kernels.contract import refuse_bidirectional
from jobs.kernels.controls import controlled
from jobs.kernels.fidelity import (
    HEADS,
    STRUCTURE,
    Row,
    aggregated,
    columns_of_rows,
    gains,
    measured,
    per_head,
)
from jobs.kernels.inputs import (
    Columns,
    Facts,
    Sample,
    check_drift,
    columns_of,
    qkv_of,
    samples_of,
)
from jobs.kernels.measure import ceilings
from jobs.kernels.settings import AttentionBench
from jobs.kernels.timing import TIMED, timed_rows
from jobs.results import Result
from jobs.runtimes.in_process import InProcess
from jobs.sequences import model_facts
from store import Store
from store import open as open_store

if TYPE_CHECKING:
    import numpy as np

Step = Callable[[str, int, int], None]
"""Called with (phase, done, total)."""


def bench_attention(
    store: Store,
    config: AttentionBench,
    out: str | Path,
    *,
    facts: Facts | None = None,
    runtime: Runtime | None = None,
    step: Step | None = None,
) -> Result:
    """Measure and leave a result ``bench-<hash8>``, or return the one that is there.

    Returns
    -------
    Tables ``attention`` (a row per layer, sequence, control, planner and budget, over heads),
    ``attention_heads`` (means over documents, per head), ``structure`` (gains with intervals), and
    where times were asked ``timing`` and ``ceilings``; ``plans.safetensors``: the timed plans of the first
    sequence, for replays.

    Raises
    ------
    RefusedError
        ``causal-planner``: the model is bidirectional.
    JobError
        Before anything is measured: ``columns-missing``, ``drift``, ``heads-differ``, ``no-sequences``.
    """
    groups = None if config.group is None else [config.group]
    known = model_facts(store, groups) if facts is None else facts
    columns = [columns_of(store, known, layer, config.group) for layer in config.layers]
    names = ["tokens", *sorted({c.partition(":")[0] for col in columns for c in _addresses(col)})]
    parts = sorted(set.intersection(*(set(col.parts) for col in columns)))
    for layer in config.layers:
        for planner in config.build_planners():
            refuse_bidirectional(planner, causal=known.attention(layer).causal)
    longest = _claimed_length(known, config.layers)
    samples = samples_of(store, parts, config.sequences, config.split, longest=longest)
    described = {"of": "attention", **asdict(config), "rows": [s.sequence for s in samples]}
    described["trained_length"] = known.trained_length
    if config.repeats:  # times are of this machine
        described |= {"hardware_class": hardware_class(), "threads": torch.get_num_threads()}
    result = Result.create(
        out,
        "bench",
        described,
        store=store.id,
        pin=store.pin_id(names),
        seed=config.seed,
    )
    if result.done:
        return result
    with result:
        say = step or _silent
        drift = _all_checked(store, known, columns, samples, say)
        make = partial(FidelityWorker, store.url, known, tuple(columns), tuple(samples), config)
        rows = _mapped(runtime or InProcess(), make, len(samples), say)
        result.write_table("attention", columns_of_rows([aggregated(row) for row in rows]))
        result.write_table("attention_heads", columns_of_rows(per_head(rows), HEADS))
        result.write_table("structure", columns_of_rows(gains(rows, config), STRUCTURE))
        result.log({"event": "fidelity", "rows": len(rows), "drift": drift})
        if config.repeats:
            _timed(store, known, columns, samples, config, result, say)
    return result


def _claimed_length(facts: Facts, layers: Sequence[int]) -> int | None:
    """Return how many tokens of a sequence are looked at: what lies beyond the trained length says nothing."""
    causal = all(facts.attention(layer).causal for layer in layers)
    return facts.trained_length if causal else None


def _silent(phase: str, done: int, total: int) -> None:
    del phase, done, total


def _addresses(columns: Columns) -> tuple[str, ...]:
    return columns.q, columns.k, columns.v, columns.z


def _all_checked(
    store: Store, facts: Facts, columns: Sequence[Columns], samples: Sequence[Sample], step: Step
) -> float:
    """Return the largest drift of any problem; raise ``drift`` before anything is measured."""
    worst, total = 0.0, len(columns) * len(samples)
    for number, (column, sample) in enumerate((c, s) for c in columns for s in samples):
        qkv = qkv_of(store, column, facts.attention(column.layer), sample)
        worst = max(worst, check_drift(store, column, qkv))
        step("check", number + 1, total)
    return worst


def _mapped(
    runtime: Runtime, make: Callable[[], FidelityWorker], count: int, step: Step
) -> list[Row]:
    """Return all rows in the order of the sequences, whichever is done first."""
    found: dict[int, list[Row]] = {}
    for part, rows in runtime.map(make, range(count)):
        found[part] = rows
        step("fidelity", len(found), count)
    return [row for part in sorted(found) for row in found[part]]


@dataclass
class FidelityWorker:
    """Measures sequences, one at a time, on real tensors and every control."""

    url: str
    facts: Facts
    columns: tuple[Columns, ...]
    samples: tuple[Sample, ...]
    config: AttentionBench

    def run(self, part: int) -> list[Row]:
        """Return the rows of one sequence, metrics as arrays ``[H]``."""
        store, sample = open_store(self.url), self.samples[part]
        rows: list[Row] = []
        for column in self.columns:
            qkv = qkv_of(store, column, self.facts.attention(column.layer), sample)
            for name in dict.fromkeys(("real", *self.config.controls)):
                problem = controlled(qkv, name, self.config.tiles, seed=self.config.seed)
                rows += measured(problem, name, self.config)
        return rows

    def close(self) -> None:
        """Do nothing: nothing is held."""


def _timed(
    store: Store,
    facts: Facts,
    columns: Sequence[Columns],
    samples: Sequence[Sample],
    config: AttentionBench,
    result: Result,
    step: Step,
) -> None:
    peaks = ceilings()
    result.write_table("ceilings", columns_of_rows([asdict(peak) for peak in peaks]))
    longest = [s for s in samples if s.rows == samples[0].rows][:TIMED]
    rows: list[Row] = []
    plans: dict[str, np.ndarray[Any, np.dtype[Any]]] = {}
    for number, column in enumerate(columns):
        spec = facts.attention(column.layer)
        problems = [qkv_of(store, column, spec, sample) for sample in longest]
        found, kept = timed_rows(
            problems, config, peaks, partial(step, "time", number, len(columns))
        )
        rows += found
        for name, chosen in kept.items():
            plans |= {f"{column.layer}/{name}/{n}": a for n, a in chosen.serialise().items()}
        step("time", number + 1, len(columns))
    result.write_table("timing", columns_of_rows(rows))
    result.write_tensors("plans", plans)
