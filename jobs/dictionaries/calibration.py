"""What a run measures on rows before its first step and after its last.

Before: input scale, mean, variance and median of the rows. After: the threshold at which the final
weights activate k latents a row on average.

Dimensions: R rows, D width, L latents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from jobs.batches import Batch, Widths
from jobs.codes import positions
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.contract import Feed
from jobs.dictionaries.ranks import ALONE, Ranks

MEDIAN_ITERATIONS = 100
MEDIAN_TOLERANCE = 1e-5
FINE_BITS = (
    16  # bits of a float32 below its histogram bin: 65,536 bins, each 1/128 of its value wide
)


@dataclass(frozen=True)
class Calibration:
    """Facts about a run's rows, in raw units save ``variance``."""

    scales_in: tuple[float, ...]
    """What each column read is multiplied by: ``1 / sqrt(E‖x‖²)``."""
    scales_out: tuple[float, ...]
    """The same of each column that is rebuilt."""
    variance: float
    """``E‖y − E y‖²`` of scaled rows to rebuild, over all columns."""
    median_norm: float
    """Median of ‖x‖ over the median rows."""
    rows: int
    """Rows seen."""
    widths: Widths
    median: Tensor
    """Where ``b_dec`` starts, float32 [E]: the geometric median, or the mean of a target that is not read."""

    @property
    def scale_in(self) -> Tensor:
        """Factor of each value read, float32 [D]."""
        return _spread(self.scales_in, self.widths.inputs)

    @property
    def scale_out(self) -> Tensor:
        """Factor of each value that is rebuilt, float32 [E]."""
        return _spread(self.scales_out, self.widths.outputs)

    def to_json(self) -> dict[str, Any]:
        """Return all but the median as JSON values."""
        return {
            "scales_in": list(self.scales_in),
            "scales_out": list(self.scales_out),
            "variance": self.variance,
            "median_norm": self.median_norm,
            "rows": self.rows,
            "widths": [list(self.widths.inputs), list(self.widths.outputs)],
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any], median: Tensor) -> Calibration:
        """Undo ``to_json``."""
        inputs, outputs = facts["widths"]
        return cls(
            scales_in=tuple(facts["scales_in"]),
            scales_out=tuple(facts["scales_out"]),
            variance=facts["variance"],
            median_norm=facts["median_norm"],
            rows=facts["rows"],
            widths=Widths(tuple(inputs), tuple(outputs)),
            median=median,
        )


def _spread(scales: Sequence[float], widths: Sequence[int]) -> Tensor:
    return torch.tensor(scales).repeat_interleave(torch.tensor(widths))


class _Moments:
    """Sums over rows, float64, from which scales and variance follow."""

    def __init__(self, widths: Sequence[int]) -> None:
        self._widths = list(widths)
        self._square = torch.zeros(len(widths), dtype=torch.float64)
        self._total = torch.zeros(sum(widths), dtype=torch.float64)

    def add(self, x_RD: Tensor) -> None:
        self._total += x_RD.sum(dim=0, dtype=torch.float64)
        parts = torch.split(x_RD, self._widths, dim=1)
        self._square += torch.stack(
            [p.square().sum(dim=1, dtype=torch.float64).sum() for p in parts]
        )

    def scales(self, rows: int) -> tuple[float, ...]:
        """Return ``1/sqrt(E‖x‖²)`` of each column; 1 where it is all zero, NaN where it is not finite."""
        means = (self._square / rows).tolist()
        return tuple(_inverse_root(mean) for mean in means)

    def variance(self, rows: int) -> float:
        """Return ``E‖x − E x‖²`` of scaled rows; 1 where all are equal."""
        mean_D = self._total / rows
        found = 0.0
        for square, mean in zip(
            (self._square / rows).tolist(), torch.split(mean_D, self._widths), strict=True
        ):
            spread = square - float(mean.square().sum())
            found += spread / square if square > 0 and spread > 1e-12 * square else 0.0
        return found or 1.0

    def mean(self, rows: int) -> Tensor:
        return (self._total / rows).float()


def _inverse_root(mean_square: float) -> float:
    if not math.isfinite(mean_square):
        return math.nan
    return 1 / math.sqrt(mean_square) if mean_square > 0 else 1.0


