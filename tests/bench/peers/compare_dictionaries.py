"""Trains our dictionaries and those of ``dictionary_learning`` and SAELens on the very same batches.

    python tests/bench/peers/compare_dictionaries.py --store actlake-demo/store --site blocks.3.resid_post \
        --env /tmp/peers_env --out /tmp/peers --latents 6144 --k 32 --batch-rows 4096 --epochs 4 --seeds 3

Rows are those of a store's sites (side by side), special tokens left out, trained on its train split and scored on its test
split; or, in place of ``--store`` and ``--site``, ``--train rows.npy --held-out other_rows.npy``, both float32 [rows, width].
The peers get an environment of their own, made by ``venv`` and pip from the package index on the first call (torch 2.13.0, no
torchvision: the one they draw in does not fit that torch). For every seed ours and theirs take turns with equal rows,
order, steps, k and threads; ours with the default recipe, theirs with the library's defaults (warm-up cut to 5 % of the run
where 1000 steps would not fit, decay over the last 20 %, rows scaled as the library scales them) or, with ``--peer-lr``, at
other rates too. ``saelens_bf16`` is SAELens with its own ``autocast``; dictionary_learning has none on a CPU.

Every dictionary is scored by one function on the held-out rows, FVU about their mean: at its own inference
threshold, at a threshold set on training rows so that L0 is k, and for TopK dictionaries with the k largest
of each row. Rates are of training steps alone, each with its own gathering of rows out of memory; ``feed`` is how fast our
feed gives rows out of the store. What is written: ``OUT/comparison.json`` and a table on standard output.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import store
from jobs.codebook import Codebook
from jobs.dictionaries.array_feed import ArrayFeed
from jobs.dictionaries.calibration import calibrate_threshold
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.evaluate import EvalPartial
from jobs.dictionaries.schedule import peak_lr
from jobs.dictionaries.train import train
from jobs.export.dictionaries.dictionary_learning import DictionaryLearning
from jobs.export.dictionaries.saelens import SaeLens
from jobs.feed import StoreFeed, usual_rows
from jobs.kernels.codes.choose import RecordedOps
from store.tokens import FLAG_SPECIAL, SPLITS

REQUIREMENTS = ("dictionary_learning==0.1.*", "sae-lens==6.54.*", "torch==2.13.0")
UNWANTED = ("torchvision",)
KINDS = ("batch_topk", "topk", "jumprelu", "matryoshka")
PEERS = ("dictionary_learning", "saelens", "saelens_bf16")
OF_SAELENS = ("batch_topk", "topk")
WORKER = Path(__file__).with_name("peer_worker.py")
BLOCK_ROWS = 2048
FEED_SECONDS = 5.0


def environment(folder: Path) -> Path:
    """Return the Python of the peers' environment, made on the first call."""
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *REQUIREMENTS], check=True)
        subprocess.run([*pip, "uninstall", "--yes", *UNWANTED], check=True)
        words = "import dictionary_learning, sae_lens"
        subprocess.run([str(python), "-W", "ignore", "-c", words], check=True)
        ready.write_text("\n".join(REQUIREMENTS))
    return python


def score(book: Codebook, held_out: np.ndarray) -> dict[str, float]:
    """Return FVU about the mean of all held-out rows, L0 and latents that never fire there."""
    partial = EvalPartial.empty(book.latents, held_out.shape[1])
    for start in range(0, len(held_out), BLOCK_ROWS):
        block = torch.from_numpy(held_out[start : start + BLOCK_ROWS])
        partial.update(book, (block, np.zeros(len(block), np.int64)))
    found = partial.finalize()
    return {"fvu": found.fvu, "l0": found.l0, "dead": found.dead}


def scores(
    book: Codebook, feed: ArrayFeed, cfg: TrainConfig, held_out: np.ndarray
) -> dict[str, Any]:
    """Score a dictionary in every mode it can be read in."""
    free, k = dataclasses.replace(book, row_k=None), cfg.build_variant().k
    found = {"own threshold": score(book, held_out)}
    if float(book.theta.max() - book.theta.min()) <= 1e-6 * float(book.theta.max()):
        guess = float(book.theta.max())
        matched = calibrate_threshold(free, feed, k=k, rows=cfg.threshold_rows, guess=guess)
        found["L0 = k"] = score(dataclasses.replace(free, threshold=matched), held_out)
    if cfg.variant["kind"] == "topk":
        rows = dataclasses.replace(book, row_k=k, threshold=0.0)
        found["k per row"] = score(rows, held_out)
    return found


