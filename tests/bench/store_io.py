"""What the store's I/O costs beside plain loops that do the same reads and writes, as ratios of one run.

    python tests/bench/store_io.py --folder /tmp/io                              # 0.5 GB, rows of 4 KiB
    python tests/bench/store_io.py --folder /tmp/io --rows 600k --width 384      # narrow rows
    python tests/bench/store_io.py --folder /tmp/io --small                      # checks the answers, times mean nothing

Rows are bfloat16 bits. A ratio is the plain loop's seconds over ours in the same round, told as its median with the
20th and 80th percentile over the rounds; in a round everything runs once, in turn. Plain loops read the very shards of
the store, offsets known beforehand, into buffers they keep:

- ``write``: one file a part, written and fsynced, against ``put`` to ``commit`` (crc32c, summary, records);
- ``read``: every chunk and its crc32c read, checked, copied out; ``again`` leaves the check out on both sides, for a store
  that checked its chunks once does not do so again; ``returned`` is ours into fresh memory, ``float32`` widens on both;
- ``windows``: the same with rows put to their shuffled places, window after window;
- ``gather``: random rows of a flat file through ``np.memmap``, in the order asked for and sorted;
- ``cold``: the same files read from end to end, 8 MiB at a time. Before each, files are synced and dropped from the page
  cache (``posix_fadvise``, DONTNEED); a cache below the operating system, a host's say, is not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

import store
from jobs.values import DECIMAL, count
from store import TokenSequence
from store.buffers import Pool
from store.layout import CHUNK_ROWS, ShardLayout, shard_path
from store.order import Order
from store.summary import bfloat16_bits, float32_of_bits

PART_ROWS, STRIDE_ROWS, SEQUENCE_ROWS, PUT_ROWS = 16_384, 65_536, 256, 4096
DISK_BYTES = 8 << 20
SITE = "acts:h"
BUDGETS = {"write": 0.8, "read": 0.9, "windows": 0.9, "gather": 0.5, "cold": 0.8}
PEAK_SHARDS = 2
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Contest:
    """One thing done two ways on the same rows (all of them, or ``rows``)."""

    name: str
    plain: Callable[[], object]
    ours: Callable[[], object]
    cold: bool = False
    rows: int = 0


@dataclass(kw_only=True)
class Bench:
    """A store, the same rows in a flat file, and buffers that plain loops keep."""

    folder: Path
    rows: int
    width: int
    window_rows: int
    gather_rows: int
    made: store.Store = field(init=False)
    bits: Array = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        self.bits = np.empty((self.rows, self.width), np.uint16)
        for low in range(0, self.rows, PART_ROWS):
            block = self.bits[low : low + PART_ROWS]
            block[:] = bfloat16_bits(rng.standard_normal(block.shape, np.float32))
        self.floats = float32_of_bits(self.bits[:PART_ROWS])
        if (self.folder / "store").exists():
            shutil.rmtree(self.folder / "store")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.made = self.tokens()
        self.write("acts")
        self.made = self.made.refresh()
        self.bits.tofile(self.folder / "flat")
        self.mapped = np.memmap(self.folder / "flat", np.uint16, "r", shape=self.bits.shape)
        self.chunk = np.zeros((CHUNK_ROWS, self.width), np.uint16)
        self.wide = np.zeros((CHUNK_ROWS, self.width), np.float32)
        self.tail = bytearray(4)
        self.block = np.zeros(DISK_BYTES, np.uint8)
        self.out = {kind: np.zeros(self.bits.shape, kind) for kind in (np.uint16, np.float32)}
        commits = [self.made.view.commit("acts", part) for part in self.made.view.parts("acts")]
        self.shards = [self.folder / "store" / (c.prefix + shard_path("h", 2)) for c in commits]
        self.sizes = np.array([c.rows for c in commits])
        self.layout = ShardLayout(row_bytes=2 * self.width, rows=PART_ROWS, stride_rows=STRIDE_ROWS)
        self.rng = np.random.default_rng(1)
        self.ids = self.made.row_ids()
        self.plan = self.planned()
        self.pool = Pool()

    # -- writing ---------------------------------------------------------------------------------------

    def tokens(self) -> store.Store:
        """Return a store of tokens only."""
        made = store.create(self.folder / "store", part_rows=PART_ROWS, part_stride=STRIDE_ROWS)
        with made.writer("tokens", recipe={}) as writer:
            for low in range(0, self.rows, PART_ROWS):
                left = min(PART_ROWS, self.rows - low)
                sizes = [min(SEQUENCE_ROWS, left - at) for at in range(0, left, SEQUENCE_ROWS)]
                writer.put([TokenSequence(token_ids=np.zeros(n, np.int32)) for n in sizes])
            writer.seal()
        return made.refresh()

    def write(self, group: str, *, floats: bool = False) -> None:
        """Write a group, as bits or as float32 (the first part's values over and over)."""
        spec = {"h": f"bfloat16[{self.width}]"}
        with self.made.writer(group, columns=spec, recipe={"by": "store_io"}) as writer:
            ids = self.made.row_ids()
            for low in range(0, self.rows, PUT_ROWS):
                mine = ids[low : low + PUT_ROWS]
                at = low % PART_ROWS
                values = self.floats if floats else self.bits[low - at :]
                writer.put(mine, {"h": values[at : at + len(mine)]}, raw=not floats)

    def write_plain(self) -> None:
        """Write the same bits, a file a part, each fsynced."""
        (self.folder / "plain").mkdir(exist_ok=True)
        for low in range(0, self.rows, PART_ROWS):
            with (self.folder / f"plain/{low}").open("wb", buffering=0) as file:
                view = memoryview(self.bits[low : low + PART_ROWS]).cast("B")
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())

    def tidy(self) -> None:
        """Remove what writing left."""
        for name in ("store/groups/again", "plain"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def remove(self) -> None:
        """Remove everything."""
        self.tidy()
        shutil.rmtree(self.folder / "store")
        (self.folder / "flat").unlink()

    # -- plain loops -----------------------------------------------------------------------------------

    def chunks(self, shards: Sequence[tuple[int, int]], *, check: bool) -> Iterator[Array]:
        """Yield the chunks of (shard, chunk) pairs, in a buffer that is reused."""
        opened, at = -1, -1
        for shard, chunk in shards:
            if shard != at:
                if opened >= 0:
                    os.close(opened)
                opened, at = os.open(self.shards[shard], os.O_RDONLY), shard
            os.preadv(opened, [self.chunk, self.tail], self.layout.offset(chunk))
            if check:
                found = google_crc32c.extend(0, self.chunk.reshape(-1).view(np.uint8))
                if found != int.from_bytes(self.tail, "little"):
                    raise SystemExit(f"{self.shards[shard]}: chunk {chunk} is damaged")
            yield self.chunk
        os.close(opened)

    def read_plain(self, *, check: bool = True, floats: bool = False) -> None:
        """Copy every row out, in order."""
        out, at = self.out[np.float32 if floats else np.uint16], 0
        wanted = [
            (s, c) for s, rows in enumerate(self.sizes) for c in range(-(-rows // CHUNK_ROWS))
        ]
        for (shard, chunk), data in zip(wanted, self.chunks(wanted, check=check), strict=True):
            rows = min(CHUNK_ROWS, self.sizes[shard] - chunk * CHUNK_ROWS)
            if floats:
                float32_of_bits(data[:rows], out[at : at + rows])
            else:
                out[at : at + rows] = data[:rows]
            at += rows

    def planned(self) -> list[list[tuple[int, int, Array]]]:
        """Return (shard, chunk, place of each row) of all windows."""
        order = Order(
            parts=np.arange(len(self.sizes)),
            rows=self.sizes,
            seed=0,
            epoch=0,
            window_rows=self.window_rows,
        )
        windows = []
        for number in range(order.windows):
            shard, chunk = order.window(number)
            rows = np.minimum(CHUNK_ROWS, self.sizes[shard] - chunk * CHUNK_ROWS)
            place = np.argsort(order.shuffle(number, int(rows.sum())))
            places = np.split(place, np.cumsum(rows)[:-1])
            windows.append(list(zip(shard.tolist(), chunk.tolist(), places, strict=True)))
        return windows

    def windows_plain(self, *, check: bool = True, floats: bool = False) -> None:
        """Put the rows of every window to their places."""
        row = np.dtype((np.void, (4 if floats else 2) * self.width))  # assigned faster than [R, D]
        out = self.out[np.float32 if floats else np.uint16].view(row).reshape(-1)
        given = self.wide if floats else self.chunk
        for window in self.plan:
            wanted = [(shard, chunk) for shard, chunk, _ in window]
            for (_, _, place), data in zip(window, self.chunks(wanted, check=check), strict=True):
                if floats:
                    float32_of_bits(data, self.wide)
                out[place] = given.view(row).reshape(-1)[: len(place)]

    def disk(self) -> None:
        """Read the shards from end to end."""
        for path in self.shards:
            with path.open("rb", buffering=0) as file:
                while file.readinto(self.block):
                    pass

    def flat(self, *, sort: bool = False) -> Array:
        """Return random rows of the flat file."""
        at = self.rng.integers(0, self.rows, self.gather_rows)
        return self.mapped[np.sort(at) if sort else at]

    # -- ours ------------------------------------------------------------------------------------------

    def read(self, made: store.Store, *, floats: bool = False, reuse: bool = True) -> None:
        """Read every row, a part's worth at a time."""
        out = self.out[np.float32 if floats else np.uint16]
        for low in range(0, self.rows, PART_ROWS):
            mine = slice(low, min(low + PART_ROWS, self.rows))
            made.read(SITE, mine, raw=not floats, **({"out": out[mine]} if reuse else {}))

    def windows(self, made: store.Store, *, floats: bool = False) -> int:
        """Take every window of an epoch."""
        rows = 0
        some = {"seed": 0, "window_rows": self.window_rows, "raw": not floats, "pool": self.pool}
        for window in made.windows([SITE], **some):
            rows += len(window.columns[SITE])
            del window  # its memory is used for the next, as the plain loop's
        return rows

    def gather(self, made: store.Store, *, sort: bool = False) -> Array:
        """Return random rows."""
        at = self.rng.integers(0, self.rows, self.gather_rows)
        return made.gather(SITE, self.ids[np.sort(at) if sort else at], raw=True)

    def drop(self) -> None:
        """Drop the shards from the page cache."""
        for path in self.shards:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    # -- what is compared ------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise where a plain loop and ours differ: what is wrong is not timed."""
        fresh = self.made.refresh()
        self.read_plain()
        assert np.array_equal(self.out[np.uint16], self.bits)
        assert np.array_equal(fresh.read(SITE, raw=True), self.bits)
        at = 0
        for number, window in enumerate(
            fresh.windows([SITE], seed=0, window_rows=self.window_rows, raw=True)
        ):
            rows = np.searchsorted(self.ids, window.row_ids)
            assert len(rows) == sum(len(place) for _, _, place in self.plan[number])
            assert np.array_equal(window.columns[SITE], self.bits[rows])
            at += len(rows)
        assert at == self.rows

    def contests(self) -> list[Contest]:
        """Return everything that is measured."""
        known, fresh = self.made.refresh(), self.made.refresh
        self.read(known)
        plain_read, plain_windows = self.read_plain, self.windows_plain
        some = {"rows": self.gather_rows}
        return [
            Contest("write bits", self.write_plain, lambda: self.write("again")),
            Contest("write float32", self.write_plain, lambda: self.write("again", floats=True)),
            Contest("read bits", plain_read, lambda: self.read(fresh())),
            Contest("read bits, again", lambda: plain_read(check=False), lambda: self.read(known)),
            Contest("read bits, returned", plain_read, lambda: self.read(fresh(), reuse=False)),
            Contest(
                "read float32",
                lambda: plain_read(floats=True),
                lambda: self.read(fresh(), floats=True),
            ),
            Contest("windows bits", plain_windows, lambda: self.windows(fresh())),
            Contest(
                "windows bits, again",
                lambda: plain_windows(check=False),
                lambda: self.windows(known),
            ),
            Contest(
                "windows float32",
                lambda: plain_windows(floats=True),
                lambda: self.windows(fresh(), floats=True),
            ),
            Contest("gather, first touch", self.flat, lambda: self.gather(fresh()), **some),
            Contest("gather", self.flat, lambda: self.gather(known), **some),
            Contest(
                "gather, sorted",
                lambda: self.flat(sort=True),
                lambda: self.gather(known, sort=True),
                **some,
            ),
            Contest("cold read bits", self.disk, lambda: self.read(fresh()), cold=True),
            Contest("cold windows bits", self.disk, lambda: self.windows(fresh()), cold=True),
        ]


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def told(values: Sequence[float]) -> dict[str, float]:
    """Return median and 20th and 80th percentile."""
    low, middle, high = np.percentile(values, [20, 50, 80])
    return {"median": float(middle), "p20": float(low), "p80": float(high)}


def measured(bench: Bench, repeats: int, wanted: str = "") -> list[dict[str, Any]]:
    """Run every contest once a round, both ways in turn; return what came of them."""
    contests = [contest for contest in bench.contests() if wanted in contest.name]
    took: dict[str, list[tuple[float, float]]] = {contest.name: [] for contest in contests}
    for number in range(repeats + 1):
        for contest in contests:
            pair = {}
            for way in ("plain", "ours")[:: 1 if number % 2 else -1]:
                if contest.cold:
                    bench.drop()
                pair[way] = timed(getattr(contest, way))
                bench.tidy()
            if number:  # the first round warms up
                took[contest.name].append((pair["plain"], pair["ours"]))
    rows = []
    for contest in contests:
        pairs = np.array(took[contest.name])
        many = contest.rows or bench.rows
        kind = next(kind for kind in BUDGETS if contest.name.startswith(kind))
        rows.append(
            {
                "what": contest.name,
                "ratio": told(pairs[:, 0] / pairs[:, 1]),
                "ours_rows_s": told(many / pairs[:, 1]),
                "plain_rows_s": told(many / pairs[:, 0]),
                "ours_mb_s": told(many * bench.width * 2e-6 / pairs[:, 1]),
                "plain_mb_s": told(many * bench.width * 2e-6 / pairs[:, 0]),
                "budget": None if "first touch" in contest.name else BUDGETS[kind],
            }
        )
    return rows


def crc_share(bench: Bench, repeats: int) -> dict[str, float]:
    """Return which share of a plain loop over windows its checks take."""
    pairs = [
        (timed(bench.windows_plain), timed(lambda: bench.windows_plain(check=False)))
        for _ in range(repeats)
    ]
    return told([1 - without / whole for whole, without in pairs])


def peak_memory(arguments: argparse.Namespace, kind: str) -> float:
    """Return what a process that writes holds above its input at most, in MB; in a process of its own."""
    words = ["--folder", str(arguments.folder / "memory"), "--rows", str(arguments.rows)]
    command = [sys.executable, __file__, *words, "--width", str(arguments.width), "--memory", kind]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def write_and_watch(bench: Bench, kind: str) -> float:
    """Return how far the resident memory rose while a group was written, in MB."""

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status("VmRSS")
    bench.write("again", floats=kind == "float32")
    return (status("VmHWM") - before) / 1024


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as text."""
    lines = [
        f"{'':<22} {'ours MB/s':>10} {'plain MB/s':>10} {'rows/s':>11}  ratio (p20–p80), budget"
    ]
    for row in rows:
        ratio, budget = row["ratio"], row["budget"]
        verdict = (
            ""
            if budget is None
            else f"≥ {budget} {'met' if ratio['median'] >= budget else 'MISSED'}"
        )
        lines.append(
            f"{row['what']:<22} {row['ours_mb_s']['median']:>10,.0f} {row['plain_mb_s']['median']:>10,.0f} "
            f"{row['ours_rows_s']['median']:>11,.0f}  {ratio['median']:.2f} "
            f"({ratio['p20']:.2f}–{ratio['p80']:.2f}) {verdict}"
        )
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table and write ``--out``."""
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number = {"type": lambda text: count(text, DECIMAL)}
    parser.add_argument("--folder", type=Path, required=True, help="on the disk to be measured")
    parser.add_argument("--rows", default=131_072, **number)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--window-rows", default=16_384, **number)
    parser.add_argument("--gather-rows", default=20_000, **number)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="", help="contests whose names hold this")
    parser.add_argument("--small", action="store_true", help="a second: 40k rows of 32, once")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory", choices=["bits", "float32"], help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.small:
        arguments.rows, arguments.width, arguments.window_rows = 40_000, 32, 8192
        arguments.gather_rows, arguments.repeats = 1000, 1
    bench = Bench(
        folder=arguments.folder,
        rows=arguments.rows,
        width=arguments.width,
        window_rows=arguments.window_rows,
        gather_rows=arguments.gather_rows,
    )
    try:
        if arguments.memory:
            sys.stdout.write(f"{write_and_watch(bench, arguments.memory)}\n")
            return {}
        bench.check()
        found: dict[str, Any] = {"rows": arguments.rows, "width": arguments.width}
        found["contests"] = measured(bench, arguments.repeats, arguments.only)
        found["crc_share_of_windows"] = crc_share(bench, arguments.repeats)
    finally:
        bench.remove()
    found["write_peak_mb"] = {kind: peak_memory(arguments, kind) for kind in ("bits", "float32")}
    found["shard_mb"] = PART_ROWS * arguments.width * 2 / 1e6
    shards = {kind: peak / found["shard_mb"] for kind, peak in found["write_peak_mb"].items()}
    found["write_peak_shards"] = shards
    sys.stdout.write(
        f"{arguments.rows:,} rows of {arguments.width} bfloat16, windows of {arguments.window_rows:,} rows; "
        f"warm but where it says cold\n"
        f"{table(found['contests'])}\n"
        f"crc32c is {found['crc_share_of_windows']['median']:.0%} of the plain loop over windows; memory above the "
        f"input while writing: {shards['bits']:.2f} shards of bits, {shards['float32']:.2f} of float32 (a shard: "
        f"{found['shard_mb']:.0f} MB; at most {PEAK_SHARDS})\n"
    )
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    main()
