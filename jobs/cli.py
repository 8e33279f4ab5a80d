"""The front door ``actlake``: parses, builds one config, calls one function, prints one summary.

The one place that sees every subpackage and wires them, and the one place that prints. Heavy libraries are
imported by the verb that needs them, so ``--help`` answers at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
import yaml

from jobs import config as settings
from jobs.errors import UsageError
from jobs.interrupts import Interrupts
from jobs.progress import Progress
from store.errors import ActlakeError

INTERRUPTED = 130


class Printer:
    """Prints a verb's one answer: a JSON value, or text."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def answer(self, value: Any, text: str) -> None:
        """Print ``value`` under ``--json``, else ``text``."""
        print(json.dumps(value, ensure_ascii=False, default=str) if self.as_json else text)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a verb gets besides its config."""

    printer: Printer
    progress: Progress
    interrupts: Interrupts


# -- verbs -------------------------------------------------------------------------------------------------


def _demo(config: settings.Demo, context: Context) -> int:
    from jobs.demo import demo

    found = demo(config, progress=context.progress, interrupts=context.interrupts)
    text = (
        f"held-out FVU {found.fvu:.4f} at L0 {found.l0:.1f}, {found.dead} dead latents, "
        f"{found.seconds:.0f} s\n"
        f"store   {found.store} (digest {str(found.digest)[:16]}, verified)\n"
        f"report  {found.report}"
    )
    context.printer.answer(found.to_json(), text)
    return 0


def _ingest(config: settings.Ingest, context: Context) -> int:
    from ingest.config import HarvestConfig, TokensConfig
    from ingest.run import ingest, ingest_into, ingest_vectors

    runtime = _runtime(config.runtime)
    if (config.out is None) == (config.into is None):
        raise UsageError(
            "say either --out STORE (make one) or --into STORE (add a group to one). "
            "Nothing was started."
        )
    source = None if config.into else _source(config)
    if source is not None and hasattr(source, "block"):
        tokens = _tokens_config(config, source, TokensConfig)
        summary = ingest_vectors(
            str(config.out), tokens, config.group, runtime=runtime, progress=context.progress
        )
    else:
        if config.model is None:
            raise UsageError(
                "--model says which model to run: a folder or a hub id. Nothing was started."
            )
        harvest = _part_of(config, HarvestConfig)
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
    context.printer.answer(summary.to_json(), text)
    return 0


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


def _train(config: settings.Train, context: Context) -> int:
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
    context.printer.answer(answers, "\n".join(lines))
    return 0


def _eval(config: settings.Eval, context: Context) -> int:
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
        progress=lambda done: context.progress("evaluate", done, None),
    )
    found = figures(result)
    text = (
        f"FVU {found['fvu']:.4f}, L0 {found['l0_mean']:.1f}, {found['dead']:.0f} of {found['latents']:.0f} "
        f"latents dead, cosine {found['cosine']:.4f} on {found['rows']:,.0f} rows of split {config.split}\n"
        f"{result.path}"
    )
    context.printer.answer({"result": str(result.path), **found}, text)
    return 0


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


def _encode(config: settings.Encode, context: Context) -> int:
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
    context.printer.answer(found.to_json(), text)
    return 0


def _query(config: settings.Query, context: Context) -> int:
    from jobs.features import query, render_frame
    from store import open as open_store

    found = query(open_store(config.url), config.sql)
    rows = found.to_dicts() if context.printer.as_json else []
    context.printer.answer(rows, render_frame(found, config.max_rows))
    return 0


def _tables(config: settings.Tables, context: Context) -> int:
    from jobs.features import describe_tables
    from store import open as open_store

    found = describe_tables(open_store(config.url))
    lines = []
    for table in found:
        lines.append(f"{table['table']} ({table['rows']:,} rows)")
        lines += [f"    {name:<28} {kind}" for name, kind in table["columns"].items()]
    context.printer.answer(found, "\n".join(lines))
    return 0


def _inspect(config: settings.Inspect, context: Context) -> int:
    from jobs.summary import describe, summarize
    from store import open as open_store

    summary = summarize(open_store(config.url, config.pin))
    context.printer.answer(summary, describe(summary))
    return 0


def _verify(config: settings.Verify, context: Context) -> int:
    from store import open as open_store
    from store import verify

    report = verify(
        open_store(config.url),
        progress=lambda name, done: context.progress(f"verify {name}", done >> 20, None, "MiB"),
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
    context.printer.answer(report.to_json(), "\n".join(lines))
    return 0 if report.ok else 1


def _report(config: settings.ReportOn, context: Context) -> int:
    from jobs.report import render
    from jobs.results import Result
    from jobs.summary import summarize
    from store import open as open_store

    results = [Result.open(path) for path in config.results]
    summary = summarize(open_store(config.on)) if config.on else {}
    page = render(results, summary, Path(config.out))
    context.printer.answer({"report": str(page)}, f"report  {page}")
    return 0


VERBS: Mapping[str, tuple[Any, Callable[[Any, Context], int]]] = {
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


# -- the door ----------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code.

    0 done, 1 failed, 2 usage, 3 refused by plan or budget, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in {"-h", "--help"}:
        print(_overview())
        return 0 if words else UsageError.exit_code
    as_json = "--json" in words
    with Interrupts().installed() as interrupts:
        try:
            return _run(words, interrupts, as_json=as_json)
        except ActlakeError as error:
            _complain(error, as_json=as_json)
            return error.exit_code
        except KeyboardInterrupt:
            print(
                "interrupted: what was committed stands; run the same again to go on",
                file=sys.stderr,
            )
            return INTERRUPTED
        except BrokenPipeError:
            sys.stderr.close()
            return 1


def _run(words: list[str], interrupts: Interrupts, *, as_json: bool) -> int:
    if words[0] not in VERBS:
        raise UsageError(
            f"there is no verb {words[0]!r}; known: {', '.join(VERBS)}. Nothing was started. "
            "See actlake --help.",
            kind="unknown-name",
        )
    cls, run = VERBS[words[0]]
    config = parse(cls, words[1:], prog=f"actlake {words[0]}")
    if config.show_config:
        print(settings.to_yaml(config), end="")
        return 0
    with Progress(quiet=as_json) as progress:
        context = Context(
            printer=Printer(as_json=as_json), progress=progress, interrupts=interrupts
        )
        return run(config, context)


def parse(cls: Any, words: Sequence[str], *, prog: str) -> Any:
    """Build a verb's config from flags, and from the file ``--config`` names where flags are silent."""
    file = _option(words, "--config")
    default = None if file is None else _from_file(cls, Path(file))
    return tyro.cli(cls, args=list(words), prog=prog, default=default)


