"""What a window of the shuffle costs a dictionary: FVU and dead latents, from rows as they lie to a full shuffle.

    python tests/bench/shuffle_training.py --on actlake-demo/store --site blocks.3.resid_post --windows 1,4k,64k,all \
        --latents 4096 --k 32 --batch-rows 1024 --rows 350k --seeds 3 --out /tmp/shuffle.json

``in order``: rows in the store's order, document behind document, shuffled within consecutive windows of so many rows, as a
buffer that is filled and emptied does; 1 does not shuffle. ``chunks``: the feed ``actlake train`` uses, whose windows are
filled with chunks of 256 rows drawn from anywhere. Every run sees ``--rows`` rows of the train split, at most one epoch,
and is scored on the test split.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from jobs.blocks import blocks
from jobs.dictionaries.array_feed import ArrayFeed
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.contract import Feed, derive_seed
from jobs.dictionaries.evaluate import evaluate
from jobs.dictionaries.train import train
from jobs.feed import StoreFeed, usual_rows
from jobs.values import BINARY, DECIMAL, count
from store import Store
from store import open as open_store


@dataclasses.dataclass(frozen=True)
class Buffered(ArrayFeed):
    """Rows in memory, shuffled within consecutive windows."""

    window: int = 1

    def _order(self, epoch: int) -> torch.Tensor:
        seed = derive_seed(self.seed, "buffer/epoch", epoch)
        generator = torch.Generator().manual_seed(seed)
        pieces = torch.arange(self.rows).split(self.window)
        return torch.cat(
            [piece[torch.randperm(len(piece), generator=generator)] for piece in pieces]
        )


def rows_of(store: Store, site: str, split: str) -> torch.Tensor:
    """Return a split's ordinary rows in the store's order, float32 [R, D]."""
    return torch.cat([block.x for block in blocks(store, site, where=usual_rows(split))])


def feeds(
    store: Store, site: str, rows: torch.Tensor, window: int | None, batch_rows: int, seed: int
) -> dict[str, Feed]:
    """Return both feeds with a window; None is a full shuffle, the same for both."""
    if window is None:
        return {"full": ArrayFeed(rows, batch_rows, seed)}
    found: dict[str, Feed] = {"in order": Buffered(rows, batch_rows, seed, window=window)}
    if window >= batch_rows:
        where = usual_rows("train")
        found["chunks"] = StoreFeed(store, site, batch_rows, seed, where, window)
    return found


def measured(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train and score everything; returns one record per feed, window and seed."""
    store = open_store(arguments.on)
    rows = rows_of(store, arguments.site, "train")
    held_out = rows_of(store, arguments.site, "test")
    scored = [(block, torch.zeros(len(block), dtype=torch.int64)) for block in held_out.split(2048)]
    steps = min(arguments.rows, len(rows)) // arguments.batch_rows
    records = []
    for seed in range(arguments.seeds):
        for window in arguments.windows:
            several = feeds(store, arguments.site, rows, window, arguments.batch_rows, seed)
            for name, feed in several.items():
                variant = {"kind": "batch_topk", "latents": arguments.latents, "k": arguments.k}
                config = TrainConfig(
                    variant=variant, steps=steps, batch_rows=arguments.batch_rows, seed=seed
                )
                found = evaluate(train(feed, config).codebook, scored)
                told = {"fvu": found.fvu, "dead": found.dead, "l0": found.l0}
                records.append({"feed": name, "window": window, "seed": seed, **told})
                if arguments.out is not None:
                    arguments.out.write_text(json.dumps(records, indent=1))
    return records


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return means ± standard deviations over seeds, a line for each feed and window."""
    groups: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["feed"], record["window"]), []).append(record)
    lines = [f"{'feed':<9} {'window':>8} {'FVU':>17} {'dead':>12} {'L0':>6}"]
    for (feed, window), group in groups.items():
        cells = []
        for name, digits in (("fvu", 5), ("dead", 0)):
            values = [record[name] for record in group]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.fmean(values):.{digits}f} ±{spread:.{digits}f}")
        l0 = statistics.fmean(record["l0"] for record in group)
        shown = "all" if window is None else f"{window:,}"
        lines.append(f"{feed:<9} {shown:>8} {cells[0]:>17} {cells[1]:>12} {l0:6.1f}")
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print the table and write ``--out``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--on", required=True, help="the store")
    parser.add_argument("--site", required=True)
    parser.add_argument(
        "--windows",
        type=lambda text: [
            None if word == "all" else count(word, BINARY) for word in text.split(",")
        ],
        default=[1, 4096, 65536, None],
    )
    parser.add_argument("--latents", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch-rows", type=int, default=1024)
    parser.add_argument("--rows", type=lambda text: count(text, DECIMAL), default=350_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    records = measured(parser.parse_args(words))
    sys.stdout.write(table(records))
    return records


if __name__ == "__main__":
    main()
