"""What a store of very many parts costs to open, list, pin and commit to.

    python tests/bench/many_parts.py --parts 1k,10k,100k --folder /tmp/many
    python tests/bench/many_parts.py --parts 1M --folder /tmp/many --only-open

Real records are laid down part by part (their objects are not: nothing that is measured reads one), for tokens and one group.
Warm: the second of two runs in fresh processes, so that names and records are in the page cache; ``open`` is
``store.open`` and the parts of both groups, ``records`` reads and checks every commit of the group, ``commit`` one more
record through the storage. Memory is the peak of the process above an empty one's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import store
from jobs.values import DECIMAL, count, grid
from store import layout
from store.records import make_record
from store.schema import Column, Group
from store.tokens import COLUMNS as TOKENS

ROWS, STRIDE, ID = 256, 256, "0" * 32
PATHS = {
    "tokens": ("documents.parquet", "sequences.parquet", "tokens.parquet"),
    "acts": ("h/c/0/0", "h/zarr.json"),
}


def _group(name: str) -> Group:
    if name == "tokens":
        return Group(name=name, columns=TOKENS, recipe={"part_rows": ROWS}, aligned_to=None)
    columns = {"h": Column.parse("h", "bfloat16[16]")}
    return Group(name=name, columns=columns, recipe={"by": "many parts"}, aligned_to="tokens")


def _commit(group: Group, part: int, tokens: str | None) -> tuple[bytes, str]:
    objects = [
        {"path": path, "size": 1000, "crc32c": "00000000", "rows": ROWS}
        for path in PATHS[group.name]
    ]
    body = {
        "group": group.name,
        "part": part,
        "n": 0,
        "attempt": f"{part:016x}",
        "rows": ROWS,
        "recipe": group.recipe_hash,
        "tokens": tokens,
        "objects": objects,
        "summary": {"h": {"mean_norm": 1.5, "max_abs": 3.25, "nonfinite": 0}},
        "provenance": {"hardware": "cpu", "torch": "2.13.0", "threads": 2},
    }
    return make_record("commit", ID, body)


def lay(folder: Path, parts: int) -> None:
    """Write a store of so many parts, without waiting for the disk."""
    if (folder / "groups/tokens/sealed.json").exists():
        return
    folder.mkdir(parents=True)
    body = {"part_stride": STRIDE, "part_rows": ROWS, "probe": "0" * 16}
    (folder / "store.json").write_bytes(make_record("store", ID, body)[0])
    hashes: list[str | None] = [None] * parts
    for name in ("tokens", "acts"):
        group = _group(name)
        (folder / f"groups/{name}").mkdir(parents=True)
        data = make_record("group", ID, group.to_json())[0]
        (folder / layout.group_key(name)).write_bytes(data)
        for part in range(parts):
            path = folder / layout.commit_key(name, part)
            if part % layout.PARTS_A_FOLDER == 0:
                path.parent.mkdir(parents=True)
            data, mine = _commit(group, part, hashes[part])
            path.write_bytes(data)
            hashes[part] = mine
    for name in ("acts", "tokens"):
        sealed = {"group": name, "parts": parts, "rows": parts * ROWS}
        (folder / layout.sealed_key(name)).write_bytes(make_record("sealed", ID, sealed)[0])


def measure(folder: str, *, only_open: bool) -> dict[str, float]:
    """Return the costs of one store, in this process."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: dict[str, float] = {}

    def timed(name: str, call: Any) -> Any:
        began = time.perf_counter()
        made = call()
        found[name] = time.perf_counter() - began
        return made

    def opened() -> store.Store:
        made = store.open(folder)
        made.view.parts("tokens"), made.view.parts("acts")
        return made

    made = timed("open", opened)
    found["open_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    if not only_open:
        timed("records", lambda: made.coverage["acts"])
        timed("pin", made.pin_id)
    storage = made.view.storage
    commits = []
    for number in range(20):
        data, _ = make_record("pin", ID, {"pin": "0" * 64, "entries": [], "segments": []})
        began = time.perf_counter()
        storage.create(f"groups/acts/commits/999999/{99_999_000 + number:08d}.0.json", data)
        commits.append(time.perf_counter() - began)
    storage.delete([f"groups/acts/commits/999999/{99_999_000 + n:08d}.0.json" for n in range(20)])
    found["commit"] = statistics.median(commits)
    found["memory_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    return found


def main(words: Sequence[str] | None = None) -> list[dict[str, float]]:
    """Lay stores down, measure each in fresh processes, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", type=lambda t: grid(t, lambda n: count(n, DECIMAL)), default=(1000, 10_000)
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the stores are kept")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--only-open",
        action="store_true",
        help="read no records: at a million parts they take minutes",
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.one:
        sys.stdout.write(json.dumps(measure(arguments.one, only_open=arguments.only_open)) + "\n")
        return []
    rows = []
    for parts in arguments.parts:
        folder = arguments.folder / str(parts)
        lay(folder, parts)
        runs = []
        for _ in range(arguments.repeats + 1):
            command = [sys.executable, __file__, "--folder", str(folder), "--one", str(folder)]
            command += ["--only-open"] if arguments.only_open else []
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs.append(json.loads(said))
        row = {name: statistics.median(run[name] for run in runs[1:]) for name in runs[0]}
        rows.append({"parts": parts, **row})
        rest = (
            ""
            if arguments.only_open
            else f"every record {row['records']:.2f} s, pin {row['pin']:.2f} s ({row['memory_mb']:.0f} MB), "
        )
        sys.stdout.write(
            f"{parts:>9,} parts: open {row['open']:.3f} s ({row['open_mb']:.0f} MB), {rest}commit "
            f"{row['commit'] * 1e3:.2f} ms\n"
        )
        sys.stdout.flush()
    return rows


if __name__ == "__main__":
    main()
