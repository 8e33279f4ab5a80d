"""``ingest``: sources by name, a store or a group."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from jobs import config as settings
from jobs.errors import UsageError
from jobs.verbs.circuits import live_statistics
from jobs.verbs.contract import Answer, Context

if TYPE_CHECKING:
    from ingest.config import HarvestConfig, TokensConfig
    from ingest.contract import Runtime
    from ingest.run import Summary

DEFAULT_GROUP = "acts"
DEFAULT_METRIC = "nll"
_ABOUT_ROWS = (
    *("corpus", "source", "rows", "context", "part_rows", "text", "special_tokens", "text_field"),
    *("name_field", "order_seed", "split_seed", "bos", "packing", "duplicates", "generate"),
    *("temperature", "generate_seed"),
)
"""Settings of ingest that decide rows, which --into finds made."""
_OF_MODELS = ("generate", "packing", "bos", "duplicates", "lanes", "sample", "weights")
"""Settings that mean nothing where vectors are made without a model."""
_GO_WITH = {"temperature": "generate", "generate_seed": "generate", "sample_seed": "sample"}
"""Settings that mean something beside another only."""


def ingest(config: settings.Ingest, context: Context) -> Answer:
    """Make a store or add a group."""
    from jobs.runtimes.choose import runtime_for

    check_places(config)
    gpus = float(config.device.startswith("cuda"))
    place = {"url": config.into or config.out, "group": _group(config)}
    with runtime_for(config, shard=config.shard, gpus=gpus, **place) as runtime:
        return _answer(_ingest(config, context, runtime))


def _ingest(config: settings.Ingest, context: Context, runtime: Runtime) -> Summary:
    from ingest.run import ingest, ingest_into, ingest_vectors

    source = None if config.into else token_source(config)
    observers = live_statistics(config.stats or ())
    if source is not None and hasattr(source, "block"):
        refuse_without_model(config)
        tokens = tokens_config(config, source)
        return ingest_vectors(
            str(config.out),
            tokens,
            _group(config),
            runtime=runtime,
            progress=context.progress,
        )
    harvest = harvest_config(config)
    if config.into is not None:
        return ingest_into(
            config.into, harvest, runtime=runtime, observers=observers, progress=context.progress
        )
    tokens = tokens_config(config, source)
    return ingest(
        str(config.out),
        tokens,
        harvest,
        runtime=runtime,
        observers=observers,
        progress=context.progress,
    )


def _group(config: settings.Ingest) -> str:
    usual = DEFAULT_GROUP
    if config.gradient is not None:
        usual = f"grad.{config.gradient}.{config.metric or DEFAULT_METRIC}"
    return config.group or usual


def refuse_without_model(config: settings.Ingest) -> None:
    """Refuse what looks at a model where there is none."""
    given = [name for name in ("stats", "gradient") if getattr(config, name)]
    if given:
        raise UsageError(
            f"--{given[0]} looks at a model while it runs; source {config.source!r} makes vectors without one. Nothing was "
            "started. Use rows of text, or `actlake stats` over the store it makes."
        )
    usual = settings.Ingest()
    unused = [name for name in _OF_MODELS if getattr(config, name) != getattr(usual, name)]
    if unused:
        raise UsageError(
            f"--{unused[0].replace('_', '-')} is about text or a model; source {config.source!r} makes vectors without either. "
            "Nothing was started. Leave it out.",
            kind="setting-unused",
        )


def _answer(summary: Summary) -> Answer:
    rate = f", {summary.new_rows / summary.seconds:,.0f} rows/s" if summary.new_rows else ""
    left = f"; {summary.left_parts} parts are left to other shards" if summary.left_parts else ""
    size = f", {summary.group_bytes / 1e6:,.1f} MB" if summary.group_bytes else ""
    few = f"{summary.kept_rows:,} of " if summary.kept_rows not in {None, summary.rows} else ""
    text = (
        f"{summary.url}: group {summary.group!r} holds {', '.join(summary.sites)} of {few}{summary.rows:,} "
        f"rows in {summary.parts} parts{size} ({summary.new_rows:,} new in {summary.seconds:.1f} s{rate}{left})"
    )
    if summary.repeats is not None and summary.repeats.repeated:
        found = summary.repeats
        text += (
            f"\n{found.repeated:,} of {found.documents:,} documents have the text of an earlier one ({found.repeated_rows:,} "
            "rows): --duplicates drop leaves them out"
        )
    if summary.spent.work_seconds and summary.new_bytes:
        share = summary.spent.waited_seconds / summary.spent.work_seconds
        per_gb = summary.spent.storing_cpu_seconds / (summary.new_bytes / 1e9)
        text += f"\nthe model waited for the store {share:.1%} of the time; writing took {per_gb:.1f} CPU-seconds a GB"
    if summary.unobserved_parts:
        text += (
            f"\n{summary.unobserved_parts} of these parts were harvested before --stats was asked for and hold none "
            f"of them: `actlake stats {summary.url}` computes them from stored columns, and says how to add those"
        )
    return Answer(summary.to_json(), text)


def check_places(config: settings.Ingest) -> None:
    """Refuse what would be ignored, and a store that ends with this process."""
    alone = settings.Ingest()
    for name, beside in _GO_WITH.items():
        if getattr(config, name) != getattr(alone, name) and getattr(config, beside) is None:
            raise UsageError(
                f"--{name.replace('_', '-')} was said without --{beside}. Nothing was started. Leave it out, or add that.",
                kind="setting-unused",
            )
    if (config.out is None) == (config.into is None):
        raise UsageError(
            "say either --out STORE (make one) or --into STORE (add a group to one). "
            "Nothing was started."
        )
    if str(config.out or "").startswith("memory://"):
        raise UsageError(
            f"{config.out} lives as long as this process. Nothing was started. Give a folder."
        )
    if config.into is None:
        return
    usual = settings.Ingest()
    given = [name for name in _ABOUT_ROWS if getattr(config, name) != getattr(usual, name)]
    if given or (config.group is None and config.gradient is None):
        about = f"it takes no {', '.join(given)}" if given else "it needs --group NAME"
        raise UsageError(
            f"--into adds a group over the rows that are there: {about}. Nothing was started.",
        )


def token_source(config: settings.Ingest) -> Any:
    """Return the source that --corpus or --source names."""
    from ingest.sources import SOURCES
    from jobs.demo import source_for

    if config.source is None:
        if not config.corpus:
            raise UsageError(
                "say --corpus PATH… (text) or --source NAME (stdlib, synthetic, …). "
                "Nothing was started."
            )
        source = source_for(config.corpus, seed=config.order_seed)
        named = {field.name for field in dataclasses.fields(source)}
        return dataclasses.replace(source, **_about_source(config, source.kind, named))
    kind, _, text = config.source.partition(":")
    source = SOURCES.get(kind)
    fields = {field.name: str(field.type) for field in dataclasses.fields(source)}
    given = _source_fields(kind, text, fields)
    if "paths" in fields:
        given["paths"] = config.corpus
    elif config.corpus:
        raise UsageError(
            f"--source {kind} reads no files; --corpus {' '.join(config.corpus)} was given. Nothing was started. Leave "
            "one of them out."
        )
    return SOURCES.parse({"kind": kind, **_about_source(config, kind, fields), **given})


def _about_source(config: settings.Ingest, kind: str, fields: Collection[str]) -> dict[str, Any]:
    """Return the flags that are settings of a source; one that the source has not is refused."""
    usual = settings.Ingest()
    names = ("text_field", "name_field", "order_seed")
    given = {n: getattr(config, n) for n in names if getattr(config, n) != getattr(usual, n)}
    for name in given:
        if name not in fields:
            raise UsageError(
                f"--{name.replace('_', '-')} was said of the source {kind!r}, which has no such setting. Nothing was started. "
                "Leave it out.",
                kind="setting-unused",
            )
    return given


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


def tokens_config(config: settings.Ingest, source: Any) -> TokensConfig:
    """Return how documents are to become rows."""
    from ingest.config import TokensConfig

    generation = None
    if config.generate is not None:
        from ingest.generation import Generation

        generation = Generation(
            tokens=config.generate,
            temperature=config.temperature,
            seed=config.generate_seed,
            batch=config.batch,
        )
    found: TokensConfig = _part_of(config, TokensConfig, source=source, generation=generation)
    return found


def harvest_config(config: settings.Ingest) -> HarvestConfig:
    """Return what a model is to write beside the tokens; what does not go together is refused."""
    from ingest.config import HarvestConfig

    if config.metric is not None and config.gradient is None:
        raise UsageError(
            f"--metric {config.metric} says what a gradient is of, and none was asked for. Nothing was started. Add "
            "--gradient exact, or leave it out."
        )
    if config.model is None:
        raise UsageError(
            "--model says which model to run: a folder or a hub id. Nothing was started."
        )
    sample = None
    if config.sample is not None:
        from ingest.sampling import Sample

        sample = Sample(share=config.sample, seed=config.sample_seed)
    sites = config.sites
    if config.generate is not None and config.gradient is None and "logprob" not in sites:
        sites = (*sites, "logprob")
    found: HarvestConfig = _part_of(
        config,
        HarvestConfig,
        group=_group(config),
        metric=config.metric or DEFAULT_METRIC,
        sample=sample,
        sites=sites,
        weights=config.weights or (),
    )
    return found
