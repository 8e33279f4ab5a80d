"""What codecs save and cost on real activations: bytes, rates, error, and what a dictionary trained on them loses.

    python tests/bench/codecs.py --on actlake-demo/store --site acts:blocks.3.resid_post --rows 200k --repeats 5

Rows of a store's train split are written with every codec into stores in a temporary folder, in turns, and read back, all
warm. A dictionary is then trained on what each codec gives back and scored on held-out rows as they were: what differs
from ``raw`` is the codec's doing. Rates are of one thread and include coding, checksums, files and fsync.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import store
from jobs.dictionaries.array_feed import ArrayFeed
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.evaluate import EvalPartial
from jobs.dictionaries.train import train
from jobs.values import DECIMAL, count
from store import TokenSequence
from store.codecs import CODECS
from store.tokens import FLAG_SPECIAL, SPLITS

PART_ROWS = 16_384
BLOCK = 2048


def rows_of(url: str, site: str, split: str, most: int) -> np.ndarray:
    """Return a split's ordinary rows as bits, ``uint16[R, D]``."""
    opened = store.open(url)
    tokens = opened.arrow("tokens")
    keep = (tokens["split"].to_numpy() == SPLITS.index(split)) & (
        tokens["flags"].to_numpy() & FLAG_SPECIAL == 0
    )
    return opened.gather(site, tokens["row"].to_numpy()[keep][:most], raw=True)


def written(folder: Path, codec: str, bits: np.ndarray) -> tuple[store.Store, float]:
    """Write rows into a new store; return it and the seconds its column took."""
    made = store.create(folder, part_rows=PART_ROWS)
    with made.writer("tokens", recipe={}) as tokens:
        for low in range(0, len(bits), PART_ROWS):
            size = min(PART_ROWS, len(bits) - low)
            tokens.put([TokenSequence(token_ids=np.zeros(size, np.int32))])
        tokens.seal()
    made = made.refresh()
    ids = made.row_ids()
    began = time.perf_counter()
    columns = {"h": f"bfloat16[{bits.shape[1]}]"}
    with made.writer("acts", columns=columns, recipe={}, codec=codec) as writer:
        for low in range(0, len(bits), BLOCK):
            writer.put(ids[low : low + BLOCK], {"h": bits[low : low + BLOCK]}, raw=True)
    return made.refresh(), time.perf_counter() - began


def fvu(train_rows: np.ndarray, held_out: np.ndarray, arguments: argparse.Namespace) -> float:
    """Return the held-out FVU of a dictionary trained on rows."""
    feed = ArrayFeed(torch.from_numpy(train_rows), 2048, 0)
    variant = {"kind": "batch_topk", "latents": arguments.latents, "k": 32}
    steps = max(1, arguments.epochs * len(train_rows) // 2048)
    book = train(feed, TrainConfig(variant=variant, steps=steps, batch_rows=2048, seed=0)).codebook
    partial = EvalPartial.empty(book.latents, held_out.shape[1])
    for low in range(0, len(held_out), BLOCK):
        block = torch.from_numpy(held_out[low : low + BLOCK])
        partial.update(book, (block, np.zeros(len(block), np.int64)))
    return float(partial.finalize().fvu)


def shard_bytes(made: store.Store) -> int:
    """Return the bytes of a column's shards."""
    commits = (made.view.commit("acts", part) for part in made.view.parts("acts"))
    return sum(item.size for c in commits for item in c.objects.values() if "/c/" in item.path)


def measured(
    bits: np.ndarray, repeats: int
) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """Write and read rows with every codec, in turns; return figures and what each gives back."""
    took: dict[str, dict[str, list[float]]] = {n: {"write": [], "read": []} for n in CODECS.names()}
    found: dict[str, dict[str, Any]] = {}
    given: dict[str, np.ndarray] = {}
    for _ in range(repeats):
        for name in CODECS.names():
            with tempfile.TemporaryDirectory() as folder:
                made, seconds = written(Path(folder) / "s", name, bits)
                took[name]["write"].append(seconds)
                made.read("acts:h", raw=True)
                began = time.perf_counter()
                back = made.refresh().read("acts:h", raw=True)
                took[name]["read"].append(time.perf_counter() - began)
                given[name] = (back.astype(np.uint32) << 16).view(np.float32)
                summary = made.view.commit("acts", 0).summary["h"]
                found[name] = {
                    "ratio": bits.nbytes / shard_bytes(made),
                    "relative_squared_error": float(summary.get("relative_squared_error", 0)),
                    "max_error": float(summary.get("max_error", 0)),
                }
    for name, of in took.items():
        for verb, seconds_all in of.items():
            rates = sorted(bits.nbytes / s / 1e6 for s in seconds_all)
            found[name][f"{verb}_mb_s"] = statistics.median(rates)
            found[name][f"{verb}_spread"] = (rates[-1] - rates[0]) / statistics.median(rates)
    return found, given


def main(words: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--on", required=True, help="a store")
    parser.add_argument("--site", default="acts:blocks.3.resid_post")
    parser.add_argument("--rows", type=lambda text: count(text, DECIMAL), default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--latents", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=2, help="0: no dictionaries")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(words)
    bits = rows_of(arguments.on, arguments.site, "train", arguments.rows)
    found, given = measured(bits, arguments.repeats)
    if arguments.epochs:
        held = rows_of(arguments.on, arguments.site, "test", arguments.rows)
        held_out = (held.astype(np.uint32) << 16).view(np.float32)
        for name, rows in given.items():
            found[name]["fvu"] = fvu(rows, held_out, arguments)
    lines = [
        f"{len(bits):,} rows of {bits.shape[1]} bfloat16; MB are of raw bytes, spreads (max − min) / median"
    ]
    for name, row in found.items():
        lines.append(
            f"{name:<16} {row['ratio']:.3f}x  write {row['write_mb_s']:6.0f} MB/s ±{row['write_spread']:.0%}  "
            f"read {row['read_mb_s']:6.0f} MB/s ±{row['read_spread']:.0%}  "
            f"error² {row['relative_squared_error']:.2e}  max {row['max_error']:.3g}  FVU {row.get('fvu', float('nan')):.5f}"
        )
    sys.stdout.write("\n".join(lines) + "\n")
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    main()
