"""Encoders through the same protocol: correct first, then timed against one ``topk`` over all scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ingest.models.dtypes import multiplies_bfloat16
from jobs.kernels.codes.check import HALF_SPACING, ROUNDED, TINY
from jobs.kernels.codes.contract import OPS, Case, Encoder
from jobs.kernels.codes.rows import Batch, Row, facts, head, set_floor, set_times
from jobs.kernels.measure import Ceiling, interleaved

PLAIN, AGAIN = "torch_topk", "torch_topk, again"
MOST_SCORES = 1 << 23
"""Larger batches are not timed: one flat ``topk`` over them takes seconds."""
CHECK_ROWS = 64


def encoder_rows(
    batch: Batch,
    encoders: Mapping[str, Mapping[str, Encoder]],
    *,
    repeats: int,
    limits: Sequence[Ceiling],
) -> Iterator[Row]:
    """Yield a row for every encoder and the plain form, on batches small enough for that.

    An encoder whose name ends in ``bfloat16`` is allowed that rounding of its scores.
    """
    shape = batch.cases[0].shape
    k = max(1, round(shape.pairs / shape.rows))
    if shape.rows * shape.latents > MOST_SCORES or 2 * k > shape.latents:
        return
    for kind, given in encoders.items():
        op = OPS.get(kind)()
        forms: dict[str, Encoder] = {PLAIN: op.reference, **given}
        if not multiplies_bfloat16():
            forms = {name: form for name, form in forms.items() if _rounding(name) != "bfloat16"}
        faults = {name: _fault(op, name, form, batch.cases[0], k) for name, form in forms.items()}
        methods = {n: _method(form, batch, k) for n, form in forms.items() if not faults[n]}
        methods[AGAIN] = methods[PLAIN]
        took = interleaved(methods, repeats=repeats)
        for name in forms:
            row = _row(batch, op, name, faults[name])
            if name in took:
                set_times(row, took[name], None, took[PLAIN], took[AGAIN])
                set_floor(row, limits)
            yield row


def _row(batch: Batch, op: Any, name: str, fault: str) -> Row:
    shape = batch.cases[0].shape
    return Row(
        op=op.kind,
        product="",
        method=name,
        dense=True,
        exec_precision=_rounding(name),
        exec_flops=float(op.flops(shape.rows, shape.width, shape.latents)),
        bytes_compulsory=float(4 * shape.width * (shape.rows + shape.latents) + 16 * shape.pairs),
        dense_best_backend=PLAIN,
        valid=not fault,
        status="failed" if fault else "ok",
        reason=fault,
        **facts(batch),
    )


def _rounding(name: str) -> str:
    return "bfloat16" if name.endswith("bfloat16") else "input"


def _method(form: Encoder, batch: Batch, k: int) -> Callable[[int], object]:
    return lambda number: _encode(form, batch.cases[number % len(batch.cases)], k)


def _encode(form: Encoder, case: Case, k: int) -> Any:
    return form(case.x, case.w, case.x.new_zeros(len(case.w)), k)


def _fault(op: Any, name: str, form: Encoder, case: Case, k: int) -> str:
    """Return why an encoder's choice is wrong, or an empty text.

    The scores it chose may lag the best by twice what a score may be off by rounding.
    """
    sample = head(case, CHECK_ROWS)
    x_RD, w_LD = sample.x.double(), sample.w.double()
    b_L = x_RD.new_zeros(len(w_LD))
    lag = op.shortfall(_encode(form, sample, k), x_RD, w_LD, b_L, k)
    share = HALF_SPACING["float32"] * x_RD.shape[1]
    if _rounding(name) == "bfloat16":
        share += ROUNDED * HALF_SPACING["bfloat16"]
    allowed = 2 * share * float((x_RD.abs() @ w_LD.abs().t()).max())
    worst = float(lag.max())
    if worst <= allowed + TINY:
        return ""
    return f"chose scores up to {worst:.3g} below the best, {allowed:.3g} is allowed"
