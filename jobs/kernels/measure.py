"""How long things take, told so that it can be believed.

Methods and baseline are timed in turn (A, B, A, B, …), so that a machine that slows down slows all of
them; the baseline is timed twice under two names, and what differs by less than those two differ is
"no difference". Times mean something only for what passed its checks: callers gate, this file only
reads clocks.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ingest.models.dtypes import multiplies_bfloat16
from jobs.errors import UsageError

WARM_UP = 2
MIN_REPEATS = 5
"""Fewest repeats that are called a measurement (specification of kernels, 11.1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Durations of one thing."""

    median_us: float
    p20_us: float
    p80_us: float
    minimum_us: float
    samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceiling:
    """What this machine can do at best, as this process runs."""

    quantity: str
    value: float
    unit: str
    setting: str


def interleaved(
    methods: Mapping[str, Callable[[int], object]],
    *,
    repeats: int,
    check: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Return the durations of several things, each run ``repeats`` times, one after another in turn.

    Parameters
    ----------
    methods
        Called with the number of the round, so that inputs can take turns; two rounds warm up, untimed.
    repeats
        At least 5.
    check
        Called between rounds; may raise to stop.

    Raises
    ------
    UsageError
        ``bad-number``: too few repeats for a median to mean something.
    """
    if repeats < MIN_REPEATS:
        raise UsageError(
            f"{repeats} timed runs were asked; a median takes at least {MIN_REPEATS}. Nothing was timed. Use more "
            "--repeats, or 0 for no times.",
            kind="bad-number",
        )
    took: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(-WARM_UP, repeats):
        for name, method in methods.items():
            seconds = _seconds(method, number % repeats)
            if number >= 0:
                took[name].append(seconds)
        if check is not None:
            check()
    return {name: timing(durations) for name, durations in took.items()}


def timing(seconds: Sequence[float]) -> Timing:
    """Return the summary of some durations."""
    micro = sorted(1e6 * s for s in seconds)
    fifths = statistics.quantiles(micro, n=5, method="inclusive") if len(micro) > 1 else micro * 4
    return Timing(
        median_us=statistics.median(micro),
        p20_us=fifths[0],
        p80_us=fifths[3],
        minimum_us=micro[0],
        samples=len(micro),
    )


def _seconds(method: Callable[[int], object], number: int) -> float:
    wait()
    began = time.perf_counter()
    method(number)
    wait()
    return time.perf_counter() - began


def wait() -> None:
    """Wait for the accelerator, where there is one at work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def noise_band(one: Timing, other: Timing) -> float:
    """Return the relative difference that is none, from one thing timed as two.

    The larger of: how far the two medians lie apart, and the half width from 20th to 80th percentile of
    either. A speedup s is "no difference" where ``max(s, 1/s) − 1`` is at most this (`verdict`).
    """
    low, high = sorted((one.median_us, other.median_us))
    return max(high / low - 1, spread(one), spread(other))


def spread(timing: Timing) -> float:
    """Return the half width of durations from the 20th to the 80th percentile, relative to the median."""
    return (timing.p80_us - timing.p20_us) / (2 * timing.median_us)


def verdict(speedup: float, band: float) -> str:
    """Return ``faster``, ``slower`` or ``no difference``."""
    if math.isnan(speedup):
        return ""
    # The baseline's own second measurement makes up the band: rounding must not put it outside.
    if max(speedup, 1 / speedup) - 1 <= band * (1 + 1e-9):
        return "no difference"
    return "faster" if speedup > 1 else "slower"


def ceilings(size: int = 1536, copy_bytes: int = 1 << 27) -> list[Ceiling]:
    """Return measured peaks of this process: products in float32 and, where the CPU has them, in bfloat16, and a copy.

    The best of five each.

    Random numbers, never zeros: constant operands run faster. ``frac_of_limit`` elsewhere is of these, not
    of a datasheet.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator) for _ in range(2))
    source = torch.randn(copy_bytes // 4, generator=generator)
    target = torch.empty_like(source)
    products: dict[str, Callable[[int], object]] = {"float32": lambda _: a @ b}
    if multiplies_bfloat16():
        half = a.bfloat16(), b.bfloat16()
        products["bfloat16"] = lambda _: half[0] @ half[1]
    took = interleaved({**products, "copy": lambda _: target.copy_(source)}, repeats=MIN_REPEATS)
    flops, threads = 2.0 * size**3, torch.get_num_threads()
    found = [
        Ceiling(
            quantity=f"product {name}",
            value=flops / took[name].minimum_us * 1e6,
            unit="FLOP/s",
            setting=f"{size} x {size} x {size}, {threads} threads",
        )
        for name in products
    ]
    copied = Ceiling(
        quantity="copy",
        value=2.0 * copy_bytes / took["copy"].minimum_us * 1e6,
        unit="B/s, read and written",
        setting=f"{copy_bytes >> 20} MiB, {threads} threads",
    )
    return [*found, copied]
