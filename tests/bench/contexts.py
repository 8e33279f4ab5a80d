"""What the strongest codes of a latent cost, with an index and without, by how many codes and parts there are.

    python tests/bench/contexts.py --codes 26M,260M --folder /tmp/contexts
    python tests/bench/contexts.py --codes 20M --parts 10k --folder /tmp/contexts

Tokens and one group are laid down part by part: real records, ``by_latent.parquet`` of random latents and half-precision
values (``codes.parquet`` is listed and not there: nothing that is measured reads it). Then an index is made. Each process
asks for the 20 strongest codes of one random latent after another, each row of the answer checked against its value:
``cold`` is the first in a process, store opened and all, its files out of the page cache; ``fresh`` the same with the files in
it; ``first`` the next latents, each of which may touch a file that is not yet checked; ``warm`` the same latents again.
Milliseconds, median (20th to 80th percentile).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import store
from jobs.values import BINARY, DECIMAL, count, grid
from store import layout, tables
from store.checksum import crc32c
from store.compact import compact
from store.records import make_record
from store.schema import Column, Group
from store.tokens import COLUMNS as TOKENS

ROWS, STRIDE, ID, BEST = 16_384, 16_384, "0" * 32, 20
TABLES = ("documents.parquet", "sequences.parquet", "tokens.parquet")


def value_of(row: Any, latent: Any) -> Any:
    """Return the value of some codes, a function of both, float32 rounded to half precision."""
    words = (np.asarray(row, np.uint64) * np.uint64(1_000_003)) ^ np.asarray(latent, np.uint64)
    words = (words ^ (words >> np.uint64(15))) * np.uint64(0xD6E8FEB86659FD93)
    return (
        ((words >> np.uint64(52)).astype(np.float32) / 4096).astype(np.float16).astype(np.float32)
    )


def part_of(part: int, codes: int, latents: int) -> Any:
    """Return one part's codes by latent."""
    rng = np.random.default_rng(part)
    latent = (rng.random(codes) ** 2 * latents).astype(np.uint32)  # some much oftener than others
    row = part * STRIDE + rng.integers(0, ROWS, codes)
    value = value_of(row, latent)
    order = np.lexsort((row, -value, latent))
    columns = {"row": row[order], "latent": latent[order], "value": value[order]}
    return tables.table(columns, tables.CODES)


