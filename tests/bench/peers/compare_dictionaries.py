"""Trains our dictionaries and those of the ``dictionary_learning`` library on the very same batches.

    python tests/bench/peers/compare_dictionaries.py --store actlake-demo/store --site blocks.3.resid_post \
        --env /tmp/peers_env --out /tmp/peers --latents 4096 --k 32 --batch-rows 2048 --epochs 4 --seeds 3

Rows are those of a store's site, special tokens left out, trained on its train split and scored on its test split;
or, in place of ``--store`` and ``--site``, ``--train rows.npy --held-out other_rows.npy``, both float32 [rows, width].
The peer gets an environment of its own, made by ``venv`` and pip from the package index on the first call (torch 2.13.0, no
torchvision: the one it draws in does not fit that torch). For every seed ours and theirs take turns, BatchTopK
and TopK, with equal rows, order, steps, k, and threads; ours with the default recipe, theirs with the
library's defaults (warm-up cut to 5 % of the run where 1000 steps would not fit, decay over the last 20 %, rows
scaled to unit mean square) or, with ``--peer-lr`` and ``--peer-warmup``, with other rates and warm-ups.

Every dictionary is scored by one function on the held-out rows, FVU about their mean: at its own inference
threshold, at a threshold set on training rows so that L0 is k, and for TopK dictionaries with the k largest
of each row. What is written: ``OUT/comparison.json`` and a table on standard output.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
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
from jobs.codes import Codes
from jobs.dictionaries.array_feed import ArrayFeed
from jobs.dictionaries.calibration import calibrate_threshold
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.evaluate import EvalPartial
from jobs.dictionaries.train import train
from store.tokens import FLAG_SPECIAL, SPLITS

REQUIREMENTS = ("dictionary_learning==0.1.*", "torch==2.13.0")
UNWANTED = ("torchvision",)
KINDS = ("batch_topk", "topk")
WORKER = Path(__file__).with_name("peer_worker.py")
BLOCK_ROWS = 2048
SCORED_MODES = ("own threshold", "L0 = k", "k per row")


def environment(folder: Path) -> Path:
    """Return the Python of the peer's environment, made on the first call."""
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *REQUIREMENTS], check=True)
        subprocess.run([*pip, "uninstall", "--yes", *UNWANTED], check=True)
        subprocess.run(
            [str(python), "-W", "ignore", "-c", "import dictionary_learning"], check=True
        )
        ready.write_text("\n".join(REQUIREMENTS))
    return python


class RowTopK:
    """A codebook read with the k largest of each row instead of its threshold."""

    def __init__(self, book: Codebook, k: int) -> None:
        self.book, self.k, self.latents = book, k, book.latents

    def encode(self, x_RD: torch.Tensor) -> Codes:
        top = torch.relu(x_RD @ self.book.W_enc_DL + self.book.b_enc_L).topk(self.k, dim=1)
        latent, order = top.indices.sort(dim=1)
        row = torch.arange(len(x_RD)).repeat_interleave(self.k)
        value = top.values.gather(1, order).flatten()
        live = value > 0
        return Codes(
            row[live].numpy(), latent.flatten()[live].numpy().astype(np.uint32), value[live].numpy()
        )

    def decode(self, codes: Codes, rows: int) -> torch.Tensor:
        return self.book.decode(codes, rows)


def score(coder: Any, held_out: np.ndarray) -> dict[str, float]:
    """Return FVU about the mean of all held-out rows, L0 and latents that never fire there."""
    partial = EvalPartial.empty(coder.latents, held_out.shape[1])
    for start in range(0, len(held_out), BLOCK_ROWS):
        block = torch.from_numpy(held_out[start : start + BLOCK_ROWS])
        partial.update(coder, (block, np.zeros(len(block), np.int64)))
    found = partial.finalize()
    return {"fvu": found.fvu, "l0": found.l0, "dead": found.dead}


def scores(
    book: Codebook, feed: ArrayFeed, cfg: TrainConfig, held_out: np.ndarray
) -> dict[str, Any]:
    """Score a dictionary in every mode it can be read in."""
    guess, k = float(book.theta), cfg.build_variant().k
    matched = calibrate_threshold(book, feed, k=k, rows=cfg.threshold_rows, guess=guess)
    found = {
        "own threshold": score(book, held_out),
        "L0 = k": score(dataclasses.replace(book, threshold=matched), held_out),
    }
    if cfg.variant["kind"] == "topk":
        found["k per row"] = score(RowTopK(book, k), held_out)
    return found


