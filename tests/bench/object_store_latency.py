"""How long a window takes from an object store, as a function of what a request takes.

    python tests/bench/object_store_latency.py --parts 4 16 --delays 0 50 100 --repeats 5

An S3 server (moto) in this process, behind a proxy that holds every request back for so many milliseconds. A window of a
whole store is read: by a store that opened just now (``opening``), and again by one that opened its shards before. Told
are the median over the repeats, how many requests there were, how many were under way at once, and ``round trips``: how
much longer the window takes for each second a request takes, as if that many were made one behind the other. They must
not grow with parts or chunks as long as requests fit in ``CONNECTIONS``; bytes cost what the line costs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import store
from store.testing import servers
from store.testing.proxy import Faults, proxy
from store.testing.small import fill, tokens_store, values_of

PART_CHUNKS = 4
CHUNK_ROWS = 256
SITE = "acts:h"


def made(parts: int) -> store.Store:
    """Return a store in the bucket."""
    rows = PART_CHUNKS * CHUNK_ROWS
    url = f"s3://{servers.BUCKET}/latency-{parts}-{time.time_ns()}"
    lengths = [CHUNK_ROWS] * (PART_CHUNKS * parts)
    return fill(
        tokens_store(url, lengths, part_rows=rows, part_stride=rows), "acts", {"h": "bfloat16[64]"}
    )


def window(opened: store.Store) -> None:
    """Read a window of all rows, and check it."""
    rows = len(opened.view.parts("acts")) * PART_CHUNKS * CHUNK_ROWS
    (found,) = opened.windows([SITE], seed=0, window_rows=rows)
    assert np.array_equal(found.columns[SITE], values_of(found.row_ids, opened.column(SITE)))
    assert len(found.row_ids) == rows


def taken(url: str, faults: Faults, repeats: int) -> dict[str, dict[str, Any]]:
    """Return seconds, requests and how many were under way at once: with opening, and again."""
    found: dict[str, dict[str, list[float]]] = {
        way: {"seconds": [], "requests": [], "at_once": []} for way in ("opening", "again")
    }
    for _ in range(repeats):
        opened = store.open(url)
        for row in found.values():
            faults.requests.clear()
            faults.most_at_once = 0
            began = time.perf_counter()
            window(opened)
            row["seconds"].append(time.perf_counter() - began)
            row["requests"].append(len(faults.requests))
            row["at_once"].append(faults.most_at_once)
    return {
        way: {name: statistics.median(values) for name, values in row.items()}
        for way, row in found.items()
    }


def measured(
    upstream: str, parts: Sequence[int], delays_ms: Sequence[int], repeats: int
) -> list[dict[str, Any]]:
    """Return a row for each number of parts and each way."""
    rows = []
    for count in parts:
        url = made(count).url
        took: dict[int, dict[str, dict[str, Any]]] = {}
        for delay in delays_ms:
            faults = Faults(decide=lambda *_: "delay", delay_seconds=delay / 1000)
            with proxy(upstream, faults) as line, endpoint(line):
                took[delay] = taken(url, faults, repeats)
        low, high = min(delays_ms), max(delays_ms)
        for way in ("opening", "again"):
            seconds = {delay: row[way]["seconds"] for delay, row in took.items()}
            rows.append(
                {
                    "parts": count,
                    "chunks": count * PART_CHUNKS,
                    "way": way,
                    "seconds": seconds,
                    "requests": took[high][way]["requests"],
                    "at_once": took[high][way]["at_once"],
                    "round_trips": (seconds[high] - seconds[low]) * 1000 / (high - low),
                }
            )
    return rows


class endpoint:  # noqa: N801 - used as a function
    """Let clients made meanwhile find the server elsewhere."""

    def __init__(self, url: str) -> None:
        self.url, self.before = url, os.environ.get("AWS_ENDPOINT_URL")

    def __enter__(self) -> None:
        os.environ["AWS_ENDPOINT_URL"] = self.url

    def __exit__(self, *_: object) -> None:
        del os.environ["AWS_ENDPOINT_URL"]
        if self.before is not None:
            os.environ["AWS_ENDPOINT_URL"] = self.before


def told(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as text."""
    delays = list(rows[0]["seconds"])
    head = "  ".join(f"{f'{delay} ms':>7}" for delay in delays)
    lines = [f"parts chunks  {'':<8} {head}  requests  at once  round trips"]
    for row in rows:
        seconds = "  ".join(f"{row['seconds'][delay]:6.2f}s" for delay in delays)
        lines.append(
            f"{row['parts']:>5} {row['chunks']:>6}  {row['way']:<8} {seconds}  {row['requests']:>8.0f} "
            f"{row['at_once']:>8.0f}  {row['round_trips']:>11.1f}"
        )
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print a table and write ``--out``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--delays", type=int, nargs="+", default=[0, 50, 100], help="milliseconds")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(words)
    with servers.s3() as environment:
        os.environ.update(environment)
        import fsspec

        with contextlib.suppress(FileExistsError):  # made by another in this process
            fsspec.filesystem("s3", skip_instance_cache=True).mkdir(servers.BUCKET)
        upstream = environment["AWS_ENDPOINT_URL"].removeprefix("http://")
        rows = measured(upstream, arguments.parts, arguments.delays, arguments.repeats)
    sys.stdout.write(told(rows) + "\n")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1))
    return rows


if __name__ == "__main__":
    main()
