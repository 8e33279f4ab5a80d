"""From a store to a trained or evaluated dictionary: opens rows, runs, and leaves results with run cards."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ingest.contract import Runtime
from jobs.codebook import Codebook
from jobs.codes import CodeOps
from jobs.dictionaries.config import OpsChooser, TrainConfig
from jobs.dictionaries.evaluate import EvalPartial, EvalResult, finalize, massive_norm_of
from jobs.dictionaries.train import train
from jobs.errors import JobError, RefusedError
from jobs.feed import StoreFeed, blocks, usual_rows
from jobs.results import Result
from jobs.run import map_merge
from jobs.runtimes.in_process import InProcess
from store import Store, StoreError
from store import open as open_store
from store.conditions import Condition
from store.tokens import FLAG_SPECIAL
from store.windows import free_memory_bytes

Log = Callable[[dict[str, Any]], None]
CURVE_POINTS = 100
WINDOW_FILE = "window.json"
OPS_FILE = "ops.json"
CURVE = ("step", "rows", "fvu", "l0", "dead", "threshold", "rows_per_second", "seconds")


def train_on(
    store: Store,
    site: str,
    config: TrainConfig,
    out: str | Path,
    *,
    split: str | None = "train",
    window_rows: int | None = None,
    log: Log | None = None,
    should_stop: Callable[[], bool] | None = None,
    chooser: OpsChooser | None = None,
) -> tuple[Codebook, Result]:
    """Train a dictionary on a site's ordinary rows, or take up the run that is there.

    Parameters
    ----------
    chooser
        Says which operations to train with when the run begins; file ``ops.json`` keeps its word for every
        resume. None: the plain ones.

    Returns
    -------
    The frozen dictionary and the result: files ``dictionary.safetensors`` and ``dictionary.json``, table
    ``curve``, checkpoints.

    Raises
    ------
    JobError, StoreError
        Before anything is written; see ``StoreFeed`` and ``train``.
    KeyboardInterrupt
        ``should_stop`` said so; the run goes on from its checkpoint when asked again.
    """
    check_memory(store, site, config)
    feed = StoreFeed(store, site, config.batch_rows, config.seed, usual_rows(split), window_rows)
    described = {
        "site": site,
        "split": split,
        "train": config.to_json(),
        "feed": {**feed.state(), "window_rows": window_rows},
    }
    result = Result.create(
        out, "train", described, store=store.id, pin=pin_of(store, site), seed=config.seed
    )
    if result.done:
        return load(result.path), result
    with result:
        feed.window_rows = _settled_window(result, feed)
        ops = _settled_ops(result, feed, config, chooser)

        def note(entry: dict[str, Any]) -> None:
            result.log(entry)
            if log is not None:
                log(entry)

        trained = train(
            feed,
            config,
            out=result.path,
            log=note,
            should_stop=should_stop,
            ops=ops,
            log_every=max(1, config.steps // CURVE_POINTS),
        )
        if not trained.state["finished"]:
            raise KeyboardInterrupt
        book = Codebook(
            trained.codebook.W_enc_DL,
            trained.codebook.b_enc_L,
            trained.codebook.W_dec_LD,
            trained.codebook.b_dec_D,
            trained.codebook.threshold,
            {**trained.codebook.meta, "site": site},
        )
        result.write_table("curve", curve(trained.history))
        for name, data in book.to_bytes().items():
            result.write_file(name, data)
    return book, result


def check_memory(store: Store, site: str, config: TrainConfig) -> None:
    """Raise ``over-budget`` where a dictionary cannot fit the memory that is free.

    Counts two weight matrices with gradients and two moments each, float32, and one batch.
    """
    width = int(np.prod(store.column(site).shape))
    latents = config.build_variant().latents
    need = 2 * 4 * 4 * width * latents + 4 * width * config.batch_rows
    free = free_memory_bytes()
    if need > free:
        raise RefusedError(
            f"a dictionary of {latents:,} latents on width {width} needs at least {need / 1e9:,.1f} GB to train; "
            f"{free / 1e9:,.1f} GB are free. Nothing was written. Use fewer --latents, or another machine.",
            kind="over-budget",
        )


def _settled_window(result: Result, feed: StoreFeed) -> int:
    """Return the window of the run's first start: its default follows the free memory, a resume may not."""
    if not (result.path / WINDOW_FILE).exists():
        result.write_file(WINDOW_FILE, json.dumps({"window_rows": feed.window_rows}).encode())
    return int(json.loads(result.read_file(WINDOW_FILE))["window_rows"])


def _settled_ops(
    result: Result, feed: StoreFeed, config: TrainConfig, chooser: OpsChooser | None
) -> CodeOps | None:
    """Return the operations of the run's first start: others would give other low bits.

    A run that has checkpoints but no choice began with the plain ones.
    """
    if not (result.path / OPS_FILE).exists():
        if chooser is None or (result.path / "checkpoints").exists():
            return None
        variant = config.build_variant()
        choice = chooser.choose(
            rows=config.batch_rows, width=feed.widths.width, latents=variant.latents, k=variant.k
        )
        result.write_file(OPS_FILE, json.dumps(choice, indent=1, sort_keys=True).encode())
    choice = json.loads(result.read_file(OPS_FILE))
    if chooser is None:
        raise JobError(
            f"training was to go on in {result.path}, which began with the operations {choice.get('forms')} of a "
            "chooser; none was given. Nothing was changed. Give one (`actlake train` does), or another folder.",
            kind="no-chooser",
        )
    return chooser.build(choice)


def operations_of(result: Result) -> dict[str, Any]:
    """Return which operations a run trains with and what chose them; empty where it was not told any."""
    if not (result.path / OPS_FILE).exists():
        return {}
    found: dict[str, Any] = json.loads(result.read_file(OPS_FILE))
    return found