def peer_spec(cfg: TrainConfig, arguments: argparse.Namespace, width: int) -> dict[str, Any]:
    """Return the peer's settings for a config of ours."""
    return {
        "kind": cfg.variant["kind"],
        "latents": cfg.variant["latents"],
        "k": cfg.variant["k"],
        "width": width,
        "steps": cfg.steps,
        "batch_rows": cfg.batch_rows,
        "seed": cfg.seed,
        "warmup_steps": min(1000, int(arguments.peer_warmup * cfg.steps)),
        "decay_start": int(0.8 * cfg.steps),
        "threshold_start_step": min(1000, cfg.steps // 2),
        "threads": arguments.threads,
        "rows": str(arguments.train),
        "order": str(arguments.out / "order.npy"),
        "weights": str(arguments.out / "peer.npz"),
    }


def peer_book(path: Path) -> Codebook:
    """Return the peer's weights in our frozen form; centring is folded into the encoder's bias."""
    with np.load(path) as files:
        weights = {name: torch.from_numpy(np.asarray(files[name])) for name in files.files}
    encoder_LD, bias_D = weights["encoder.weight"], weights["b_dec"]
    return Codebook(
        encoder_LD.t(),
        weights["encoder.bias"] - encoder_LD @ bias_D,
        torch.nn.functional.normalize(weights["decoder.weight"].t(), dim=1),
        bias_D,
        max(0.0, float(weights["threshold"])),
    )


def train_peer(python: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """Train one of the peer's dictionaries in its own process; returns its rate."""
    command = [str(python), "-W", "ignore", str(WORKER), json.dumps(spec)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def write_split(url: str, site: str, split: str, path: Path) -> Path:
    """Write a split's ordinary rows of a site, in the store's order, as float32 [rows, width]."""
    opened = store.open(url)
    tokens = opened.tokens().filter(pl.col("split") == SPLITS.index(split))
    ordinary = tokens.filter(pl.col("flags") & FLAG_SPECIAL == 0).select("row").collect()
    np.save(path, opened.gather(site, ordinary["row"].to_numpy()))
    return path


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
    steps = int(len(rows) * arguments.epochs) // arguments.batch_rows
    records: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        feed = ArrayFeed(torch.from_numpy(rows), arguments.batch_rows, seed)
        order = torch.cat([batch.row_ids for batch in islice(feed.batches(0), steps)])
        np.save(arguments.out / "order.npy", order.numpy())
        for kind in KINDS:
            variant = {"kind": kind, "latents": arguments.latents, "k": arguments.k}
            cfg = TrainConfig(
                variant=variant,
                steps=steps,
                batch_rows=arguments.batch_rows,
                seed=seed,
                lr=arguments.lr,
            )
            for record in dictionaries(cfg, feed, python, arguments):
                named = {"kind": kind, "seed": seed, **record}
                found = scores(named.pop("book"), feed, cfg, held_out)
                records += [{**named, "mode": mode, **values} for mode, values in found.items()]
                (arguments.out / "comparison.json").write_text(json.dumps(records, indent=1))
    return records


def dictionaries(
    cfg: TrainConfig, feed: ArrayFeed, python: Path, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Train ours, then theirs at each rate; yield what each was and its frozen form."""
    ours = train(feed, cfg)
    last = ours.history[-1]
    yield {
        "library": "actlake",
        "lr": max(entry["lr"] for entry in ours.history),
        "rows_per_second": last["rows_per_second"],
        "book": ours.codebook,
    }
    for lr in arguments.peer_lr:
        spec = peer_spec(cfg, arguments, feed.width)
        answer = train_peer(python, {**spec, "lr": lr})
        yield {
            "library": "dictionary_learning",
            "lr": answer["lr"],
            "rows_per_second": answer["rows_per_second"],
            "book": peer_book(Path(spec["weights"])),
        }


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return the means over seeds as text, one line per library, kind, rate and mode."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        key = (record["library"], record["kind"], f"{record['lr']:.2g}", record["mode"])
        groups.setdefault(key, []).append(record)
    lines = [
        f"{'library':<20} {'kind':<11} {'lr':<8} {'mode':<14} {'FVU':>8} {'L0':>6} {'dead':>5} rows/s"
    ]
    for key, group in groups.items():
        mean = {
            name: statistics.fmean(record[name] for record in group)
            for name in ("fvu", "l0", "dead", "rows_per_second")
        }
        lines.append(
            f"{key[0]:<20} {key[1]:<11} {key[2]:<8} {key[3]:<14} {mean['fvu']:8.5f}"
            f" {mean['l0']:6.2f} {mean['dead']:5.0f} {mean['rows_per_second']:.0f}"
        )
    return "\n".join(lines) + "\n"


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", help="a store with tokens and the site; needs --site")
    parser.add_argument("--site", help="as blocks.3.resid_post")
    parser.add_argument("--train", type=Path, help="in place of --store: rows to train on, .npy")
    parser.add_argument("--held-out", type=Path, help="in place of --store: rows to score on, .npy")
    parser.add_argument("--env", type=Path, required=True, help="the peer's environment")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--latents", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch-rows", type=int, default=4096)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
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
    sys.stdout.write(table(compare(parse(words))))


if __name__ == "__main__":
    main()
