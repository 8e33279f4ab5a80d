"""Times training steps with dense and with sparse code products on the very same batches.

    python tests/bench/training_speed.py --on ./store --site acts:blocks.3.resid_post --latents 4096,16384 \
        --batch-rows 2048,4096 --k 32 --repeats 7 --out /tmp/training_speed.json

Without ``--on`` the rows are sums of planted directions. Every step is a whole one: scores, selection, values,
reconstruction, losses, gradients, Adam. Entrants take turns within a round, each a learner of its own from the same
seed; the dense bfloat16 step, the fastest dense one, runs twice in every round, and speedups within the band of
those two are no difference.

- ``dense``: reconstruction and all gradients as products over the whole matrix of codes, float32;
- ``dense_bfloat16``: the same with factors rounded to bfloat16, as automatic mixed precision does;
- ``bags``: embedding bags, the plain sparse form;
- ``recorded``: the forms that the records choose on this machine, what ``actlake train`` uses.

The dense steps get the values of the chosen pairs by the sparse form, as an engine that keeps its scores has them
for nothing. Scores are bfloat16 in all of them where the hardware multiplies it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ingest.models import hardware_class
from jobs.codes import CodeOps, PlainCodeOps
from jobs.dictionaries.array_feed import ArrayFeed
from jobs.dictionaries.calibration import calibrate
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.contract import Feed
from jobs.dictionaries.learner import Learner, resolve_precision
from jobs.feed import StoreFeed, usual_rows
from jobs.kernels.codes.choose import RecordedOps
from jobs.kernels.codes.contract import FORMS
from jobs.kernels.measure import interleaved, noise_band, verdict
from store import open as open_store

BASELINE, AGAIN = "dense_bfloat16", "dense_bfloat16, again"


class DenseStep:
    """Dense products, but values at pairs by the sparse form while rows are encoded."""

    def __init__(self, form: str) -> None:
        self._dense, self._sparse = FORMS.get(form)(), FORMS.get("sampled_rows")()
        self.encoding = False

    def gather_sum(self, *arguments: Any) -> torch.Tensor:
        return self._dense.gather_sum(*arguments)

    def scatter_sum(self, *arguments: Any) -> torch.Tensor:
        return self._dense.scatter_sum(*arguments)

    def dots(self, *arguments: Any) -> torch.Tensor:
        return (self._sparse if self.encoding else self._dense).dots(*arguments)


def dense_learner(learner: Learner) -> Learner:
    """Let a learner know its ops while it encodes."""
    dictionary = learner.dictionary
    ops, activate = dictionary.ops.sparse, dictionary.activate

    def activated(*arguments: Any, **options: Any) -> Any:
        ops.encoding = True
        try:
            return activate(*arguments, **options)
        finally:
            ops.encoding = False

    dictionary.activate = activated
    return learner


def planted(rows: int, width: int, seed: int) -> torch.Tensor:
    """Return rows that are sums of 24 of 3000 unit directions, the popular ones more often."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(3000, width, generator=generator), dim=1)
    popularity = (1 / torch.arange(1, 3001)).expand(256, -1)
    blocks = []
    for _ in range(0, rows, 256):
        chosen = torch.multinomial(popularity, 24, generator=generator)
        length = torch.rand(256, 24, 1, generator=generator) + 0.2
        blocks.append((directions[chosen] * length).sum(dim=1))
    return torch.cat(blocks)[:rows]


def learners(
    cfg: TrainConfig, feed: Feed, names: Sequence[str]
) -> Iterator[tuple[str, Learner, dict[str, str]]]:
    """Yield name, learner and the forms it runs on; all start from the same weights."""
    calibration = calibrate(feed, cfg)
    variant, precision = cfg.build_variant(), resolve_precision(cfg.precision, "cpu")
    chooser = RecordedOps()
    choice = chooser.choose(
        rows=cfg.batch_rows, width=feed.widths.width, latents=variant.latents, k=variant.k
    )
    for name in names:
        form = name.partition(",")[0]
        if form in {"dense", "dense_bfloat16"}:
            ops: CodeOps = DenseStep(form)
            yield name, dense_learner(Learner(cfg, calibration, precision=precision, ops=ops)), {}
        else:
            ops = chooser.build(choice) if form == "recorded" else PlainCodeOps()
            forms = choice["forms"] if form == "recorded" else {}
            yield name, Learner(cfg, calibration, precision=precision, ops=ops), forms