def lay(folder: Path, codes: int, parts: int, latents: int) -> None:
    """Write a store of so many codes and parts, without waiting for the disk."""
    groups = (
        Group(name="tokens", columns=TOKENS, recipe={"part_rows": ROWS}, aligned_to=None),
        Group(
            name="codes",
            columns={"codes": Column.parse("codes", "codes")},
            recipe={},
            aligned_to="tokens",
        ),
    )
    put(
        folder / "store.json",
        "store",
        {"part_stride": STRIDE, "part_rows": ROWS, "probe": "0" * 16},
    )
    hashes: dict[int, str] = {}
    for group in groups:
        put(folder / layout.group_key(group.name), "group", group.to_json())
        for part in range(parts):
            objects = dict.fromkeys(TABLES, (0, 0, ROWS))
            if group.name == "codes":
                data = tables.encode(part_of(part, codes // parts, latents))
                path = (
                    folder
                    / layout.attempt_prefix("codes", part, f"{part:016x}")
                    / "by_latent.parquet"
                )
                path.parent.mkdir(parents=True)
                path.write_bytes(data)
                real = (len(data), crc32c(data), codes // parts)
                # listed as large as makes compact leave it alone
                objects = {"by_latent.parquet": real, "codes.parquet": (1 << 30, 0, codes // parts)}
            body = {
                "group": group.name,
                "part": part,
                "n": 0,
                "attempt": f"{part:016x}",
                "rows": ROWS,
                "recipe": group.recipe_hash,
                "tokens": hashes.get(part),
                "objects": [
                    {"path": path, "size": size, "crc32c": f"{crc:08x}", "rows": rows}
                    for path, (size, crc, rows) in sorted(objects.items())
                ],
                "summary": {},
                "provenance": {},
            }
            hashes[part] = put(folder / layout.commit_key(group.name, part), "commit", body)


def put(path: Path, kind: str, body: dict[str, Any]) -> str:
    """Lay down a record and return its hash."""
    data, mine = make_record(kind, ID, body)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return mine


def forget(folder: Path) -> None:
    """Ask the system to drop a store's files from the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ask(opened: store.Store, latent: int) -> float:
    """Return the milliseconds the strongest codes of a latent take, the answer checked."""
    began = time.perf_counter()
    found = opened.strongest("codes", [latent], BEST)
    took = time.perf_counter() - began
    row, value = (tables.column(found, name) for name in ("row", "value"))
    assert np.array_equal(value, value_of(row, np.full(len(row), latent)))
    assert (np.diff(value) <= 0).all()
    return took * 1e3


def measure(folder: str, seed: int, latents: int, times: int, *, plain: bool) -> dict[str, Any]:
    """Return what one process measures."""
    rng = np.random.default_rng(seed)
    wanted = (rng.random(times) ** 2 * latents).astype(int).tolist()
    began = time.perf_counter()
    opened = store.open(folder)
    opened = opened.without_indexes() if plain else opened
    ask(opened, wanted[0])
    opening = (time.perf_counter() - began) * 1e3
    first = [ask(opened, latent) for latent in wanted[1:]]
    return {"open": opening, "first": first, "warm": [ask(opened, x) for x in wanted]}


def build(folder: str) -> dict[str, Any]:
    """Make the index and return what it cost."""
    opened = store.open(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    made = [one for one in compact(opened, ["codes"]) if one.table == "by_latent"]
    took = time.perf_counter() - began
    mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    return {"seconds": took, "peak_mb": mb, "files": made[0].files, "codes": made[0].rows}


def spread(values: Sequence[float]) -> str:
    """Return a median with its 20th and 80th percentile."""
    low, middle, high = np.percentile(values, [20, 50, 80])
    return f"{middle:,.1f} ({low:,.1f}–{high:,.1f})"


def said_by(folder: Path, *words: str) -> Any:
    """Return what a process of its own says."""
    command = [sys.executable, __file__, "--codes", "1", "--folder", str(folder), *words]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(words: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print and return one row for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--codes", type=lambda text: grid(text, lambda x: count(x, DECIMAL)), required=True
    )
    parser.add_argument(
        "--parts",
        type=lambda text: count(text, DECIMAL),
        default=0,
        help="default: a million codes each",
    )
    parser.add_argument("--latents", type=lambda text: count(text, BINARY), default=65_536)
    parser.add_argument("--folder", type=Path, required=True, help="where the stores are kept")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--times", type=int, default=40, help="latents a process asks for")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.one:
        folder = str(given.folder)
        found = (
            build(folder)
            if given.one == "build"
            else measure(folder, given.seed, given.latents, given.times, plain=given.one == "plain")
        )
        sys.stdout.write(json.dumps(found) + "\n")
        return []
    return [one(given, codes) for codes in given.codes]


def one(given: Any, codes: int) -> dict[str, Any]:
    """Measure one size."""
    parts = given.parts or max(1, codes // 1_000_000)
    folder = given.folder / f"{codes}-{parts}"
    if not folder.exists():
        lay(folder, codes, parts, given.latents)
    row: dict[str, Any] = {"codes": codes, "parts": parts, **said_by(folder, "--one", "build")}
    say(
        f"{codes:,} codes of {parts:,} parts: index of {row['files']} files made in {row['seconds']:.1f} s, "
        f"{row['peak_mb']:.0f} MB"
    )
    for how in ("index", "plain"):
        runs: dict[str, list[Any]] = {"cold": [], "fresh": []}
        for seed in range(given.repeats):
            for kind, held in runs.items():
                if kind == "cold":
                    forget(folder)
                times = str(given.times if how == "index" else min(given.times, 5))
                settings = ["--seed", str(seed), "--latents", str(given.latents), "--times", times]
                held.append(said_by(folder, "--one", how, *settings))
        found = {kind: [run["open"] for run in held] for kind, held in runs.items()}
        for name in ("first", "warm"):
            found[name] = [value for run in runs["fresh"] for value in run[name]]
        row[how] = {name: statistics.median(values) for name, values in found.items()}
        say(f"  {how}: " + ", ".join(f"{name} {spread(values)}" for name, values in found.items()))
    if not given.keep:
        shutil.rmtree(folder)
    return row


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
