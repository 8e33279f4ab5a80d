"""From a store to trained dictionaries: opens rows, runs, and leaves results with run cards."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from jobs.batches import Batch
from jobs.codebook import Codebook
from jobs.dictionaries.calibration import Calibration
from jobs.dictionaries.config import OpsChooser, TrainConfig
from jobs.dictionaries.ranks import ALONE, Ranks, told_by_first
from jobs.dictionaries.recipe import Recipe, check_memory
from jobs.dictionaries.tracking import Tracker, Tracks
from jobs.dictionaries.train import Run, Trained, train_together
from jobs.errors import JobError
from jobs.feed import StoreFeed, read_once, usual_rows
from jobs.results import Result
from store import Store, StoreError
from store.conditions import Condition
from store.windows import default_window_rows

CURVE_POINTS = 100
HELD_OUT_BATCHES = 8
WINDOW_FILE = "window.json"
OPS_FILE = "ops.json"
CURVE = ("step", "rows", "fvu", "l0", "dead", "threshold", "rows_per_second", "seconds")


def train_on(
    store: Store,
    site: str,
    config: TrainConfig,
    out: str | Path,
    *,
    log: Callable[[dict[str, Any]], None] | None = None,
    **options: Any,
) -> tuple[Codebook, Result]:
    """Train one dictionary on a site's ordinary rows; see ``train_all``."""
    told = None if log is None else lambda _at, entry: log(entry)
    recipe = Recipe(columns=(site,), config=config)
    return train_all(store, [recipe], out, log=told, **options)[0]