def measured(
    cfg: TrainConfig, feed: Feed, *, repeats: int, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a row for every entrant: rows/s, spread, speedup over the dense bfloat16 step."""
    batches = list(islice(feed.batches(0), repeats))
    entrants = {name: (learner, forms) for name, learner, forms in learners(cfg, feed, names)}
    reports: dict[str, Any] = {}

    def step(name: str) -> Any:
        def run(number: int) -> None:
            reports[name] = entrants[name][0].learn(batches[number])

        return run

    took = interleaved({name: step(name) for name in entrants}, repeats=repeats)
    band = noise_band(took[BASELINE], took[AGAIN])
    base = min(took[BASELINE].median_us, took[AGAIN].median_us)
    rows = []
    for name, timing in took.items():
        speedup = base / timing.median_us
        rows.append(
            {
                "entrant": name,
                "latents": cfg.build_variant().latents,
                "batch_rows": cfg.batch_rows,
                "rows_per_second": cfg.batch_rows / timing.median_us * 1e6,
                "rows_per_second_p20": cfg.batch_rows / timing.p80_us * 1e6,
                "rows_per_second_p80": cfg.batch_rows / timing.p20_us * 1e6,
                "speedup": speedup,
                "noise_band": band,
                "verdict": verdict(speedup, band),
                "fvu": reports[name].fvu,
                "forms": dict(entrants[name][1]),
            }
        )
    return rows


def feed_of(arguments: argparse.Namespace, batch_rows: int) -> Feed:
    """Return the batches: a store's, or planted rows."""
    if arguments.on:
        where = usual_rows("train")
        return StoreFeed(
            open_store(arguments.on), arguments.site, batch_rows, arguments.seed, where
        )
    x = planted(max(16_384, 2 * batch_rows), arguments.width, arguments.seed)
    return ArrayFeed(x, batch_rows, arguments.seed)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as text."""
    lines = [
        f"{'latents':>8} {'batch':>6} {'entrant':<22} {'rows/s':>9} {'p20–p80':>17} {'speedup':>8}"
    ]
    for row in rows:
        low, high = row["rows_per_second_p20"], row["rows_per_second_p80"]
        lines.append(
            f"{row['latents']:>8} {row['batch_rows']:>6} {row['entrant']:<22} "
            f"{row['rows_per_second']:>9,.0f} {low:>8,.0f}–{high:<8,.0f} {row['speedup']:>7.2f}x "
            f"{row['verdict']} (band {row['noise_band']:.1%}) FVU {row['fvu']:.3f}"
        )
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print the table and write ``--out``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers = {"type": lambda text: [int(word) for word in text.split(",")]}
    parser.add_argument("--on", help="store; without one, planted rows")
    parser.add_argument("--site", default="acts:blocks.3.resid_post")
    parser.add_argument("--width", type=int, default=384, help="of planted rows")
    parser.add_argument("--latents", default=[4096, 16384], **numbers)
    parser.add_argument("--batch-rows", default=[2048, 4096], **numbers)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--variant", default="batch_topk")
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds, at least 5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(words)
    names = ("dense", BASELINE, "bags", "recorded", AGAIN)
    rows = []
    for latents in arguments.latents:
        for batch_rows in arguments.batch_rows:
            feed = feed_of(arguments, batch_rows)
            cfg = TrainConfig(
                variant={"kind": arguments.variant, "latents": latents, "k": arguments.k},
                steps=1000,
                batch_rows=batch_rows,
                scale_rows=16_384,
                median_rows=4096,
                seed=arguments.seed,
            )
            rows += measured(cfg, feed, repeats=arguments.repeats, names=names)
            sys.stdout.write(table(rows[-len(names) :]) + "\n")
            sys.stdout.flush()
    if arguments.out:
        facts = {"hardware_class": hardware_class(), "threads": torch.get_num_threads()}
        arguments.out.write_text(json.dumps({**facts, "rows": rows}, indent=1))
    return rows


if __name__ == "__main__":
    main()
