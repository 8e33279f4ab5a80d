"""Training dictionaries on a feed: calibrate, step, keep checkpoints, set the threshold, freeze."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.batches import Batch, Widths
from jobs.codebook import Codebook
from jobs.codes import CodeOps
from jobs.dictionaries.calibration import (
    Calibration,
    calibrate,
    calibrate_threshold,
    non_finite_rows,
)
from jobs.dictionaries.checkpoint import Checkpoints
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.contract import Feed, require
from jobs.dictionaries.evaluate import evaluate
from jobs.dictionaries.faults import bad_rows, check_widths, diverged, feed_ended
from jobs.dictionaries.learner import Learner, StepReport, resolve_precision
from jobs.dictionaries.ranks import ALONE, Ranks
from jobs.errors import DivergedError
from store.errors import InvalidInputError

STOPPED_BATCHES = 8  # rows for the threshold of a run that has to end soon
BEST = "best"
"""Folder of the dictionary that was best on held-out batches."""


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


class Run:
    """One dictionary on its way: its learner, its history and its checkpoints.

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
    ops
        A faster form of the sparse products; part of no recipe.
    calibrated
        What was measured of these feeds' rows before, by ``calibration_key``; gets what is measured now.
    ranks
        Processes that train this dictionary together, each on its rows of every batch. The first writes checkpoints,
        all read them; any number of ranks goes on where any other stopped.
    by
        What the ranks share out: ``rows`` of every batch, or ``latents``, for dictionaries wider than one device holds.
        Latents are shared out by the number of ranks a run began with, each of which keeps checkpoints of its own.
    held_out
        Batches on which every checkpoint is scored, frozen; the one with the least FVU there is kept in ``out/best``.
    meta
        What the frozen dictionary says of its columns.

    Raises
    ------
    ConflictError
        ``other-recipe``: ``out`` holds the run of another recipe.
    DivergedError
        ``diverged``: rows are not finite, so they have no scale.
    """

    def __init__(
        self,
        feed: Feed,
        cfg: TrainConfig,
        *,
        out: Path | None = None,
        log: Callable[[dict[str, Any]], None] | None = None,
        resume: bool = True,
        ops: CodeOps | None = None,
        device: str = "cpu",
        log_every: int = 50,
        checkpoint_every: int = 500,
        calibrated: dict[str, Calibration] | None = None,
        ranks: Ranks = ALONE,
        by: str = "rows",
        held_out: Sequence[Batch] = (),
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        require("by", by, "rows or latents", holds=by in {"rows", "latents"})
        whole = not held_out or by == "rows"
        require("by", by, "rows where batches are held out", holds=whole)
        self.feed, self.cfg, self.ranks, self.by = feed, cfg, ranks, by
        self._log, self._log_every, self._checkpoint_every = log, log_every, checkpoint_every
        recipe = {"train": cfg.to_json(), "feed": feed.state(), "width": feed.widths.width}
        self._own = by == "latents" and ranks.world > 1
        seat = f"checkpoints-{ranks.rank}-of-{ranks.world}" if self._own else "checkpoints"
        self._saves = Checkpoints(out, recipe, seat)
        self.history: list[dict[str, Any]] = []
        self._held_out, self._out, self.meta = held_out, out, dict(meta or {})
        self.best: dict[str, Any] | None = None
        kept = self._saves.latest() if resume else None
        if kept is None:
            if ranks.rank == 0 or self._own:
                self._saves.clear()
            precision = resolve_precision(cfg.precision, device)
            calibration = self._calibrate({} if calibrated is None else calibrated)
            self.learner = Learner(
                cfg, calibration, precision=precision, device=device, ops=ops, ranks=ranks, by=by
            )
        else:
            tensors, state = kept
            self.learner = Learner.restore(
                cfg, tensors, state["learner"], device=device, ops=ops, ranks=ranks, by=by
            )
            self.history = list(state["history"])
            self.best = state.get("best")
        self._meter = _Meter(self.learner, self.history)

    def _calibrate(self, calibrated: dict[str, Calibration]) -> Calibration:
        key = calibration_key(self.feed, self.cfg)
        if key not in calibrated:
            calibrated[key] = calibrate(self.feed, self.cfg)
        found = calibrated[key]
        if not math.isfinite(sum((*found.scales_in, *found.scales_out))):
            bad = non_finite_rows(self.feed, self.cfg)
            raise bad_rows(self._saves, bad, "the input scale could not be measured")
        return found

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.learner.step

    @property
    def done(self) -> bool:
        """Whether all steps are taken."""
        return self.learner.step >= self.cfg.steps

    def take(self, batch: Batch) -> None:
        """Take the next step; raises ``DivergedError``, ``InvalidInputError`` (``width-mismatch``)."""
        check_widths(batch, self.feed, self.step)
        report = self.learner.learn(batch)
        if not report.finite:
            raise diverged(self._saves, self.learner, report, batch)
        self._last = report
        if self.done or self.step % self._log_every == 0:
            self._note()
        if self.done or self.step % self._checkpoint_every == 0:
            self.save()

    def _note(self) -> None:
        self.history.append(self._meter.entry(self.learner, self._last))
        if self._log is not None and self.ranks.rank == 0:
            self._log(self.history[-1])

    def stop(self) -> None:
        """Leave a checkpoint of the steps taken since the last one."""
        if not self.done and self._meter.steps:
            if not self.history or self.history[-1]["step"] != self.step:
                self._note()
            self.save()

    def save(self) -> None:
        """Keep a checkpoint, and the dictionary where it is the best so far."""
        if self.ranks.rank == 0 or self._own:
            self._keep_best()
            state = {"learner": self.learner.scalars(), "history": self.history}
            if self.best is not None:
                state["best"] = self.best
            self._saves.save(self.step, self.learner.tensors(), state)

    def _keep_best(self) -> None:
        if not self._held_out or self._out is None:
            return
        book = frozen(self, STOPPED_BATCHES * self.cfg.batch_rows)
        none = np.zeros(self.cfg.batch_rows, np.int64)
        blocks = [(batch.x, none[: len(batch.x)], None, batch.target) for batch in self._held_out]
        fvu = evaluate(book, blocks, massive_norm=math.inf).fvu
        if self.best is None or fvu < self.best["fvu"]:
            self.best = {"step": self.step, "fvu": fvu}
            replace(book, meta={**book.meta, "best": self.best}).save(self._out / BEST)


def shared_out(batch: Batch, ranks: Ranks) -> Batch:
    """Return the rows of a batch that a rank trains on: every ``world``-th from ``rank`` on."""
    if ranks.world == 1:
        return batch
    rows = len(batch.row_ids)
    require(
        "batch_rows", rows, f"a multiple of {ranks.world}, the ranks", holds=rows % ranks.world == 0
    )
    mine = slice(ranks.rank, None, ranks.world)
    return Batch(*(part if part is None else part[mine] for part in batch))  # type: ignore[arg-type]


def calibration_key(feed: Feed, cfg: TrainConfig) -> str:
    """Return what decides a calibration: equal keys, equal facts."""
    return json.dumps([feed.state(), cfg.scale_rows, cfg.median_rows], sort_keys=True)


def train(
    feed: Feed,
    cfg: TrainConfig,
    *,
    should_stop: Callable[[], bool] | None = None,
    **options: Any,
) -> Trained:
    """Train a dictionary on a feed's rows; a run that was stopped goes on where it was.

    Parameters
    ----------
    should_stop
        Asked after every step; true ends the run after a checkpoint, with ``finished`` false and a
        threshold set on few rows.
    options
        Those of ``Run``.

    Raises
    ------
    ConflictError, DivergedError, InvalidInputError
        As ``Run`` and ``Run.take`` do.
    """
    run = Run(feed, cfg, **options)
    batches = (
        (shared_out(batch, run.learner.share.row_ranks),) for batch in feed.batches(run.step)
    )
    return train_together([run], batches, start=run.step, should_stop=should_stop)[0]


def train_together(
    runs: Sequence[Run],
    batches: Iterable[Sequence[Batch]],
    *,
    start: int,
    should_stop: Callable[[], bool] | None = None,
) -> list[Trained]:
    """Train several dictionaries on one reading of their rows; each gets the bits it would get alone.

    Parameters
    ----------
    runs
        Each at a step of its own, none before ``start``; one that is ahead waits for its batch.
    batches
        From batch ``start`` on, one batch of each run at a time.
    should_stop
        Asked after every batch; true ends all of them, each with a checkpoint.

    Raises
    ------
    DivergedError
        One of them diverged; the others keep a checkpoint of what they had learned.
    """
    stopped = False
    reading = iter(batches)
    number = start
    while not stopped and not all(run.done for run in runs):
        several = next(reading, None)
        if several is None:
            raise feed_ended(min(runs, key=lambda run: run.step / run.cfg.steps).learner)
        for run, batch in zip(runs, several, strict=True):
            if run.step == number and not run.done:
                _take(run, batch, runs)
        number += 1
        asked = should_stop is not None and should_stop()
        stopped = _any(runs[0].ranks, said=asked) and not all(run.done for run in runs)
    if stopped:
        for run in runs:
            run.stop()
    return [_freeze(run) for run in runs]


def _any(ranks: Ranks, *, said: bool) -> bool:
    """Return whether any rank said so: one that is told to stop stops all."""
    return bool(int(ranks.largest(torch.tensor([int(said)]))))


def _take(run: Run, batch: Batch, runs: Sequence[Run]) -> None:
    try:
        run.take(batch)
    except (DivergedError, InvalidInputError):
        for other in runs:
            if other is not run:
                other.stop()
        raise


def _freeze(run: Run) -> Trained:
    """Set the threshold on the feed's first rows, fewer where the run was stopped, and fold the scale in."""
    learner, finished = run.learner, run.done
    rows = run.cfg.threshold_rows
    if not finished:
        rows = min(rows, STOPPED_BATCHES * run.cfg.batch_rows)
    codebook = frozen(run, rows)
    ema = codebook.meta["threshold_ema"]
    state = {**learner.scalars(), "finished": finished, "threshold_ema": ema}
    state["threshold"] = float(codebook.theta.mean())
    return Trained(codebook, run.history, state, learner)


def frozen(run: Run, threshold_rows: int) -> Codebook:
    """Return a run's dictionary as it is now, its threshold set on the feed's first rows."""
    feed, cfg, learner = run.feed, run.cfg, run.learner
    k = cfg.build_variant().k
    with nullcontext() if learner.average is None else learner.average.in_place():
        threshold = 0.0
        if learner.needs_threshold:
            threshold = calibrate_threshold(
                learner,
                feed,
                k=k,
                rows=min(threshold_rows, cfg.threshold_rows),
                guess=learner.threshold,
                ranks=learner.share.latent_ranks,
            )
        return learner.codebook(
            threshold,
            recipe={"train": cfg.to_json(), "feed": feed.state()},
            variant=cfg.variant["kind"],
            k=k,
            rows=learner.rows,
            steps=learner.step,
            finished=run.done,
            precision=learner.precision,
            input_scale=_one_or_all(learner.calibration.scales_in),
            median_norm=learner.calibration.median_norm,
            threshold_ema=learner.raw_threshold(learner.threshold),
            **_columns(learner.calibration.widths),
            **run.meta,
        )


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
        self._learner = learner

    @property
    def steps(self) -> int:
        """Steps this process took."""
        return self._learner.step - self._step

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
