"""Times several dictionaries on one reading of a store beside the sum of their steps alone.

    python tests/bench/training_together.py --on actlake-demo/store --site blocks.3.resid_post --latents 2048,4096 --k 16,32 \
        --variants batch_topk,topk --batch-rows 2048 --steps 12 --repeats 5

``together``: every step of every dictionary, batches read out of the store once for all of them; ``alone``: the same steps of
fresh dictionaries one after the other, on the same batches held in memory, so without any feed. They take turns; what
is told is the ratio of the medians, from the least to the most of the rounds. Filling the window is timed apart: it is
paid once for all of its rows, of which these steps are few.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

from jobs.dictionaries.calibration import calibrate
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.learner import Learner, resolve_precision
from jobs.feed import StoreFeed, read_once, usual_rows
from jobs.kernels.codes.choose import RecordedOps
from store import open as open_store


def learners(configs: Sequence[TrainConfig], feed: StoreFeed, calibration: Any) -> list[Learner]:
    """Return fresh dictionaries, with the products the records choose."""
    found, chooser = [], RecordedOps()
    for cfg in configs:
        variant = cfg.build_variant()
        sizes = {"width": feed.widths.width, "latents": variant.latents, "k": variant.k}
        ops = chooser.build(chooser.choose(rows=cfg.batch_rows, **sizes))
        precision = resolve_precision(cfg.precision, "cpu")
        found.append(Learner(cfg, calibration, precision=precision, ops=ops))
    return found


def measured(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of every round, together and alone."""
    feed = StoreFeed(
        open_store(arguments.on), arguments.site, arguments.batch_rows, 0, usual_rows("train")
    )
    grid = itertools.product(arguments.variants, arguments.latents, arguments.k)
    configs = [
        TrainConfig(
            variant={"kind": kind, "latents": latents, "k": k},
            steps=1000,
            batch_rows=arguments.batch_rows,
        )
        for kind, latents, k in grid
    ]
    calibration = calibrate(feed, configs[0])
    took: dict[str, list[float]] = {"together": [], "alone": [], "window": []}
    for number in range(arguments.repeats + 1):  # the first one warms up
        held = list(islice(feed.batches(0), arguments.steps))
        several = learners(configs, feed, calibration)
        stream = read_once([feed] * len(several), 0)
        start = time.perf_counter()
        first = next(stream)  # fills the window, once for as many rows as it holds
        window = time.perf_counter() - start
        start = time.perf_counter()
        for batches in itertools.chain([first], islice(stream, arguments.steps - 1)):
            for learner, batch in zip(several, batches, strict=True):
                learner.learn(batch)
        together = time.perf_counter() - start
        several = learners(configs, feed, calibration)
        start = time.perf_counter()
        for learner in several:
            for batch in held:
                learner.learn(batch)
        alone = time.perf_counter() - start
        if number:
            took["window"].append(window)
            took["together"].append(together)
            took["alone"].append(alone)
    return took


def main(words: Sequence[str] | None = None) -> float:
    """Measure, print and return the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers = {"type": lambda text: [int(word) for word in text.split(",")]}
    parser.add_argument("--on", required=True, help="the store")
    parser.add_argument("--site", required=True)
    parser.add_argument("--variants", type=lambda text: text.split(","), default=["batch_topk"])
    parser.add_argument("--latents", default=[2048, 4096], **numbers)
    parser.add_argument("--k", default=[16, 32], **numbers)
    parser.add_argument("--batch-rows", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args(words)
    took = measured(arguments)
    ratios = sorted(a / b for a, b in zip(took["together"], took["alone"], strict=True))
    ratio = statistics.median(took["together"]) / statistics.median(took["alone"])
    count = len(arguments.variants) * len(arguments.latents) * len(arguments.k)
    sys.stdout.write(
        f"{count} dictionaries on one reading: {ratio:.3f} times the sum of their steps alone "
        f"({ratios[0]:.3f}–{ratios[-1]:.3f}); the window was filled in {statistics.median(took['window']):.2f} s before\n"
    )
    return ratio


if __name__ == "__main__":
    main()
