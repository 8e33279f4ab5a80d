"""One batch through every form of every product: gate, times, and the row each leaves in the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ingest.models.dtypes import multiplies_bfloat16
from jobs.codes import Pattern
from jobs.kernels.codes.check import Check, check
from jobs.kernels.codes.contract import FORMS, Case, products, run
from jobs.kernels.measure import Ceiling, Timing, interleaved, noise_band, verdict

BASELINE, AGAIN, PLAN = "dense", "dense, again", "order by latent"
CHECK_ROWS = 128
"""Rows of a batch that go through the gate: float64 references of whole batches take gigabytes."""
NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of one case; the batches take turns while it is timed."""

    control: str
    """``grid``, ``real``, ``idx_uniform`` or ``idx_zipf``."""
    cases: Sequence[Case]
    exponent: float
    """Of the popularity law indices were drawn by; NaN for real ones."""
    seed: int
    encode: bool = True
    """Whether encoders run on it: their time hardly depends on k, so one k of a grid is enough."""


@dataclass(kw_only=True, slots=True)
class Row:
    """One line of table ``codes``; times in microseconds, NaN where there are none."""

    op: str
    product: str
    """Method of ``CodeOps``; empty for encoders."""
    method: str
    executor: str = "cpu"
    control: str
    exponent: float
    seed: int
    rows: int
    width: int
    latents: int
    k: float
    pairs: int
    ratio: float
    """L/k."""
    popularity_gini: float
    latents_hit: int
    dtype: str = "float32"
    exec_precision: str = "input"
    dense: bool = False
    exec_flops: float
    bytes_compulsory: float = NAN
    bytes_noreuse: float = NAN
    out_rel_err: float = NAN
    plain_rel_err: float = NAN
    t_plan_us: float = 0.0
    """Ordering the pairs by latent. A batch is ordered once: the weights' gradient pays, others find it done."""
    t_exec_us: float = NAN
    t_total_us: float = NAN
    t_p20_us: float = NAN
    t_p80_us: float = NAN
    n_samples: int = 0
    cache_regime: str = "hot, 3 batches in turn"
    t_dense_best_us: float = NAN
    dense_best_backend: str = BASELINE
    t_dense_again_us: float = NAN
    noise_band: float = NAN
    speedup_best: float = NAN
    """Over the dense product of equal precision."""
    speedup_fastest_dense: float = NAN
    """Over the fastest dense form, which may round its factors to bfloat16."""
    verdict: str = ""
    floor_us: float = NAN
    frac_of_limit: float = NAN
    chosen: bool = False
    valid: bool = False
    status: str = "failed"
    reason: str = ""
    threads: int = field(default_factory=torch.get_num_threads)

    def to_json(self) -> dict[str, Any]:
        """Return the row by column."""
        return asdict(self)


def gini(latent_N: Tensor, latents: int) -> float:
    """Return how uneven the popularity of latents is: 0 all alike, towards 1 few fire alone (Gini 1912)."""
    counts = torch.bincount(latent_N, minlength=latents).sort().values.double()
    total = float(counts.sum())
    if total == 0:
        return 0.0
    rank = torch.arange(1, latents + 1, dtype=torch.float64)
    return float(2 * (rank * counts).sum() / (latents * total) - (latents + 1) / latents)


def head(case: Case, rows: int) -> Case:
    """Return a case's first rows."""
    pattern = case.pattern
    kept = int((pattern.row < rows).sum())
    pairs = Pattern(
        pattern.row[:kept], pattern.latent[:kept], min(rows, pattern.rows), pattern.latents
    )
    return Case(pattern=pairs, value=case.value[:kept], w=case.w, x=case.x[:rows])


def facts(batch: Batch) -> dict[str, Any]:
    """Return what all rows of a batch say."""
    case = batch.cases[0]
    shape = case.shape
    return {
        "control": batch.control,
        "exponent": batch.exponent,
        "seed": batch.seed,
        "rows": shape.rows,
        "width": shape.width,
        "latents": shape.latents,
        "k": shape.pairs / shape.rows,
        "pairs": shape.pairs,
        "ratio": shape.ratio,
        "popularity_gini": gini(case.pattern.latent, shape.latents),
        "latents_hit": int(
            torch.bincount(case.pattern.latent, minlength=shape.latents).count_nonzero()
        ),
    }