def calibrate(feed: Feed, cfg: TrainConfig) -> Calibration:
    """Measure the feed's first rows (at most one epoch); sums are float64.

    Where rows are all zero or all equal, scale or variance are 1. Rows that are not finite make the scale
    NaN; see ``non_finite_rows``.
    """
    widths, seen = feed.widths, 0
    read, rebuilt, paired = _Moments(widths.inputs), _Moments(widths.outputs), False
    sample: list[Tensor] = []
    for batch in first_batches(feed, cfg.scale_rows):
        x_RD = batch.x.cpu()
        paired = batch.y is not None
        if seen < cfg.median_rows:
            sample.append(x_RD[: cfg.median_rows - seen])
        read.add(x_RD)
        if paired:
            rebuilt.add(batch.target.cpu())
        seen += len(x_RD)
    out = rebuilt if paired else read
    scales_in, scales_out = read.scales(seen), out.scales(seen)
    finite = all(map(math.isfinite, (*scales_in, *scales_out)))
    sample_RD = torch.cat(sample)
    median = out.mean(seen)
    if finite and not paired:
        each = _spread(scales_in, widths.inputs)
        median = geometric_median(sample_RD * each) / each
    return Calibration(
        scales_in=scales_in,
        scales_out=scales_out,
        variance=out.variance(seen) if finite else 1.0,
        median_norm=float(sample_RD.norm(dim=1).median()) if finite else math.nan,
        rows=seen,
        widths=widths,
        median=median,
    )


def is_finite(batch: Batch) -> Tensor:
    """Return which rows of a batch hold finite numbers only, bool [R]."""
    parts = [part for part in (batch.x, batch.y, batch.g) if part is not None]
    return torch.stack([torch.isfinite(part).all(dim=1) for part in parts]).all(dim=0)


def non_finite_rows(feed: Feed, cfg: TrainConfig) -> list[int]:
    """Return the ids of the rows ``calibrate`` reads that hold a NaN or an infinity."""
    bad: list[int] = []
    for batch in first_batches(feed, cfg.scale_rows):
        bad += batch.row_ids[~is_finite(batch)].tolist()
    return bad


def first_batches(feed: Feed, rows: int) -> Iterator[Batch]:
    """Yield the feed's first ``rows`` rows, at most one epoch, batch by batch."""
    wanted = min(rows, feed.rows)
    for batch in feed.batches(0):
        yield Batch(*(part if part is None else part[:wanted] for part in batch))  # type: ignore[arg-type]
        wanted -= len(batch.x)
        if wanted <= 0:
            return


def geometric_median(x_RD: Tensor) -> Tensor:
    """Return the point with the least summed distance to the rows, float32 [D] (Weiszfeld)."""
    median_D = x_RD.mean(dim=0)
    for _ in range(MEDIAN_ITERATIONS):
        distance_R = (x_RD - median_D).norm(dim=1)
        weight_R = 1 / distance_R.clamp(min=1e-8 * float(distance_R.max()) + 1e-30)
        moved_D = (weight_R / weight_R.sum()) @ x_RD
        shift = float((moved_D - median_D).norm())
        median_D = moved_D
        if shift <= MEDIAN_TOLERANCE * float(distance_R.mean()):
            break
    return median_D


class Scorer(Protocol):
    """Anything that scores rows block by block, as a codebook does."""

    def blocks(self, x_RD: Tensor) -> Iterator[tuple[int, Tensor, Any]]:
        """Yield (first row, float32 scores [r, L], anything), block by block."""
        ...


def calibrate_threshold(
    scorer: Scorer, feed: Feed, *, k: int, rows: int, guess: float, ranks: Ranks = ALONE
) -> float:
    """Return θ, in the scores' units, that k scores of a row exceed on average over the feed's first ``rows`` rows.

    Scores are counted by the upper half of their bit patterns and the cut is interpolated
    within its bin, which is 1/128 of θ wide. Only those above ``guess``/2 are counted, unless they are
    too few. Where even the positive ones are fewer than k a row, θ is 0. With ``ranks`` each scores its own latents.
    """
    for floor in (max(0.0, guess / 2) if math.isfinite(guess) else 0.0, 0.0):
        counts, seen = _histogram(scorer, floor, first_batches(feed, rows))
        counts = ranks.sum(counts)
        at_least = counts.flip(0).cumsum(0).flip(0)
        edge = int((at_least >= seen * k).sum()) - 1
        if edge >= 0:
            low, high = max(floor, _bin_edge(edge)), _bin_edge(edge + 1)
            return low + (high - low) * (int(at_least[edge]) - seen * k) / int(counts[edge])
    return 0.0


def _histogram(scorer: Scorer, floor: float, batches: Iterator[Batch]) -> tuple[Tensor, int]:
    """Return how many scores above ``floor`` fall into each bin, and the rows seen."""
    counts = torch.zeros(1 << FINE_BITS, dtype=torch.int64)
    rows = 0
    for batch in batches:
        rows += len(batch.x)
        for _, pre_RL, _ in scorer.blocks(batch.x):
            above = pre_RL.flatten()[positions(pre_RL > floor)]
            bins = above.view(torch.int32) >> FINE_BITS
            counts += torch.bincount(bins, minlength=len(counts)).cpu()
    return counts, rows


def _bin_edge(index: int) -> float:
    return float(torch.tensor(index << FINE_BITS, dtype=torch.int32).view(torch.float32))
