"""What each verb does: opens what it names, calls one function of the layers, says what came of it.

With the front door, the one place that sees every subpackage and wires them. Heavy libraries are imported by the
verb that needs them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jobs import config as settings
from jobs.errors import UsageError
from jobs.interrupts import Interrupts
from jobs.progress import Progress


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A verb's one answer: a JSON value, the same as text, and the exit code."""

    value: Any
    text: str
    code: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a verb gets besides its config."""

    progress: Progress
    interrupts: Interrupts


DEFAULT_GROUP = "acts"
_ABOUT_ROWS = (
    *("corpus", "source", "rows", "context", "part_rows", "text", "special_tokens", "text_field"),
    *("name_field", "order_seed", "split_seed"),
)
"""Settings of ingest that decide rows, which --into finds made."""


def _demo(config: settings.Demo, context: Context) -> Answer:
    from jobs.demo import demo

    found = demo(config, progress=context.progress, interrupts=context.interrupts)
    text = (
        f"held-out FVU {found.fvu:.4f} at L0 {found.l0:.1f}, {found.dead} dead latents, "
        f"{found.seconds:.0f} s\n"
        f"store   {found.store} (digest {str(found.digest)[:16]}, verified)\n"
        f"report  {found.report}"
    )
    return Answer(found.to_json(), text)


def _ingest(config: settings.Ingest, context: Context) -> Answer:
    from ingest.config import HarvestConfig, TokensConfig
    from ingest.run import ingest, ingest_into, ingest_vectors

    runtime = _runtime(config.runtime)
    if (config.out is None) == (config.into is None):
        raise UsageError(
            "say either --out STORE (make one) or --into STORE (add a group to one). "
            "Nothing was started."
        )
    _check_into(config)
    source = None if config.into else _source(config)
    if source is not None and hasattr(source, "block"):
        tokens = _tokens_config(config, source, TokensConfig)
        summary = ingest_vectors(
            str(config.out),
            tokens,
            config.group or DEFAULT_GROUP,
            runtime=runtime,
            progress=context.progress,
        )
    else:
        if config.model is None:
            raise UsageError(
                "--model says which model to run: a folder or a hub id. Nothing was started."
            )
        harvest = _part_of(config, HarvestConfig, group=config.group or DEFAULT_GROUP)
        if config.into is not None:
            summary = ingest_into(config.into, harvest, runtime=runtime, progress=context.progress)
        else:
            tokens = _tokens_config(config, source, TokensConfig)
            summary = ingest(
                str(config.out), tokens, harvest, runtime=runtime, progress=context.progress
            )
    rate = f", {summary.new_rows / summary.seconds:,.0f} rows/s" if summary.new_rows else ""
    text = (
        f"{summary.url}: group {summary.group!r} holds {', '.join(summary.sites)} of {summary.rows:,} "
        f"rows in {summary.parts} parts ({summary.new_rows:,} new in {summary.seconds:.1f} s{rate})"
    )
    return Answer(summary.to_json(), text)


def _check_into(config: settings.Ingest) -> None:
    """Refuse what would be ignored, and a store that ends with this process."""
    if str(config.out or "").startswith("memory://"):
        raise UsageError(
            f"{config.out} lives as long as this process. Nothing was started. Give a folder."
        )
    if config.into is None:
        return
    usual = settings.Ingest()
    given = [name for name in _ABOUT_ROWS if getattr(config, name) != getattr(usual, name)]
    if given or config.group is None:
        about = f"it takes no {', '.join(given)}" if given else "it needs --group NAME"
        raise UsageError(
            f"--into adds a group over the rows that are there: {about}. Nothing was started.",
        )


def _runtime(name: str) -> Any:
    from jobs.runtimes.in_process import InProcess

    runtimes = {"in_process": InProcess}
    if name not in runtimes:
        raise UsageError(
            f"there is no runtime {name!r}; known: {', '.join(runtimes)}. Nothing was started.",
            kind="unknown-name",
        )
    return runtimes[name]()


def _source(config: settings.Ingest) -> Any:
    from ingest.sources import SOURCES
    from jobs.demo import source_for

    if config.source is None:
        if not config.corpus:
            raise UsageError(
                "say --corpus PATH… (text) or --source NAME (stdlib, synthetic, …). "
                "Nothing was started."
            )
        source = source_for(config.corpus, seed=config.order_seed)
        kind = source.kind
    else:
        kind, _, text = config.source.partition(":")
        source = SOURCES.get(kind)
        fields = {field.name: str(field.type) for field in dataclasses.fields(source)}
        given = _source_fields(kind, text, fields)
        if "paths" in fields:
            given["paths"] = config.corpus
        if "order_seed" in fields and config.order_seed is not None:
            given.setdefault("order_seed", config.order_seed)
        return SOURCES.parse({"kind": kind, **given})
    if kind in {"jsonl", "parquet"}:
        return dataclasses.replace(
            source, text_field=config.text_field, name_field=config.name_field
        )
    return source


def _source_fields(kind: str, text: str, fields: Mapping[str, str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        name, found, value = item.partition("=")
        if not found or name not in fields:
            raise UsageError(
                f"--source {kind} has no setting {item!r}; known: {', '.join(fields)}. "
                f"Write --source {kind}:name=value,name=value. Nothing was started.",
                kind="unknown-field",
            )
        try:
            given[name] = _read_as(fields[name], value)
        except ValueError as error:
            raise UsageError(
                f"--source {kind}: {name} takes {fields[name]}, found {value!r}. Nothing was started.",
                kind="bad-number",
            ) from error
    return given


def _read_as(declared: str, value: str) -> Any:
    if "int" in declared:
        return int(value)
    return float(value) if "float" in declared else value


def _part_of(config: Any, cls: Any, **more: Any) -> Any:
    """Build a config of another layer from the fields of the same names."""
    names = {field.name for field in dataclasses.fields(cls)}
    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name in names}
    return cls(**{**given, **more})


def _tokens_config(config: settings.Ingest, source: Any, cls: Any) -> Any:
    return _part_of(config, cls, source=source)


def _train(config: settings.Train, context: Context) -> Answer:
    from jobs.dictionaries import TrainConfig
    from jobs.dictionaries.run import train_on
    from jobs.feed import StoreFeed, usual_rows
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
            )
        answers.append(
            {"result": str(result.path), **train.variant, "seed": train.seed, "sha": book.sha}
        )
    lines = [
        f"{a['result']}  {a['kind']} latents {a['latents']} k {a['k']} seed {a['seed']}"
        for a in answers
    ]
    return Answer(answers, "\n".join(lines))


def _eval(config: settings.Eval, context: Context) -> Answer:
    from jobs.dictionaries.run import evaluate_on, figures, load
    from store import open as open_store

    book = load(config.dictionary)
    store = open_store(config.on)
    split = None if config.split == "all" else config.split
    result = evaluate_on(
        store,
        _site_of(book.meta, config.site),
        book,
        config.out or _results_home(Path(config.dictionary)),
        split=split,
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


def _encode(config: settings.Encode, context: Context) -> Answer:
    from jobs.dictionaries.run import load
    from jobs.features import encode
    from store import open as open_store

    book = load(config.dictionary)
    store = open_store(config.on)
    found = encode(
        store,
        _site_of(book.meta, config.site),
        book,
        config.group,
        progress=lambda done, total: context.progress("encode", done, total),
    )
    text = f"group {found.group!r}: {found.codes:,} codes of {found.rows:,} new rows"
    return Answer(found.to_json(), text)


def _query(config: settings.Query, _context: Context) -> Answer:
    from jobs.features import query, render_frame
    from store import open as open_store

    found = query(open_store(config.url), config.sql)
    rows = found.to_dicts() if config.json else []
    return Answer(rows, render_frame(found, config.max_rows))


def _tables(config: settings.Tables, _context: Context) -> Answer:
    from jobs.features import describe_tables
    from store import open as open_store

    found = describe_tables(open_store(config.url))
    lines = []
    for table in found:
        lines.append(f"{table['table']} ({table['rows']:,} rows)")
        lines += [f"    {name:<28} {kind}" for name, kind in table["columns"].items()]
    return Answer(found, "\n".join(lines))


def _inspect(config: settings.Inspect, _context: Context) -> Answer:
    from jobs.summary import describe, summarize
    from store import open as open_store

    summary = summarize(open_store(config.url, config.pin))
    return Answer(summary, describe(summary))


def _verify(config: settings.Verify, context: Context) -> Answer:
    from store import open as open_store
    from store import verify

    report = verify(
        open_store(config.url),
        progress=lambda name, done: context.progress(
            f"verify {name}", done >> 20, None, unit="MiB"
        ),
    )
    lines = [f"{p['kind']}: {p['message']}" for p in report.problems]
    lines += [f"orphan (harmless, never read): {key}" for key in report.orphans]
    state = "ok" if report.ok else f"{len(report.problems)} problems"
    lines.append(
        f"{state}: {report.checked_bytes:,} bytes of {report.groups} groups, {report.parts} parts, "
        f"{report.rows:,} rows checked"
    )
    if report.digest:
        lines.append(f"digest {report.digest}")
    return Answer(report.to_json(), "\n".join(lines), 0 if report.ok else 1)


def _report(config: settings.ReportOn, _context: Context) -> Answer:
    from jobs.report import render
    from jobs.results import Result
    from jobs.summary import summarize
    from store import open as open_store

    if not config.results:
        raise UsageError("say which results to draw: DIR/results/… Nothing was started.")
    results = [Result.open(path) for path in config.results]
    summary = summarize(open_store(config.on)) if config.on else {}
    page = render(results, summary, Path(config.out))
    return Answer({"report": str(page)}, f"report  {page}")


VERBS: Mapping[str, tuple[Any, Callable[[Any, Context], Answer]]] = {
    "demo": (settings.Demo, _demo),
    "ingest": (settings.Ingest, _ingest),
    "train": (settings.Train, _train),
    "eval": (settings.Eval, _eval),
    "encode": (settings.Encode, _encode),
    "query": (settings.Query, _query),
    "tables": (settings.Tables, _tables),
    "inspect": (settings.Inspect, _inspect),
    "verify": (settings.Verify, _verify),
    "report": (settings.ReportOn, _report),
}