def product_rows(batch: Batch, *, repeats: int, limits: Sequence[Ceiling]) -> Iterator[Row]:
    """Yield a row for every product and every form that has a way of its own for it."""
    for product, op in products().items():
        made = {name: FORMS.get(name) for name in FORMS.names()}
        forms = {n: f() for n, f in made.items() if product in f.products and _runs_here(f)}
        sample = head(batch.cases[0], CHECK_ROWS)
        gates = {n: check(op, form, sample, rounding=form.rounding) for n, form in forms.items()}
        methods = {n: _method(product, forms[n], batch) for n in forms if gates[n].passed}
        if product == "scatter_sum":
            methods[PLAN] = _order(batch)
        if BASELINE in methods:
            methods[AGAIN] = methods[BASELINE]
        took = interleaved(methods, repeats=repeats)
        fastest = min(
            (took[n].median_us for n in took if n in forms and forms[n].dense), default=NAN
        )
        for name, form in forms.items():
            row = _row(batch, op, name, form, gates[name])
            if name in took and AGAIN in took:
                plan = took[PLAN] if PLAN in took and not form.dense else None
                set_times(row, took[name], plan, took[BASELINE], took[AGAIN])
                set_floor(row, limits)
                row.speedup_fastest_dense = fastest / row.t_total_us
            yield row


def _runs_here(form: Any) -> bool:
    """Return whether a form runs on this CPU other than by emulation, which measures nothing."""
    return "cpu" in form.devices and (form.rounding != "bfloat16" or multiplies_bfloat16())


def _row(batch: Batch, op: Any, name: str, form: Any, gate: Check) -> Row:
    shape = batch.cases[0].shape
    common = facts(batch)
    return Row(
        op=op.kind,
        product=op.product,
        method=name,
        exec_precision=form.rounding,
        dense=form.dense,
        exec_flops=2.0 * (shape.dense_terms if form.dense else shape.sparse_terms),
        bytes_compulsory=float(op.bytes(shape, latents_hit=common["latents_hit"])),
        bytes_noreuse=float(12 * shape.pairs + 4 * shape.sparse_terms),
        out_rel_err=gate.rel_err,
        plain_rel_err=gate.plain_rel_err,
        valid=gate.passed,
        status="ok" if gate.passed else "failed",
        reason=gate.reason,
        **common,
    )


def _method(product: str, form: Any, batch: Batch) -> Callable[[int], object]:
    """Return what is timed: patterns are ordered beforehand, as that is timed apart."""
    for case in batch.cases:
        _ = case.pattern.row_starts, case.pattern.by_latent
    return lambda number: run(product, form, batch.cases[number % len(batch.cases)])


def _order(batch: Batch) -> Callable[[int], object]:
    def order(number: int) -> object:
        pattern = batch.cases[number % len(batch.cases)].pattern
        return Pattern(pattern.row, pattern.latent, pattern.rows, pattern.latents).by_latent

    return order


def set_times(row: Row, took: Timing, plan: Timing | None, baseline: Timing, again: Timing) -> None:
    """Fill in a row's times and how they compare with the baseline's."""
    row.t_plan_us = plan.median_us if plan else 0.0
    row.t_exec_us = took.median_us
    row.t_total_us = row.t_plan_us + row.t_exec_us
    row.t_p20_us, row.t_p80_us = (row.t_plan_us + t for t in (took.p20_us, took.p80_us))
    row.n_samples = took.samples
    row.t_dense_best_us = min(baseline.median_us, again.median_us)
    row.t_dense_again_us = max(baseline.median_us, again.median_us)
    row.noise_band = noise_band(baseline, again)
    row.speedup_best = row.t_dense_best_us / row.t_total_us
    row.verdict = verdict(row.speedup_best, row.noise_band)


def set_floor(row: Row, limits: Sequence[Ceiling]) -> None:
    """Fill in the least time the machine's measured ceilings allow, and the share of it that was reached."""
    peaks = {limit.quantity: limit.value for limit in limits}
    dtype = "bfloat16" if row.exec_precision == "bfloat16" else "float32"
    seconds = max(row.exec_flops / peaks[f"product {dtype}"], row.bytes_compulsory / peaks["copy"])
    row.floor_us = 1e6 * seconds
    row.frac_of_limit = row.floor_us / row.t_total_us if row.t_total_us > 0 else math.nan
