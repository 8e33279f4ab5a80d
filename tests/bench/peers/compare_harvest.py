"""Keeps one site of one model over the same tokens, with ours and with SAELens' ``CacheActivationsRunner``.

    python tests/bench/peers/compare_harvest.py --env /tmp/peers_harvest --out /tmp/harvests --rows 100k --repeats 3

The peer gets an environment of its own, made by ``venv`` and pip from the package index on the first call. Token ids are those of
this library's own standard-library text, cut to whole sequences; both take the same batches and threads, load the model and
the ids before the clock starts, and compute in float32 (ours in another dtype where asked: ``--dtype auto``).
SAELens keeps float32; ours keeps bfloat16, and float32 where asked
(``--store-dtype float32``). They take turns. What is written: ``OUT/comparison.json`` and a table on standard output.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.harvest import Harvester
from ingest.models import bundled_causal, load
from ingest.run import _job, ingest
from ingest.sources import SOURCES
from jobs.runtimes.in_process import InProcess
from jobs.values import DECIMAL, count

REQUIREMENTS = ("sae-lens==6.*", "torch==2.13.0", "transformers>=5,<6")
WORKER = Path(__file__).with_name("harvest_worker.py")
SPEED, SIZE = 4.0, 0.5


def environment(folder: Path) -> Path:
    """Return the Python of the peer's environment, made on the first call."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "torch==2.13.0"], check=True)
        subprocess.run([*pip, "install", *REQUIREMENTS], check=True)
        (folder / "ready").write_text("\n".join(REQUIREMENTS))
    return python


def whole_sequences(
    folder: Path, model: str, rows: int, context: int, batch: int
) -> np.ndarray[Any, Any]:
    """Return token ids ``int64[S, context]`` of whole sequences of text, in four whole batches and more: so the peer
    fills no buffer up.
    """
    shutil.rmtree(folder, ignore_errors=True)
    tokens = TokensConfig(source=SOURCES.get("stdlib")(), context=context, rows=rows)
    harvest = HarvestConfig(model=model, sites=("embed",), dtype="float32")
    ingest(folder, tokens, harvest, runtime=InProcess())
    made = store.open(folder)
    sequences = made.arrow("sequences").to_pylist()
    whole = [one["seq_id"] for one in sequences if one["rows"] == context]
    whole = whole[: len(whole) // (4 * batch) * 4 * batch]
    return np.stack(made.sequences("token_id", whole)).astype(np.int64)


class Ours:
    """A store of those sequences, and a harvest of one site over them."""

    def __init__(
        self, folder: Path, model: str, ids: np.ndarray[Any, Any], settings: HarvestConfig
    ) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        lines = folder.with_suffix(".jsonl")
        lines.write_text("".join(json.dumps({"token_ids": one.tolist()}) + "\n" for one in ids))
        source = SOURCES.get("pretokenised")(paths=(str(lines),))
        tokens = TokensConfig(source=source, context=ids.shape[1])
        first = HarvestConfig(model=model, sites=("embed",), dtype="float32", group="first")
        ingest(folder, tokens, first, runtime=InProcess())
        self.folder, self.settings = folder, settings
        self.loaded = load(model, dtype=settings.dtype)
        self.context = ids.shape[1]

    def run(self) -> tuple[float, int, store.Store]:
        """Return seconds, bytes and the store."""
        shutil.rmtree(self.folder / "groups" / "acts", ignore_errors=True)
        began = time.perf_counter()
        made = store.open(self.folder)
        sites = self.settings.sites
        job = _job(made, self.settings, self.loaded, sites, self.context, "texts")
        worker = Harvester(job, self.loaded)
        for part in made.view.parts("tokens"):
            worker.run(part)
        worker.close()
        seconds = time.perf_counter() - began
        files = (path for path in (self.folder / "groups" / "acts").rglob("*") if path.is_file())
        return seconds, sum(path.stat().st_size for path in files), made.refresh()


def theirs(python: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """Run the peer once."""
    command = [str(python), "-W", "ignore", str(WORKER), json.dumps(spec)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the peer failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table and write the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default=str(bundled_causal()))
    parser.add_argument("--rows", type=lambda text: count(text, DECIMAL), default=50_000)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--dtype", default="float32", help="ours; auto is what it takes by itself")
    parser.add_argument("--store-dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args(words)
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    python = environment(arguments.env)
    ids = whole_sequences(
        arguments.out / "cut",
        arguments.model,
        arguments.rows,
        arguments.context,
        arguments.batch,
    )
    np.save(arguments.out / "ids.npy", ids)
    site = f"blocks.{arguments.layer}.resid_post"
    settings = HarvestConfig(
        model=arguments.model,
        sites=(site,),
        batch=arguments.batch,
        dtype=arguments.dtype,
        store_dtype=arguments.store_dtype,
    )
    mine = Ours(arguments.out / "ours", arguments.model, ids, settings)
    width = mine.loaded.adapter.width
    spec = {
        "ids": str(arguments.out / "ids.npy"),
        "folder": str(arguments.out / "theirs"),
        "first": str(arguments.out / "first.npy"),
        "model": arguments.model,
        "hook": f"model.layers.{arguments.layer}",
        "width": width,
        "batch": arguments.batch,
        "threads": arguments.threads,
    }
    took: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(arguments.repeats):
        for way in ("ours", "theirs")[:: 1 if number % 2 else -1]:
            if way == "ours":
                seconds, our_bytes, made = mine.run()
                first = made.read(f"acts:{site}", slice(0, arguments.context))
            else:
                found = theirs(python, spec)
                seconds, their_bytes = found["seconds"], found["bytes"]
                if found["rows"] != ids.size:
                    raise SystemExit(f"the peer kept {found['rows']} rows of {ids.size}")
            took[way].append(seconds)
    gap = float(np.abs(np.load(spec["first"]).reshape(first.shape) - first).max())
    if gap > 2**-6 * float(np.abs(first).max()):
        raise SystemExit(f"the first sequence differs by {gap}: these are not the same values")
    result = {
        "rows": int(ids.size),
        "seconds": took,
        "speed": statistics.median(took["theirs"]) / statistics.median(took["ours"]),
        "bytes": {"ours": our_bytes, "theirs": their_bytes},
        "size": our_bytes / their_bytes,
        "largest_difference_of_the_first_sequence": gap,
        "largest_value": float(np.abs(first).max()),
    }
    (arguments.out / "comparison.json").write_text(json.dumps(result, indent=1))
    for way in took:
        rate = ids.size / statistics.median(took[way])
        sys.stdout.write(
            f"{way:<7} {statistics.median(took[way]):7.1f} s ({min(took[way]):.1f}–{max(took[way]):.1f}) "
            f"{rate:9,.0f} rows/s {result['bytes'][way] / 1e6:8.1f} MB\n"  # type: ignore[index]
        )
    sys.stdout.write(
        f"ours is {result['speed']:.2f} times as fast (≥ {SPEED:g} asked), files {result['size']:.2f} of theirs (≤ {SIZE:g} "
        f"asked); the first sequence differs by {gap:.2g} of {result['largest_value']:.2g}\n"
    )
    return result


if __name__ == "__main__":
    main()
