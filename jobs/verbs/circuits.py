"""``stats``; and what ``ingest --stats`` makes of its names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs import config as settings
from jobs.errors import UsageError
from jobs.verbs.contract import Answer, Context

if TYPE_CHECKING:
    from ingest.models.facts import ModelFacts

_BLOCK = re.compile(r"blocks\.(\d+)\.")


def stats(config: settings.Stats, context: Context) -> Answer:
    """Compute statistics and leave a result for each."""
    from jobs.circuits.run import statistics_on
    from jobs.runtimes.choose import runtime_for
    from jobs.sequences import model_facts, stored_sites, whole_groups
    from store import open as open_store

    asked = statistics_of(config.stats, layers=config.layers, params=config.params or ())
    store = open_store(config.url)
    groups = whole_groups(store, config.group)
    if config.sites is not None:
        facts = model_facts(store, config.group, model=config.model)
        sites = named_sites(config.sites, stored_sites(store, config.group), facts)
        asked = [_with(statistic, sites=sites) for statistic in asked]
    first = next((group.name for group in groups if "model" in group.recipe), None)
    with runtime_for(config, url=config.url, group=first) as runtime:
        results = statistics_on(
            store,
            asked,
            config.out,
            groups=config.group,
            model=config.model,
            runtime=runtime,
            keep=config.keep,
            progress=lambda done, parts: context.progress("stats", done, parts, unit="parts"),
        )
    value = [
        {"result": str(result.path), "statistic": result.card.config["statistic"]["kind"]}
        | {"tables": result.tables()}
        for result in results
    ]
    lines = [f"{one['result']}  {one['statistic']}: {', '.join(one['tables'])}" for one in value]
    return Answer(value, "\n".join(lines))


def statistics_of(
    names: Sequence[str], *, layers: Sequence[int] | None = None, params: Sequence[str] = ()
) -> list[Any]:
    """Return statistics by their names, with their settings.

    Raises
    ------
    UsageError
        ``unknown-field``: a setting no statistic named has.
    InvalidInputError
        ``unknown-name``, with the known ones.
    """
    from jobs.circuits import STATISTICS

    given: dict[str, dict[str, str]] = {name: {} for name in names}
    for text in params:
        place, found, value = text.partition("=")
        name, _, field = place.partition(".")
        if not found or name not in given:
            raise UsageError(
                f"--params has {text!r}; it takes STATISTIC.FIELD=VALUE of the statistics named: "
                f"{', '.join(names)}. Nothing was started.",
                kind="unknown-field",
            )
        given[name][field] = value
    made = [_built(STATISTICS.get(name), fields) for name, fields in given.items()]
    return made if layers is None else [_of_layers(one, tuple(layers)) for one in made]


def _of_layers(statistic: Any, layers: tuple[int, ...]) -> Any:
    if not hasattr(statistic, "layers"):
        raise UsageError(
            f"--layers {','.join(map(str, layers))} were asked for; statistic {statistic.kind!r} goes by sites. Nothing "
            "was started. Say --sites, or ask for it apart.",
            kind="unknown-field",
        )
    return _with(statistic, layers=layers)


def live_statistics(names: Sequence[str]) -> list[Any]:
    """Return observers to be of statistics by their names, for a harvest to carry."""
    from jobs.circuits.live import LiveStatistic

    return [LiveStatistic(statistic=statistic) for statistic in statistics_of(names)]


def _built(cls: Any, given: dict[str, str]) -> Any:
    known = {field.name: str(field.type) for field in dataclasses.fields(cls)}
    if unknown := sorted(set(given) - set(known)):
        raise UsageError(
            f"statistic {cls.kind!r} has no setting {', '.join(unknown)}; known: {', '.join(known)}. Nothing was "
            "started.",
            kind="unknown-field",
        )
    try:
        return cls(**{name: _value(known[name], text) for name, text in given.items()})
    except ValueError as error:
        raise UsageError(
            f"--params of {cls.kind!r} do not fit ({error}). Nothing was started.",
            kind="bad-number",
        ) from error


def _value(declared: str, text: str) -> Any:
    if declared.startswith("tuple[int"):
        return tuple(int(item) for item in text.split("+"))
    if declared.startswith("tuple"):
        return tuple(text.split("+"))
    if declared.startswith("bool"):
        return {"true": True, "false": False}[text.lower()]
    if declared.startswith("int"):
        return int(text)
    return float(text) if declared.startswith("float") else text


def _with(statistic: Any, **fields: Any) -> Any:
    """Return a statistic with some fields set where it has them."""
    held = {field.name for field in dataclasses.fields(statistic)}
    mine = {name: value for name, value in fields.items() if name in held}
    return dataclasses.replace(statistic, **mine)


def named_sites(
    patterns: Sequence[str], stored: Sequence[str], facts: ModelFacts
) -> tuple[str, ...]:
    """Return the sites some patterns stand for, as ingest understands them.

    Of sets (``blocks.*.resid_post``) those that are stored, where any is; a plain name or ``@50%`` may be one that is
    not. Columns of a model that is not known are gone by their names alone.
    """
    from ingest.models import resolve_sites

    known = facts if facts.attentions else _by_names(patterns, stored)
    found: list[str] = []
    for pattern in patterns:
        if pattern in stored:  # a column of somebody's own may be called anything
            found.append(pattern)
            continue
        sites = resolve_sites([pattern], known)
        there = [site for site in sites if site in stored]
        found += there if there and set(pattern) & set("*{") else sites
    return tuple(dict.fromkeys(found))


def _by_names(patterns: Sequence[str], stored: Sequence[str]) -> ModelFacts:
    """Return a model of which only the names of its stored columns, and of those named plainly, are known."""
    from ingest.models.facts import ModelFacts

    plain = [name for name in patterns if not set(name) & set("*{@")]
    numbers = [int(match[1]) for match in map(_BLOCK.match, stored) if match]
    return ModelFacts(
        family="stored",
        layers=1 + max(numbers, default=-1),
        width=0,
        causal=False,
        shapes=dict.fromkeys((*stored, *plain), ()),
    )
