"""What a run measures on rows before its first step and after its last.

Before: input scale, mean, variance and median of the rows. After: the threshold at which the final
weights activate k latents a row on average.

Dimensions: R rows, D width, L latents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.codebook import Codebook
from jobs.codes import positions
from jobs.dictionaries.contract import Feed, TrainConfig

MEDIAN_ITERATIONS = 100
MEDIAN_TOLERANCE = 1e-5
FINE_BITS = (
    16  # bits of a float32 below its histogram bin: 65,536 bins, each 1/128 of its value wide
)


@dataclass(frozen=True)
class Calibration:
    """Facts about a run's rows, in raw units save ``variance``."""

    scale: float
    """Rows are multiplied by it: ``1 / sqrt(E‖x‖²)``."""
    variance: float
    """``E‖x − E x‖²`` of scaled rows, in (0, 1]."""
    median_norm: float
    """Median of ‖x‖ over the median rows."""
    rows: int
    """Rows seen."""
    median: Tensor
    """Geometric median, float32 [D]."""


def calibrate(feed: Feed, cfg: TrainConfig) -> Calibration:
    """Measure the feed's first rows (at most one epoch); sums are float64.

    Where rows are all zero or all equal, scale or variance are 1. Rows that are not finite make the scale
    NaN; see ``non_finite_rows``.
    """
    square, total_D, seen = 0.0, torch.zeros(feed.width, dtype=torch.float64), 0
    sample: list[Tensor] = []
    for x_RD in first_rows(feed, cfg.scale_rows):
        x_RD = x_RD.cpu()
        if seen < cfg.median_rows:
            sample.append(x_RD[: cfg.median_rows - seen])
        square += float(x_RD.square().sum(dim=1, dtype=torch.float64).sum())
        total_D += x_RD.sum(dim=0, dtype=torch.float64)
        seen += len(x_RD)
    mean_square = square / seen
    if not math.isfinite(mean_square):
        return Calibration(math.nan, 1.0, math.nan, seen, total_D.float())
    variance = mean_square - float((total_D / seen).square().sum())
    sample_RD = torch.cat(sample)
    return Calibration(
        scale=1 / math.sqrt(mean_square) if mean_square > 0 else 1.0,
        variance=variance / mean_square if variance > 1e-12 * mean_square else 1.0,
        median_norm=float(sample_RD.norm(dim=1).median()),
        rows=seen,
        median=geometric_median(sample_RD),
    )


def non_finite_rows(feed: Feed, cfg: TrainConfig) -> list[int]:
    """Return the ids of the rows ``calibrate`` reads that hold a NaN or an infinity."""
    bad: list[int] = []
    seen = 0
    for row_ids, x_RD in feed.batches(0):
        bad += row_ids[~torch.isfinite(x_RD).all(dim=1)].tolist()
        seen += len(x_RD)
        if seen >= min(cfg.scale_rows, feed.rows):
            break
    return bad


def first_rows(feed: Feed, rows: int) -> Iterator[Tensor]:
    """Yield the feed's first ``rows`` rows, at most one epoch, batch by batch."""
    wanted = min(rows, feed.rows)
    for _, x_RD in feed.batches(0):
        yield x_RD[:wanted]
        wanted -= len(x_RD)
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


def calibrate_threshold(
    codebook: Codebook, feed: Feed, *, k: int, rows: int, guess: float
) -> float:
    """Return θ in raw units so that the feed's first ``rows`` rows have k active latents on average.

    Pre-activations are counted by the upper half of their bit patterns and the cut is interpolated
    within its bin, which is 1/128 of θ wide. Only those above ``guess``/2 are counted, unless they are
    too few. Where even the positive ones are fewer than k a row, θ is 0.
    """
    for floor in (guess / 2, 0.0):
        counts, seen = _histogram(codebook, floor, first_rows(feed, rows))
        at_least = counts.flip(0).cumsum(0).flip(0)
        edge = int((at_least >= seen * k).sum()) - 1
        if edge >= 0:
            low, high = max(floor, _bin_edge(edge)), _bin_edge(edge + 1)
            return low + (high - low) * (int(at_least[edge]) - seen * k) / int(counts[edge])
    return 0.0


def _histogram(codebook: Codebook, floor: float, blocks: Iterator[Tensor]) -> tuple[Tensor, int]:
    """Return how many pre-activations above ``floor`` fall into each bin, and the rows seen."""
    counts = torch.zeros(1 << FINE_BITS, dtype=torch.int64)
    rows = 0
    for x_RD in blocks:
        rows += len(x_RD)
        for _, pre_RL, _ in codebook.blocks(x_RD):
            above = pre_RL.flatten()[positions(pre_RL > floor)]
            bins = above.view(torch.int32) >> FINE_BITS
            counts += torch.bincount(bins, minlength=len(counts)).cpu()
    return counts, rows


def _bin_edge(index: int) -> float:
    return float(torch.tensor(index << FINE_BITS, dtype=torch.int32).view(torch.float32))