def peer_spec(
    library: str, cfg: TrainConfig, arguments: argparse.Namespace, width: int
) -> dict[str, Any]:
    """Return a peer's settings for a config of ours."""
    return {
        "library": library.removesuffix("_bf16"),
        "autocast": library.endswith("_bf16"),
        "kind": cfg.variant["kind"],
        "latents": cfg.variant["latents"],
        "k": cfg.variant["k"],
        "width": width,
        "group_fractions": [1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32],
        "steps": cfg.steps,
        "batch_rows": cfg.batch_rows,
        "seed": cfg.seed,
        "warmup_steps": min(1000, int(arguments.peer_warmup * cfg.steps)),
        "decay_start": int(0.8 * cfg.steps),
        "threshold_start_step": min(1000, cfg.steps // 2),
        "threads": arguments.threads,
        "device": arguments.device,
        "rows": str(arguments.train),
        "order": str(arguments.out / "order.npy"),
        "folder": str(arguments.out / library),
    }


def train_peer(python: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """Train one of a peer's dictionaries in its own process; returns its rate."""
    command = [str(python), "-W", "ignore", str(WORKER), json.dumps(spec)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr)
        done.check_returncode()
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def write_split(url: str, sites: Sequence[str], split: str, path: Path) -> Path:
    """Write a split's ordinary rows of sites side by side, in the store's order, as float32 [rows, width]."""
    opened = store.open(url)
    tokens = opened.tokens().filter(pl.col("split") == SPLITS.index(split))
    ordinary = tokens.filter(pl.col("flags") & FLAG_SPECIAL == 0).select("row").collect()
    ids = ordinary["row"].to_numpy()
    np.save(path, np.concatenate([opened.gather(site, ids) for site in sites], axis=1))
    return path


def feed_rate(url: str, sites: Sequence[str], batch_rows: int) -> float:
    """Return how many rows a second the feed gives out of the store, shuffled, into batches."""
    feed = StoreFeed(store.open(url), sites, batch_rows, where=usual_rows("train"))
    batches = feed.batches(0)
    next(batches)
    start, rows = time.perf_counter(), 0
    while time.perf_counter() - start < FEED_SECONDS:
        rows += len(next(batches).row_ids)
    return rows / (time.perf_counter() - start)


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train and score everything; returns one record per dictionary and mode."""
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.store is not None:
        place = (arguments.store, arguments.site)
        arguments.train = write_split(*place, "train", arguments.out / "train.npy")
        arguments.held_out = write_split(*place, "test", arguments.out / "held_out.npy")
    rows, held_out = np.load(arguments.train), np.load(arguments.held_out)
    python = environment(arguments.env)
    epoch_steps = int(len(rows) * arguments.epochs) // arguments.batch_rows
    steps = arguments.steps or epoch_steps
    records: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        feed = ArrayFeed(torch.from_numpy(rows), arguments.batch_rows, seed)
        order = torch.cat([batch.row_ids for batch in islice(feed.batches(0), steps)])
        np.save(arguments.out / "order.npy", order.numpy())
        for kind in arguments.kinds:
            for k in arguments.k:
                cfg = TrainConfig(
                    variant={"kind": kind, "latents": arguments.latents, "k": k},
                    steps=steps,
                    batch_rows=arguments.batch_rows,
                    seed=seed,
                    lr=arguments.lr,
                )
                for record in dictionaries(cfg, feed, python, arguments):
                    named = {"kind": kind, "k": k, "seed": seed, **record}
                    found = scores(named.pop("book"), feed, cfg, held_out)
                    records += [{**named, "mode": mode, **values} for mode, values in found.items()]
                    (arguments.out / "comparison.json").write_text(json.dumps(records, indent=1))
    return records


def dictionaries(
    cfg: TrainConfig, feed: ArrayFeed, python: Path, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Train ours, then theirs at each rate; yield what each was and its frozen form."""
    chooser = RecordedOps()
    sizes = {"width": feed.widths.width, "latents": cfg.variant["latents"], "k": cfg.variant["k"]}
    choice = chooser.choose(rows=cfg.batch_rows, device=arguments.device, **sizes)
    ours = train(feed, cfg, ops=chooser.build(choice), device=arguments.device)
    yield {
        "library": "actlake",
        "lr": peak_lr(cfg),
        "rows_per_second": ours.history[-1]["rows_per_second"],
        "book": ours.codebook,
    }
    for library in arguments.peers:
        if library.startswith("saelens") and cfg.variant["kind"] not in OF_SAELENS:
            continue
        reader = SaeLens() if library.startswith("saelens") else DictionaryLearning()
        for lr in arguments.peer_lr:
            spec = peer_spec(library, cfg, arguments, feed.widths.width)
            answer = train_peer(python, {**spec, "lr": lr})
            yield {
                "library": library,
                "lr": answer["lr"],
                "rows_per_second": answer["rows_per_second"],
                "book": reader.read(Path(spec["folder"])),
            }


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return the figures over seeds as text, a line for each library, kind, k, rate and mode.

    FVU, L0 and dead latents are means, ± the standard deviation; rows/s are medians, from the least to the most.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        names = ("library", "kind", "k")
        key = (*(record[name] for name in names), f"{record['lr']:.2g}", record["mode"])
        groups.setdefault(key, []).append(record)
    lines = [
        f"{'library':<20} {'kind':<11} {'k':<3} {'lr':<8} {'mode':<14} {'FVU':>17} {'L0':>6} {'dead':>5} rows/s"
    ]
    for key, group in groups.items():
        mean = {name: statistics.fmean(r[name] for r in group) for name in ("fvu", "l0", "dead")}
        spread = statistics.stdev(r["fvu"] for r in group) if len(group) > 1 else 0.0
        rates = sorted(record["rows_per_second"] for record in group)
        lines.append(
            f"{key[0]:<20} {key[1]:<11} {key[2]:<3} {key[3]:<8} {key[4]:<14} {mean['fvu']:8.5f} ±{spread:.5f}"
            f" {mean['l0']:6.2f} {mean['dead']:5.0f} {statistics.median(rates):,.0f} ({rates[0]:,.0f}–{rates[-1]:,.0f})"
        )
    return "\n".join(lines) + "\n"


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", help="a store with tokens and the sites; needs --site")
    parser.add_argument("--site", nargs="+", help="as blocks.3.resid_post; several side by side")
    parser.add_argument("--train", type=Path, help="in place of --store: rows to train on, .npy")
    parser.add_argument("--held-out", type=Path, help="in place of --store: rows to score on, .npy")
    parser.add_argument("--env", type=Path, required=True, help="the peers' environment")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", default=["batch_topk", "topk"], choices=KINDS)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--latents", type=int, default=4096)
    parser.add_argument("--k", type=int, nargs="+", default=[32])
    parser.add_argument("--batch-rows", type=int, default=4096)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--steps", type=int, help="in place of --epochs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for ours and theirs")
    parser.add_argument("--lr", type=float, help="our rate; default: our rule")
    parser.add_argument(
        "--peer-lr",
        type=lambda word: None if word == "default" else float(word),
        nargs="+",
        default=[None],
        help="their rates; the word default stands for their own rule",
    )
    parser.add_argument(
        "--peer-warmup", type=float, default=0.05, help="share of the run, at most 1000 steps"
    )
    arguments = parser.parse_args(words)
    asked = [arguments.store, arguments.site], [arguments.train, arguments.held_out]
    if sorted(sum(word is not None for word in pair) for pair in asked) != [0, 2]:
        parser.error("say either --store and --site, or --train and --held-out")
    return arguments


def main(words: Sequence[str] | None = None) -> None:
    """Compare and report."""
    arguments = parse(words)
    sys.stdout.write(table(compare(arguments)))
    if arguments.store is not None:
        rate = feed_rate(arguments.store, arguments.site, arguments.batch_rows)
        sys.stdout.write(f"feed: {rate:,.0f} rows/s out of {arguments.store}\n")


if __name__ == "__main__":
    main()
