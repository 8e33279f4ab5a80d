"""How well rows are mixed: for a row of a batch, how many others of its sequence are in the batch with it.

    python tests/bench/shuffle_quality.py --rows 4M --window 1M --batch 4096 --tokens 128 512 1024

Tokens of one sequence look alike, so a batch with many of one is worth less than its size. Orders alone are computed, of
sequences of equal length that lie one behind the other; what is told is the mean over the rows of all batches, at
``window`` rows in memory for everyone:

- ``ours``: ``store.order``, as ``Store.windows`` uses it; ``full``: one window over everything, where rows fit in memory;
  ``at equal bytes``: ours with twice the rows: a window holds bfloat16 as it is stored, SAELens' pool float32 by default
  (dictionary_learning's the model's dtype).
- ``window, shuffled``: so many rows one behind the other, shuffled completely: what ours is held to (at most 1.15 times).
- ``refilled at half``: a pool that is refilled with the next sequences when half of it was drawn, each batch drawn from
  all that is in it (dictionary_learning's buffer).
- ``mixed halves``: half of a shuffled pool is handed out, then as many new rows are put to the rest and all are shuffled
  (SAELens' mixing buffer).
  Both pools spread a sequence over more than what they hold, which a window of whole chunks does only with sequences
  longer than a chunk (256 rows): at equal rows shorter ones meet 1.4 times as often in ours, at equal bytes less often.
- ``contexts``: no pool; batches of whole sequences in random order (sparsify).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jobs.values import BINARY, count
from store.order import Order

PART_ROWS = 16_384
Array = np.ndarray[Any, np.dtype[Any]]


def ours(rows: int, window: int, seed: int) -> Array:
    """Return the rows of an epoch in our order, ``int64[rows]``; parts lie one behind the other."""
    parts = -(-rows // PART_ROWS)
    held = np.full(parts, PART_ROWS, np.int64)
    held[-1] = rows - PART_ROWS * (parts - 1)
    order = Order(parts=np.arange(parts), rows=held, seed=seed, epoch=0, window_rows=window)
    found = []
    for number in range(order.windows):
        part, chunk = order.window(number)
        local = (chunk[:, None] * 256 + np.arange(256)).reshape(-1)
        part = np.repeat(part, 256)
        some = (part * PART_ROWS + local)[local < held[part]]
        found.append(some[order.shuffle(number, len(some))])
    return np.concatenate(found)


def window_shuffled(rows: int, window: int, rng: np.random.Generator) -> Array:
    """Return rows of which each window of neighbours is shuffled completely."""
    starts = range(0, rows, window)
    return np.concatenate([low + rng.permutation(min(window, rows - low)) for low in starts])


def refilled_at_half(
    rows: int, window: int, batch: int, rng: np.random.Generator
) -> Iterator[Array]:
    """Yield batches drawn from a pool that is filled up whenever half of it was drawn."""
    pool, following = np.arange(min(window, rows)), min(window, rows)
    rng.shuffle(pool)  # drawing from a shuffled pool, one behind the other, is drawing at random
    while len(pool) >= batch:
        yield pool[:batch]
        pool = pool[batch:]
        if len(pool) < window // 2 and following < rows:
            new = np.arange(following, min(rows, following + window - len(pool)))
            following += len(new)
            pool = np.concatenate([pool, new])
            rng.shuffle(pool)


def mixed_halves(rows: int, window: int, batch: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield batches of the half of a shuffled pool; the other half is shuffled with as many new rows."""
    pool, following = np.empty(0, np.int64), 0
    while following < rows:
        new = np.arange(following, min(rows, following + window - len(pool)))
        following += len(new)
        pool = np.concatenate([pool, new])
        rng.shuffle(pool)
        handed = len(pool) // 2 // batch * batch if following < rows else len(pool)
        for low in range(0, handed - batch + 1, batch):
            yield pool[low : low + batch]
        pool = pool[handed:]


def contexts(rows: int, tokens: int, batch: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield batches of whole sequences."""
    at_once = max(1, batch // tokens)
    order = rng.permutation(rows // tokens)
    for low in range(0, len(order) - at_once + 1, at_once):
        some = order[low : low + at_once]
        yield (some[:, None] * tokens + np.arange(tokens)).reshape(-1)


def batches(rows: Array, batch: int) -> Iterator[Array]:
    """Yield whole batches of rows in an order."""
    for low in range(0, len(rows) - batch + 1, batch):
        yield rows[low : low + batch]


def neighbours(some: Iterator[Array], tokens: int) -> float:
    """Return how many other rows of a row's sequence are in its batch, the mean over all rows."""
    pairs = seen = 0
    for batch in some:
        counts = np.unique(batch // tokens, return_counts=True)[1].astype(np.int64)
        pairs += int((counts * (counts - 1)).sum())
        seen += len(batch)
    return pairs / seen


def measured(rows: int, window: int, batch: int, tokens: int, seed: int) -> dict[str, float]:
    """Return the neighbours a row has, by order."""
    rng = np.random.default_rng(seed)
    return {
        "ours": neighbours(batches(ours(rows, window, seed), batch), tokens),
        "at equal bytes": neighbours(batches(ours(rows, 2 * window, seed), batch), tokens),
        "full": neighbours(batches(ours(rows, rows, seed), batch), tokens),
        "window, shuffled": neighbours(batches(window_shuffled(rows, window, rng), batch), tokens),
        "refilled at half": neighbours(refilled_at_half(rows, window, batch, rng), tokens),
        "mixed halves": neighbours(mixed_halves(rows, window, batch, rng), tokens),
        "contexts": neighbours(contexts(rows, tokens, batch, rng), tokens),
    }


def main(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Measure every length of sequence; return and print what was found."""
    parser = argparse.ArgumentParser(description="How well rows are mixed.")
    for name, usual in (("--rows", "4M"), ("--window", "1M"), ("--batch", "4k")):
        parser.add_argument(
            name, type=lambda text: count(text, BINARY), default=count(usual, BINARY)
        )
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512, 1024])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    found = []
    for tokens in asked.tokens:
        runs = [
            measured(asked.rows, asked.window, asked.batch, tokens, seed)
            for seed in range(asked.seeds)
        ]
        row: dict[str, Any] = {
            name: float(np.mean([run[name] for run in runs])) for name in runs[0]
        }
        row["ratio"] = row["ours"] / row["window, shuffled"]
        found.append({"tokens": tokens, **row})
    if asked.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        for one in found:
            said = "  ".join(
                f"{name} {value:.4f}" for name, value in one.items() if name != "tokens"
            )
            sys.stdout.write(f"{one['tokens']} tokens a sequence: {said}\n")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