def pin_of(store: Store, site: str) -> str:
    """Write the pin of a site's group and return its id; a store that may not be written is only named."""
    groups = ["tokens", store.view.resolve(site)[0].name]
    try:
        return store.pin(groups)
    except StoreError as error:
        if error.kind not in {"not-permitted", "disk-full"}:
            raise
        return store.pin_id(groups)


def curve(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the training curve as columns."""
    columns = {name: [entry[name] for entry in history] for name in CURVE}
    return {
        name: np.array(columns[name], np.int64 if name in {"step", "rows", "dead"} else np.float64)
        for name in CURVE
    }


def load(path: str | Path) -> Codebook:
    """Return the dictionary in a result folder (or any folder that holds its two files)."""
    return Codebook.load(Path(path))


def evaluate_on(
    store: Store,
    site: str,
    book: Codebook,
    out: str | Path,
    *,
    split: str | None = "test",
    runtime: Runtime | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Evaluate a dictionary on a site's ordinary rows of one split, part by part.

    Parameters
    ----------
    runtime
        Where parts are worked on; None: here. The figures are the same bits anywhere.
    progress
        Called with (parts done, parts).

    Returns
    -------
    The result: tables ``summary`` (see ``figures``), ``latents`` (density) and ``positions``.
    """
    ordinary = usual_rows(split)
    where = [condition for condition in ordinary if condition[0] == "split"]
    group = store.view.resolve(site)[0].name
    described = {"site": site, "split": split, "dictionary": book.sha}
    result = Result.create(out, "eval", described, store=store.id, pin=pin_of(store, site))
    if not result.done:
        with result:
            massive = massive_norm_of(book, first_rows(store, site, ordinary))
            make = partial(EvaluationWorker, store.url, site, where, book, massive)
            parts = list(store.view.parts(group))
            merged = map_merge(runtime or InProcess(), make, parts, progress=progress)
            found = finalize(merged)
            more = against_truth(store, site, book)
            for name, columns in evaluation_tables(found, more).items():
                result.write_table(name, columns)
    return result


class EvaluationWorker:
    """Turns one part of a store into a share of an evaluation."""

    def __init__(
        self, url: str, site: str, where: Sequence[Condition], book: Codebook, massive: float
    ) -> None:
        self._store = open_store(url)
        self._site, self._where, self._book, self._massive = site, where, book, massive

    def run(self, part: int) -> EvalPartial | None:
        """Return the part's share, or None where no row of it counts."""
        share: EvalPartial | None = None
        for block in blocks(
            self._store, self._site, where=self._where, extra=["pos", "flags"], parts=[part]
        ):
            share = share or EvalPartial.empty(self._book.latents, block.x.shape[1])
            special = (block.tokens["flags"] & FLAG_SPECIAL) > 0
            rows = (block.x, block.tokens["pos"], special)
            share.update(self._book, rows, massive_norm=self._massive)
        return share

    def close(self) -> None:
        """Hold nothing open."""


def first_rows(store: Store, site: str, where: Sequence[Condition]) -> Tensor:
    """Return the first block of a site's rows that count, ``float32[R, D]``; R is 0 where none does."""
    width = int(np.prod(store.column(site).shape))
    return next((block.x for block in blocks(store, site, where=where)), torch.zeros(0, width))


def figures(evaluation: Result) -> dict[str, float]:
    """Return an evaluation's figures by name: fvu, l0_mean, dead, latents, rows, cosine and more."""
    table = evaluation.table("summary")
    return dict(zip(table["metric"], map(float, table["value"]), strict=True))


def against_truth(store: Store, site: str, book: Codebook) -> dict[str, float]:
    """Return how well a dictionary found a synthetic source's planted features; empty on other columns.

    ``mean_max_cosine``: mean over true features of the largest cosine with a decoder row; ``recovered``: share
    of true features whose largest cosine exceeds 0.9.
    """
    group, _ = store.view.resolve(site)
    if group.recipe.get("truth") is None:
        return {}
    from safetensors.numpy import load as load_arrays

    features_ND = load_arrays(store.asset(str(group.recipe["truth"]))["truth.safetensors"])[
        "features"
    ]
    best_N = (features_ND @ book.W_dec_LD.numpy().T).max(axis=1)
    return {"mean_max_cosine": float(best_N.mean()), "recovered": float((best_N > 0.9).mean())}


def evaluation_tables(
    found: EvalResult, more: Mapping[str, float] | None = None
) -> Mapping[str, dict[str, Any]]:
    """Return an evaluation as tables: ``summary`` (with ``more`` figures), ``latents``, ``positions``."""
    figures = {
        "fvu": found.fvu,
        "fvu_all_rows": found.fvu_all_rows,
        "l0_mean": found.l0,
        **{f"l0_{name}": value for name, value in found.l0_percentiles.items()},
        "dead": found.dead,
        "dense": found.dense,
        "cosine": found.cosine,
        "shrinkage": found.shrinkage,
        "relative_bias": found.relative_bias,
        "rows": found.rows,
        "excluded_share": found.special_share + found.massive_share,
        "latents": len(found.fired),
        **(more or {}),
    }
    there = np.flatnonzero(found.position_rows)
    return {
        "summary": {
            "metric": list(figures),
            "value": np.array(list(figures.values()), np.float64),
        },
        "latents": {
            "latent": np.arange(len(found.fired)),
            "density": found.fired / max(found.rows, 1),
        },
        "positions": {
            "position": there,
            "relative_error": found.position_error[there],
            "rows": found.position_rows[there],
        },
    }