def train_all(
    store: Store,
    recipes: Sequence[Recipe],
    out: str | Path,
    *,
    split: str | None = "train",
    window_rows: int | None = None,
    order_seed: int | None = None,
    log: Callable[[int, dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    chooser: OpsChooser | None = None,
    device: str = "cpu",
    ranks: Ranks = ALONE,
    trackers: Sequence[Tracker] = (),
    keep_best: bool = False,
) -> list[tuple[Codebook, Result]]:
    """Train dictionaries on one reading of a store's ordinary rows, or take up the runs that are there.

    Each gets the bits it would get alone, in a result folder of its own.

    Parameters
    ----------
    order_seed
        Of the order of rows, the same for all; None: the first recipe's seed.
    log
        Called with (index of the recipe, entry) at each entry of a history.
    chooser
        Says which operations to train with when a run begins; file ``ops.json`` keeps its word for every
        resume. None: the plain ones.
    ranks
        Processes that train together, each on its rows of every batch; the first writes the results.
    trackers
        Where figures go besides each result's own log.
    keep_best
        Score every checkpoint on rows of split ``val``, and keep the best dictionary in the result's folder ``best``.

    Returns
    -------
    The frozen dictionaries and results, in the order of the recipes: files ``dictionary.safetensors`` and
    ``dictionary.json``, table ``curve``, checkpoints.

    Raises
    ------
    JobError, StoreError
        Before anything is written; see ``StoreFeed``, ``read_once`` and ``train_together``.
    KeyboardInterrupt
        ``should_stop`` said so; the runs go on from their checkpoints when asked again.
    """
    check_memory(store, recipes)
    seed = recipes[0].config.seed if order_seed is None else order_seed
    window = window_rows or _shared_window(store, recipes)
    feeds = [_feed(store, recipe, seed, usual_rows(split), window) for recipe in recipes]
    held_out = [_held_out(store, recipe) if keep_best else [] for recipe in recipes]
    with ExitStack() as stack:
        results: list[Result] = []
        if ranks.rank == 0:
            results = [
                _result(store, recipe, feed, out, split, window_rows, keep_best=keep_best)
                for recipe, feed in zip(recipes, feeds, strict=True)
            ]
            for result in results:
                if not result.done:
                    stack.enter_context(result)
        seats = _seats(recipes, feeds, results, chooser, ranks)
        if not all(seat.done for seat in seats):
            tracks = [
                stack.enter_context(
                    Tracks(() if result.done else trackers, result, recipe.described())
                )
                for result, recipe in zip(results, recipes, strict=False)
            ]
            _train(
                recipes,
                feeds,
                results,
                seats,
                tracks,
                log=log,
                should_stop=should_stop,
                chooser=chooser,
                device=device,
                ranks=ranks,
                held_out=held_out,
            )
    told_by_first("written", ranks)
    return [(load(seat.path), Result.open(seat.path)) for seat in seats]


@dataclass(frozen=True)
class _Seat:
    """Where a run writes and what it began with, as the first rank tells the others."""

    path: str
    done: bool
    window_rows: int
    ops: dict[str, Any] | None


def _seats(
    recipes: Sequence[Recipe],
    feeds: Sequence[StoreFeed],
    results: Sequence[Result],
    chooser: OpsChooser | None,
    ranks: Ranks,
) -> list[_Seat]:
    """Return the seat of every recipe; the first rank has the results, the others listen."""
    mine = [
        _Seat(
            str(result.path),
            result.done,
            feed.window_rows or 0 if result.done else _settled_window(result, feed),
            None if result.done else _settled_ops(result, feed, recipe.config, chooser),
        )
        for recipe, feed, result in zip(recipes, feeds, results, strict=False)
    ]
    text = told_by_first(json.dumps([dataclasses.asdict(seat) for seat in mine]), ranks)
    return [_Seat(**fields) for fields in json.loads(text)]


def _train(
    recipes: Sequence[Recipe],
    feeds: Sequence[StoreFeed],
    results: Sequence[Result],
    seats: Sequence[_Seat],
    tracks: Sequence[Tracks],
    *,
    log: Callable[[int, dict[str, Any]], None] | None,
    should_stop: Callable[[], bool] | None,
    chooser: OpsChooser | None,
    device: str,
    ranks: Ranks,
    held_out: Sequence[Sequence[Batch]],
) -> None:
    """Train what is not finished yet and write it down."""
    calibrated: dict[str, Calibration] = {}
    runs: dict[int, Run] = {}
    for at, (recipe, feed, seat) in enumerate(zip(recipes, feeds, seats, strict=True)):
        if seat.done:
            continue
        feed.window_rows = seat.window_rows

        def note(entry: dict[str, Any], at: int = at) -> None:
            results[at].log(entry)
            tracks[at].log(entry)
            if log is not None:
                log(at, entry)

        runs[at] = Run(
            feed,
            recipe.config,
            out=Path(seat.path),
            log=note,
            ops=None if seat.ops is None or chooser is None else chooser.build(seat.ops),
            device=device,
            log_every=max(1, recipe.config.steps // CURVE_POINTS),
            calibrated=calibrated,
            ranks=ranks,
            held_out=held_out[at] if ranks.rank == 0 else (),
            meta=recipe.named(),
        )
    several = list(runs.values())
    start = min((run.step for run in several if not run.done), default=0)
    mine = [feeds[at].for_rank(ranks.rank, ranks.world) for at in runs]
    batches = read_once(mine, start)
    trained = train_together(several, batches, start=start, should_stop=should_stop)
    for at, one in zip(runs, trained, strict=True):
        if one.state["finished"] and ranks.rank == 0:
            _write(results[at], one)
    if not all(one.state["finished"] for one in trained):
        raise KeyboardInterrupt


def _held_out(store: Store, recipe: Recipe) -> list[Batch]:
    """Return batches of split ``val`` of the columns a recipe trains on.

    Raises
    ------
    JobError
        ``no-held-out``: the split has less than a batch.
    """
    rows = recipe.config.batch_rows
    try:
        found = _feed(store, recipe, 0, usual_rows("val"), None)
    except JobError as error:
        if error.kind != "too-few-rows":
            raise
        raise JobError(
            f"the best dictionary was to be told on split val of {store.url}, which has less than a batch of {rows:,} ordinary "
            "rows. Nothing was written. Take smaller batches (--batch-rows), or leave --keep-best out.",
            kind="no-held-out",
        ) from error
    return list(islice(found.batches(0), min(HELD_OUT_BATCHES, found.rows // rows)))


def _write(result: Result, trained: Trained) -> None:
    result.write_table("curve", curve(trained.history))
    for name, data in trained.codebook.to_bytes().items():
        result.write_file(name, data)


def _feed(
    store: Store, recipe: Recipe, seed: int, where: Sequence[Condition], window_rows: int | None
) -> StoreFeed:
    return StoreFeed(
        store,
        recipe.columns,
        recipe.config.batch_rows,
        seed,
        where,
        window_rows,
        targets=recipe.targets,
        gradient=recipe.gradient,
    )


def _shared_window(store: Store, recipes: Sequence[Recipe]) -> int | None:
    """Return the window for all columns at once; None, the feed's own default, where there is one column."""
    names = {
        name
        for recipe in recipes
        for name in (
            *recipe.columns,
            *recipe.targets,
            *([recipe.gradient] if recipe.gradient else []),
        )
    }
    if len(names) < 2:
        return None
    held = np.array([commit.rows for commit in store.view.commits("tokens")])
    return default_window_rows(held, sum(store.column(name).row_bytes for name in names))


def _result(
    store: Store,
    recipe: Recipe,
    feed: StoreFeed,
    out: str | Path,
    split: str | None,
    window_rows: int | None,
    *,
    keep_best: bool,
) -> Result:
    kept: dict[str, Any] = {"keep_best": True} if keep_best else {}
    described = {
        **kept,
        **recipe.described(),
        "split": split,
        "feed": {**feed.state(), "window_rows": window_rows},
    }
    pin = pin_of(store, *feed.names)
    seed = recipe.config.seed
    return Result.create(out, "train", described, store=store.id, pin=pin, seed=seed)


def _settled_window(result: Result, feed: StoreFeed) -> int:
    """Return the window of the run's first start: its default follows the free memory, a resume may not."""
    if not (result.path / WINDOW_FILE).exists():
        result.write_file(WINDOW_FILE, json.dumps({"window_rows": feed.window_rows}).encode())
    return int(json.loads(result.read_file(WINDOW_FILE))["window_rows"])


def _settled_ops(
    result: Result, feed: StoreFeed, config: TrainConfig, chooser: OpsChooser | None
) -> dict[str, Any] | None:
    """Return the operations chosen at the run's first start: others would give other low bits.

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
    kept: dict[str, Any] = json.loads(result.read_file(OPS_FILE))
    if chooser is None:
        raise JobError(
            f"training was to go on in {result.path}, which began with the operations {kept.get('forms')} of a "
            "chooser; none was given. Nothing was changed. Give one (`actlake train` does), or another folder.",
            kind="no-chooser",
        )
    return kept


def operations_of(result: Result) -> dict[str, Any]:
    """Return which operations a run trains with and what chose them; empty where it was not told any."""
    if not (result.path / OPS_FILE).exists():
        return {}
    found: dict[str, Any] = json.loads(result.read_file(OPS_FILE))
    return found


def pin_of(store: Store, *columns: str) -> str:
    """Write the pin of columns' groups and return its id; a store that may not be written is only named."""
    groups = list(
        dict.fromkeys(["tokens", *(store.view.resolve(name)[0].name for name in columns)])
    )
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
