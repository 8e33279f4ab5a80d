"""``train``, ``eval`` and ``encode``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs import config as settings
from jobs.errors import UsageError
from jobs.verbs.contract import Answer, Context


def train(config: settings.Train, context: Context) -> Answer:
    """Train every dictionary of the grid."""
    from jobs.dictionaries import TrainConfig
    from jobs.dictionaries.run import operations_of, train_on
    from jobs.feed import StoreFeed, usual_rows
    from jobs.kernels.codes.choose import RecordedOps, unmeasured
    from store import open as open_store

    store = open_store(config.url)
    grid = list(itertools.product(config.variant, config.latents, config.k, config.seeds))
    train_configs = []
    rows = StoreFeed(store, config.site, config.batch_rows, where=usual_rows(config.split)).rows
    for kind, latents, k, seed in grid:
        variant = {"kind": kind, "latents": latents, "k": k}
        steps = max(1, (config.rows or 4 * rows) // config.batch_rows)
        train_configs.append(
            TrainConfig(
                variant=variant, steps=steps, batch_rows=config.batch_rows, lr=config.lr, seed=seed
            )
        )
    answers = []
    for number, train in enumerate(train_configs, start=1):
        phase = f"train {number}/{len(grid)}" if len(grid) > 1 else "train"

        def log(entry: Mapping[str, Any], phase: str = phase, train: Any = train) -> None:
            note = f"FVU {entry['fvu']:.3f}, L0 {entry['l0']:.0f}, {entry['dead']} dead"
            context.progress(phase, entry["rows"], train.steps * train.batch_rows, note)

        with context.interrupts.deferred():
            book, result = train_on(
                store,
                config.site,
                train,
                config.out,
                split=config.split,
                window_rows=config.window_rows,
                log=log,
                should_stop=context.interrupts.asked,
                chooser=RecordedOps(),
            )
        answers.append(
            {
                "result": str(result.path),
                **train.variant,
                "seed": train.seed,
                "sha": book.sha,
                "note": unmeasured(operations_of(result)),
            }
        )
    lines = [
        f"{a['result']}  {a['kind']} latents {a['latents']} k {a['k']} seed {a['seed']}"
        for a in answers
    ]
    lines += sorted({a["note"] for a in answers if a["note"]})
    return Answer(answers, "\n".join(lines))


def evaluate(config: settings.Eval, context: Context) -> Answer:
    """Evaluate one on held-out rows."""
    from jobs.dictionaries.held_out import evaluate_on, figures
    from jobs.dictionaries.run import load
    from jobs.runtimes.choose import runtime_for
    from store import open as open_store

    book = load(config.dictionary)
    store = open_store(config.on)
    split = None if config.split == "all" else config.split
    with runtime_for(config) as runtime:
        result = evaluate_on(
            store,
            _site_of(book.meta, config.site),
            book,
            config.out or _results_home(Path(config.dictionary)),
            split=split,
            runtime=runtime,
            progress=lambda done, parts: context.progress("evaluate", done, parts, unit="parts"),
        )
    found = figures(result)
    text = (
        f"FVU {found['fvu']:.4f}, L0 {found['l0_mean']:.1f}, {found['dead']:.0f} of {found['latents']:.0f} "
        f"latents dead, cosine {found['cosine']:.4f} on {found['rows']:,.0f} rows of split {config.split}\n"
        f"{result.path}"
    )
    return Answer({"result": str(result.path), **found}, text)


def _site_of(meta: Mapping[str, Any], site: str | None) -> str:
    found = site or meta.get("site")
    if found is None:
        raise UsageError(
            "the dictionary does not say which site it is of. Nothing was started. Say --site GROUP:SITE."
        )
    return str(found)


def _results_home(path: Path) -> Path:
    """Return the folder whose ``results/`` a result lies in, else the current one."""
    return path.resolve().parent.parent if path.resolve().parent.name == "results" else Path()


def encode(config: settings.Encode, context: Context) -> Answer:
    """Write a dictionary's codes as a group."""
    from jobs.dictionaries.run import load
    from jobs.features import encode
    from jobs.runtimes.choose import runtime_for
    from store import open as open_store

    book = load(config.dictionary)
    store = open_store(config.on)
    with runtime_for(config) as runtime:
        found = encode(
            store,
            _site_of(book.meta, config.site),
            book,
            config.group,
            runtime=runtime,
            progress=lambda done, total: context.progress("encode", done, total),
        )
    text = f"group {found.group!r}: {found.codes:,} codes of {found.rows:,} new rows"
    return Answer(found.to_json(), text)
