"""Training one dictionary on a feed: calibrate, step, keep checkpoints, set the threshold, freeze."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from jobs.batches import Batch, Widths
from jobs.codebook import Codebook
from jobs.codes import CodeOps
from jobs.dictionaries.calibration import (
    calibrate,
    calibrate_threshold,
    is_finite,
    non_finite_rows,
)
from jobs.dictionaries.checkpoint import Checkpoints
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.contract import Feed
from jobs.dictionaries.learner import Learner, StepReport, resolve_precision
from jobs.errors import DivergedError, JobError
from store.errors import InvalidInputError

NAMED_ROWS = 16
STOPPED_BATCHES = 8  # rows for the threshold of a run that has to end soon


@dataclass(frozen=True)
class Trained:
    """A trained dictionary and how it got there."""

    codebook: Codebook
    history: list[dict[str, Any]]
    """The log entries, oldest first, those before a resume included."""
    state: dict[str, Any]
    """step, rows, finished, threshold_ema and threshold (raw units), precision, calibration."""
    learner: Learner
    """The live form, for training-mode measurements."""


def train(
    feed: Feed,
    cfg: TrainConfig,
    *,
    out: Path | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
    resume: bool = True,
    should_stop: Callable[[], bool] | None = None,
    ops: CodeOps | None = None,
    device: str = "cpu",
    log_every: int = 50,
    checkpoint_every: int = 500,
) -> Trained:
    """Train a dictionary on a feed's rows; a run that was stopped goes on where it was.

    Parameters
    ----------
    feed, cfg
        Together the recipe: the same recipe gives the same bits on one class of machine, undisturbed or
        resumed after any step.
    out
        Folder for checkpoints; None keeps none.
    log
        Called with each entry of the history: step, rows, loss, fvu, l0, dead, lr, gradient_norm, threshold,
        seconds, rows_per_second, seconds_left.
    resume
        Take up the newest checkpoint in ``out``; with false, remove what is there and start afresh.
    should_stop
        Asked after every step; true ends the run after a checkpoint, with ``finished`` false and a
        threshold set on few rows.
    ops
        A faster form of the sparse products; part of no recipe.

    Raises
    ------
    ConflictError
        ``other-recipe``: ``out`` holds the run of another recipe.
    DivergedError
        ``diverged``: the loss or its gradient is not finite; the rows are in ``out/diverged.json``.
    InvalidInputError
        ``width-mismatch``: a batch is not of the feed's width.
    """
    saves = Checkpoints(
        out, {"train": cfg.to_json(), "feed": feed.state(), "width": feed.widths.width}
    )
    learner, history = _begin(feed, cfg, saves, ops=ops, device=device, resume=resume)
    meter = _Meter(learner, history)
    stopped = False
    for batch in islice(feed.batches(learner.step), cfg.steps - learner.step):
        _check_widths(batch, feed, learner.step)
        report = learner.learn(batch)
        if not report.finite:
            raise _diverged(saves, learner, report, batch)
        done = learner.step == cfg.steps
        stopped = not done and should_stop is not None and should_stop()
        if done or stopped or learner.step % log_every == 0:
            history.append(meter.entry(learner, report))
            if log is not None:
                log(history[-1])
        if done or stopped or learner.step % checkpoint_every == 0:
            saves.save(learner.step, learner.tensors(), _state(learner, history))
        if stopped:
            break
    if learner.step < cfg.steps and not stopped:
        raise _feed_ended(learner)
    return _freeze(feed, learner, history, finished=not stopped)


def _begin(
    feed: Feed,
    cfg: TrainConfig,
    saves: Checkpoints,
    *,
    ops: CodeOps | None,
    device: str,
    resume: bool,
) -> tuple[Learner, list[dict[str, Any]]]:
    kept = saves.latest() if resume else None
    if kept is None:
        saves.clear()
        precision = resolve_precision(cfg.precision, device)
        calibration = calibrate(feed, cfg)
        if not math.isfinite(sum((*calibration.scales_in, *calibration.scales_out))):
            raise _bad_rows(
                saves, non_finite_rows(feed, cfg), "the input scale could not be measured"
            )
        return Learner(cfg, calibration, precision=precision, device=device, ops=ops), []
    tensors, state = kept
    learner = Learner.restore(cfg, tensors, state["learner"], device=device, ops=ops)
    return learner, list(state["history"])


def _state(learner: Learner, history: list[dict[str, Any]]) -> dict[str, Any]:
    return {"learner": learner.scalars(), "history": history}


def _freeze(
    feed: Feed, learner: Learner, history: list[dict[str, Any]], *, finished: bool
) -> Trained:
    """Set the threshold on the feed's first rows, fewer where the run was stopped, and fold the scale in."""
    cfg = learner.cfg
    k, rows = cfg.build_variant().k, cfg.threshold_rows
    if not finished:
        rows = min(rows, STOPPED_BATCHES * cfg.batch_rows)
    ema = learner.raw_threshold(learner.threshold)
    with nullcontext() if learner.average is None else learner.average.in_place():
        threshold = 0.0
        if learner.needs_threshold:
            threshold = calibrate_threshold(learner, feed, k=k, rows=rows, guess=learner.threshold)
        codebook = learner.codebook(
            threshold,
            recipe={"train": cfg.to_json(), "feed": feed.state()},
            variant=cfg.variant["kind"],
            k=k,
            rows=learner.rows,
            steps=learner.step,
            finished=finished,
            precision=learner.precision,
            input_scale=_one_or_all(learner.calibration.scales_in),
            median_norm=learner.calibration.median_norm,
            threshold_ema=ema,
            **_columns(learner.calibration.widths),
        )
    state = {**learner.scalars(), "finished": finished, "threshold_ema": ema}
    state["threshold"] = float(codebook.theta.mean())
    return Trained(codebook, history, state, learner)


