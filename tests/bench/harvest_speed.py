"""What keeping activations costs beside computing them: a harvest against the forward alone, as ratios of one run.

    python tests/bench/harvest_speed.py --folder /tmp/h                 # the model that comes along, 1, 4 and all sites
    python tests/bench/harvest_speed.py --folder /tmp/h --model M --context 256 --batch 32 --rows 100k
    python tests/bench/harvest_speed.py --folder /tmp/h --random 24x1024 --device cuda --dtype bfloat16 --rows 2M --batch 64
    python tests/bench/harvest_speed.py --folder /tmp/h --small         # checks the answers, times mean nothing

Both run the same batches of the same store's tokens through the same loaded model, in one process, as far as the deepest site;
the harvest writes its sites besides, checks, sums up and commits them. They take turns, and a ratio is the forward's seconds
over the harvest's in the same round: its median, with the 20th and 80th percentile. ``waiting`` is the share of a harvest's time
in which the model waited for the store, by its own clock; ``CPU`` is what the process took more than for the forward alone,
per GB kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.harvest import Harvester
from ingest.models import LoadedModel, bundled_causal, load, resolve_sites, toy
from ingest.part_rows import PartRows
from ingest.plan import batches
from ingest.run import _job, ingest
from ingest.sources import SOURCES
from jobs.runtimes.in_process import InProcess
from jobs.values import DECIMAL, count

BUDGETS = {"cpu": 0.93, "cuda": 0.98}
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(kw_only=True)
class Bench:
    """A store of tokens, a loaded model, and the batches both ways run."""

    folder: Path
    model: str
    rows: int
    context: int
    batch: int
    dtype: str
    device: str = "cpu"
    loaded: LoadedModel = field(init=False)
    made: store.Store = field(init=False)

    def __post_init__(self) -> None:
        shutil.rmtree(self.folder / "store", ignore_errors=True)
        self.loaded = load(self.model, dtype=self.dtype, device=self.device)
        source = SOURCES.get("stdlib")()
        tokens = TokensConfig(source=source, context=self.context, rows=self.rows)
        ingest(self.folder / "store", tokens, self.config(("embed",)), runtime=InProcess())
        self.made = store.open(self.folder / "store")
        self.prepared = [self.batches_of(part) for part in self.made.view.parts("tokens")]

    def config(self, sites: Sequence[str], group: str = "acts") -> HarvestConfig:
        """Return what a harvest of some sites is asked for."""
        return HarvestConfig(
            model=self.model,
            sites=tuple(sites),
            batch=self.batch,
            dtype=self.dtype,
            store_dtype="bfloat16",
            device=self.device,
            group=group,
        )

    def batches_of(self, part: int) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
        """Return (ids, mask, sequences) of a part's batches, as a harvest makes them."""
        rows = PartRows.of(self.made, part)
        pad = self.loaded.tokenizer.pad_token_id or 0
        found = []
        for one in batches(rows.lengths.tolist(), self.batch, self.loaded.adapter.max_positions):
            laid = rows.laid(one, pad)
            found.append((torch.from_numpy(laid.ids), torch.from_numpy(laid.mask), one.count))
        return found

    def forward(self, sites: Sequence[str]) -> None:
        """Run every batch as far as the deepest site, and keep nothing."""
        deepest = resolve_sites(sites, self.loaded.adapter)[-1:]
        for part in self.prepared:
            for ids, mask, _ in part:
                self.loaded.adapter.capture(ids, mask, deepest)
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def harvest(self, sites: Sequence[str], group: str) -> tuple[float, float]:
        """Write a group; return the seconds in which the model waited, and the bytes kept."""
        fresh = self.made.refresh()
        job = _job(fresh, self.config(sites, group), self.loaded, sites, self.context, "texts")
        worker = Harvester(job, self.loaded)
        waited = sum(
            float(worker.run(part)["waited_seconds"]) for part in fresh.view.parts("tokens")
        )
        worker.close()
        kept = self.made.refresh().view
        commits = [kept.commit(group, part) for part in kept.parts(group)]
        size = sum(one.size for commit in commits for one in commit.objects.values())
        return waited, size

    def check(self, sites: Sequence[str]) -> None:
        """Raise where the harvest holds anything but what the forward computes."""
        self.harvest(sites, "check")
        held = self.made.refresh()
        low = 0
        for part in self.prepared:
            for ids, mask, sequences in part:
                captured = self.loaded.adapter.capture(ids, mask, sites)
                values = {site: value.cpu() for site, value in captured.items()}
                real = mask.bool()
                real[sequences:] = False
                high = low + int(real.sum())
                for site in sites:
                    got = torch.from_numpy(held.read(f"check:{site}", slice(low, high)))
                    assert torch.equal(got, values[site][real].bfloat16().float()), site
                low = high
        self.drop("check")

    def drop(self, group: str) -> None:
        """Remove a group's files."""
        shutil.rmtree(self.folder / "store" / "groups" / group)

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder / "store")


def timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Return the seconds of a call, the processor seconds of the process meanwhile, and its answer."""
    wall, cpu = time.perf_counter(), time.process_time()
    answer = call()
    return time.perf_counter() - wall, time.process_time() - cpu, answer


def told(values: Sequence[float]) -> dict[str, float]:
    """Return median and 20th and 80th percentile."""
    low, middle, high = np.percentile(values, [20, 50, 80])
    return {"median": float(middle), "p20": float(low), "p80": float(high)}


def measured(bench: Bench, sites: Sequence[str], repeats: int) -> dict[str, Any]:
    """Run both ways in turn, once more than is counted."""
    ratios, waiting, cpu_per_gb, rates = [], [], [], []
    rows = int(
        sum(bench.made.view.commit("tokens", part).rows for part in bench.made.view.parts("tokens"))
    )
    size = 0.0
    for number in range(repeats + 1):
        ways: dict[str, Callable[[], Any]] = {
            "forward": lambda: bench.forward(sites),
            "harvest": lambda number=number: bench.harvest(sites, f"round.{number}"),
        }
        took = {name: timed(ways[name]) for name in list(ways)[:: 1 if number % 2 else -1]}
        bench.drop(f"round.{number}")
        if not number:
            continue  # warms up
        (forward, forward_cpu, _), (whole, whole_cpu, (waited, size)) = (
            took["forward"],
            took["harvest"],
        )
        ratios.append(forward / whole)
        waiting.append(waited / whole)
        cpu_per_gb.append((whole_cpu - forward_cpu) / (size / 1e9))
        rates.append(rows / whole)
    return {
        "sites": len(sites),
        "ratio": told(ratios),
        "waiting": told(waiting),
        "cpu_seconds_per_gb": told(cpu_per_gb),
        "rows_s": told(rates),
        "mb": size / 1e6,
    }


def chosen_sites(loaded: LoadedModel) -> list[list[str]]:
    """Return one, four and all of the stream's sites."""
    streams = resolve_sites(["blocks.*.resid_post"], loaded.adapter)
    half = loaded.adapter.layers // 2
    few = streams[-min(4, len(streams)) :]
    return [[f"blocks.{half}.resid_post"], few, streams]


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table and write ``--out``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number = {"type": lambda text: count(text, DECIMAL)}
    parser.add_argument("--folder", type=Path, required=True, help="on the disk to be measured")
    parser.add_argument("--model", default=str(bundled_causal()))
    parser.add_argument(
        "--random", help="a Llama of random weights, LAYERSxWIDTH, in place of --model"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", default=30_000, **number)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--small", action="store_true", help="seconds: 2k rows, once")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(words)
    if arguments.small:
        arguments.rows, arguments.context, arguments.repeats = 2000, 64, 1
    if arguments.random:
        layers, width = (int(one) for one in arguments.random.split("x"))
        sizes = {"layers": layers, "width": width, "heads": max(1, width // 64)}
        made = arguments.folder / "model"
        arguments.model = str(toy.save("llama", made, positions=arguments.context, **sizes))
    bench = Bench(
        folder=arguments.folder,
        model=arguments.model,
        rows=arguments.rows,
        context=arguments.context,
        batch=arguments.batch,
        dtype=arguments.dtype,
        device=arguments.device,
    )
    budget = BUDGETS[arguments.device.partition(":")[0]]
    try:
        choices = chosen_sites(bench.loaded)
        bench.check(choices[1])
        found = [measured(bench, sites, arguments.repeats) for sites in choices]
    finally:
        bench.remove()
    lines = [
        f"{'sites':>6} {'MB':>7} {'rows/s':>9} {'ratio (p20–p80)':>22} {'waiting':>8} {'CPU s/GB':>9}"
    ]
    for row in found:
        ratio = row["ratio"]
        verdict = "met" if ratio["median"] >= budget else "MISSED"
        lines.append(
            f"{row['sites']:>6} {row['mb']:>7.0f} {row['rows_s']['median']:>9,.0f} "
            f"{ratio['median']:>6.3f} ({ratio['p20']:.3f}–{ratio['p80']:.3f}) ≥ {budget} {verdict} "
            f"{row['waiting']['median']:>7.1%} {row['cpu_seconds_per_gb']['median']:>9.1f}"
        )
    sys.stdout.write(
        f"{bench.loaded.adapter.family}, {bench.loaded.compute_dtype}, context {arguments.context}, batch {arguments.batch}, "
        f"{torch.get_num_threads()} threads\n" + "\n".join(lines) + "\n"
    )
    result = {"model": bench.loaded.adapter.family, "rows": found}
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    main()
