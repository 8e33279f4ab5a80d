"""Encoders through the same protocol: correct first, then timed against one ``topk`` over all scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from jobs.kernels.codes.check import HALF_SPACING, ROUNDED, TINY
from jobs.kernels.codes.contract import OPS, Case, Encoder
from jobs.kernels.codes.rows import Batch, Row, facts, head, set_times
from jobs.kernels.measure import interleaved

PLAIN, AGAIN = "torch_topk", "torch_topk, again"
MOST_SCORES = 1 << 23
"""Larger batches are not timed: one flat ``topk`` over them takes seconds."""
CHECK_ROWS = 64


def encoder_rows(
    batch: Batch, encoders: Mapping[str, Mapping[str, Encoder]], *, repeats: int
) -> Iterator[Row]:
    """Yield a row for every encoder and the plain form, where a batch keeps a whole number k a row and is small."""
    shape = batch.cases[0].shape
    k = max(1, round(shape.pairs / shape.rows))
    if not encoders or shape.rows * shape.latents > MOST_SCORES or shape.ratio < 8:
        return
    for kind, given in encoders.items():
        op = OPS.get(kind)()
        forms: dict[str, Encoder] = {PLAIN: op.reference, **given}
        faults = {name: _fault(op, form, batch.cases[0], k) for name, form in forms.items()}
        methods = {
            name: lambda number, form=form: _encode(form, batch.cases[number % len(batch.cases)], k)
            for name, form in forms.items()
            if not faults[name]
        }
        methods[AGAIN] = methods[PLAIN]
        took = interleaved(methods, repeats=repeats)
        for name in forms:
            row = Row(
                op=kind,
                product="",
                method=name,
                dense=True,
                exec_flops=float(op.flops(shape.rows, shape.width, shape.latents)),
                valid=not faults[name],
                status="failed" if faults[name] else "ok",
                reason=faults[name],
                **facts(batch),
            )
            row.dense_best_backend = PLAIN
            if name in took:
                set_times(row, took[name], None, took[PLAIN], took[AGAIN])
            yield row


def _encode(form: Encoder, case: Case, k: int) -> Any:
    return form(case.x, case.w, case.x.new_zeros(len(case.w)), k)


def _fault(op: Any, form: Encoder, case: Case, k: int) -> str:
    """Return why an encoder's choice is wrong, or an empty text.

    The scores it chose may lag the best by twice what a score may be off: float32 or bfloat16 rounding.
    """
    sample = head(case, CHECK_ROWS)
    x_RD, w_LD = sample.x.double(), sample.w.double()
    b_L = x_RD.new_zeros(len(w_LD))
    lag = op.shortfall(_encode(form, sample, k), x_RD, w_LD, b_L, k)
    share = HALF_SPACING["float32"] * x_RD.shape[1] + ROUNDED * HALF_SPACING["bfloat16"]
    allowed = 2 * share * _largest(x_RD.abs(), w_LD.abs())
    worst = float(lag.max()) if lag.numel() else 0.0
    if worst <= allowed + TINY:
        return ""
    return f"chose scores up to {worst:.3g} below the best, {allowed:.3g} is allowed"


def _largest(x_RD: Tensor, w_LD: Tensor) -> float:
    return float((x_RD @ w_LD.t()).max()) if len(x_RD) and len(w_LD) else float(torch.zeros(()))