def _one_or_all(scales: tuple[float, ...]) -> float | list[float]:
    return scales[0] if len(scales) == 1 else list(scales)


def _columns(widths: Widths) -> dict[str, Any]:
    """Return how rows are made of columns, where they are of several."""
    if len(widths.inputs) == len(widths.outputs) == 1:
        return {}
    return {"widths_in": list(widths.inputs), "widths_out": list(widths.outputs)}


class _Meter:
    """Rate and time left of this process's share of a run; seconds go on from what a resume found."""

    def __init__(self, learner: Learner, history: list[dict[str, Any]]) -> None:
        self._step, self._rows, self._start = learner.step, learner.rows, time.perf_counter()
        self._before = history[-1]["seconds"] if history else 0.0

    def entry(self, learner: Learner, report: StepReport) -> dict[str, Any]:
        seconds = max(time.perf_counter() - self._start, 1e-9)
        pace = seconds / (learner.step - self._step)
        numbers = {name: value for name, value in asdict(report).items() if name != "finite"}
        return {
            "step": learner.step,
            "rows": learner.rows,
            **numbers,
            "threshold": learner.raw_threshold(learner.threshold),
            "seconds": self._before + seconds,
            "rows_per_second": (learner.rows - self._rows) / seconds,
            "seconds_left": pace * (learner.cfg.steps - learner.step),
        }


def _check_widths(batch: Batch, feed: Feed, step: int) -> None:
    widths = feed.widths
    for rows, width in ((batch.x, widths.width), (batch.target, widths.out_width)):
        if rows.dim() != 2 or rows.shape[1] != width:
            raise InvalidInputError(
                f"batch {step} has shape {tuple(rows.shape)}, the feed holds width {width}. Training"
                " stopped; the last checkpoint stands. Give the feed of one site.",
                kind="width-mismatch",
            )


def _diverged(
    saves: Checkpoints, learner: Learner, report: StepReport, batch: Batch
) -> DivergedError:
    """Name the rows that are not finite, or all rows of the batch where every row is."""
    bad_R = ~is_finite(batch)
    named = (batch.row_ids[bad_R.cpu()] if bool(bad_R.any()) else batch.row_ids).tolist()
    kind = "rows that are not finite" if bool(bad_R.any()) else "finite rows"
    what = (
        f"step {learner.step} gave loss {report.loss:g} and gradient norm {report.gradient_norm:g}"
    )
    return _bad_rows(saves, named, what, step=learner.step, kind=kind)


def _bad_rows(
    saves: Checkpoints,
    row_ids: list[int],
    what: str,
    *,
    step: int = 0,
    kind: str = "rows that are not finite",
) -> DivergedError:
    path = saves.report_rows(step, row_ids, kind)
    more = ", …" if len(row_ids) > NAMED_ROWS else ""
    shown = ", ".join(map(str, row_ids[:NAMED_ROWS])) + more
    return DivergedError(
        f"{what} on {len(row_ids)} {kind}: {shown} ({path or 'no folder to list them in'}). The last"
        " checkpoint stands. Leave those rows out, or lower the learning rate.",
        step=step,
        row_ids=row_ids[:NAMED_ROWS],
    )


def _feed_ended(learner: Learner) -> JobError:
    return JobError(
        f"training wants {learner.cfg.steps} batches, the feed ended after {learner.step}. The last"
        " checkpoint stands. Give a feed that goes on with the next epoch.",
        kind="feed-ended",
    )