def _option(words: Sequence[str], name: str) -> str | None:
    for index, word in enumerate(words):
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
        if word == name and index + 1 < len(words):
            return words[index + 1]
    return None


def _from_file(cls: Any, path: Path) -> Any:
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the settings in {path} cannot be read: {error}. Nothing was started.",
            kind="bad-config",
        ) from error
    return from_mapping(cls, fields, str(path))


def from_mapping(cls: Any, fields: Any, where: str) -> Any:
    """Build a config from JSON values; lists become tuples, and what is required may be missing."""
    known = {field.name for field in dataclasses.fields(cls)}
    given = (
        {str(k).replace("-", "_"): v for k, v in fields.items()}
        if isinstance(fields, dict)
        else None
    )
    if given is None or set(given) - known:
        raise UsageError(
            f"{where} should map settings to values; unknown: "
            f"{', '.join(sorted(set(given or {}) - known)) or 'all of it'}; known: {', '.join(sorted(known))}. "
            "Nothing was started.",
            kind="bad-config",
        )
    required = {
        field.name: tyro.MISSING
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return cls(**{**required, **plain})


def _complain(error: ActlakeError, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": error.to_json()}, ensure_ascii=False, default=str))
    else:
        print(f"actlake: {error}", file=sys.stderr)


def _overview() -> str:
    lines = [
        "actlake: activation stores. A model runs once; every later job reads what it saw.",
        "",
        "usage: actlake VERB …    (actlake VERB --help explains one)",
        "",
    ]
    for verb, (cls, _) in VERBS.items():
        lines.append(f"  {verb:<8} {(cls.__doc__ or '').splitlines()[0]}")
    lines += ["", "Start with: actlake demo"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
