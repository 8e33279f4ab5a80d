"""``train``, ``eval`` and ``encode``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import config as settings
from jobs.errors import UsageError
from jobs.interrupts import Interrupts
from jobs.verbs.contract import Answer, Context
from jobs.verbs.recipes import recipes_of

if TYPE_CHECKING:
    from jobs.dictionaries.recipe import Recipe
    from store import Store


def train(config: settings.Train, context: Context) -> Answer:
    """Train every dictionary of the grid on one reading of the rows."""
    from jobs.runtimes.choose import chosen
    from jobs.runtimes.post import set_threads
    from jobs.runtimes.ray import Ray

    runtime = chosen(config, gpus=float(config.device.startswith("cuda")))
    if isinstance(runtime, Ray):
        from jobs.dictionaries.recipe import check_memory
        from jobs.dictionaries.tracking import trackers_of
        from jobs.runtimes.ray_train import as_ranks

        config = replace(config, url=_absolute(config.url), out=_absolute(config.out))
        check_memory(_opened(config), recipes_of(_opened(config), config))  # not by every worker
        trackers_of(config.track or ())
        with runtime:
            answers = as_ranks(runtime, partial(train_here, config), config.out)
    else:
        if config.threads is not None:
            set_threads(config.threads)
        answers = train_here(config, context)
    if answers is None:
        return Answer(None, "")  # the first rank tells
    lines = [
        f"{a['result']}  {a['kind']} latents {a['latents']} k {a['k']} seed {a['seed']}"
        for a in answers
    ]
    lines += sorted({a["note"] for a in answers if a["note"]})
    return Answer(answers, "\n".join(lines))


def train_here(
    config: settings.Train, context: Context | None = None
) -> list[dict[str, Any]] | None:
    """Train in this process, alone or as one of the ranks it was started with; return a record of each dictionary.

    None on ranks other than the first.
    """
    from jobs.dictionaries.ranks import ranks_of_environment
    from jobs.dictionaries.run import operations_of, train_all
    from jobs.dictionaries.tracking import trackers_of
    from jobs.kernels.codes.choose import RecordedOps, unmeasured

    store = _opened(config)
    recipes = recipes_of(store, config)
    ranks = ranks_of_environment(config.device)
    interrupts = Interrupts() if context is None else context.interrupts
    with interrupts.deferred():
        done = train_all(
            store,
            recipes,
            config.out,
            split=config.split,
            window_rows=config.window_rows,
            order_seed=config.order_seed,
            log=None if context is None else _told(recipes, context),
            should_stop=interrupts.asked,
            chooser=RecordedOps(),
            device=config.device,
            ranks=ranks,
            trackers=trackers_of(config.track or ()),
            keep_best=config.keep_best,
        )
    if ranks.rank > 0:
        return None
    return [
        {
            "result": str(result.path),
            **recipe.config.variant,
            "site": recipe.described()["site"],
            "seed": recipe.config.seed,
            "sha": book.sha,
            "note": unmeasured(operations_of(result)),
        }
        for recipe, (book, result) in zip(recipes, done, strict=True)
    ]


def _absolute(place: str) -> str:
    """Return a path as every process finds it; an address of a bucket stays what it is."""
    return place if "://" in place else str(Path(place).resolve())


def _opened(config: settings.Train) -> Store:
    from store import open as open_store

    return open_store(config.url)


def _told(recipes: Sequence[Recipe], context: Context) -> Callable[[int, Mapping[str, Any]], None]:
    """Return what shows how far all of them are, at each entry of a history."""
    total = sum(recipe.config.steps * recipe.config.batch_rows for recipe in recipes)
    seen = [0] * len(recipes)
    phase = f"train {len(recipes)} dictionaries" if len(recipes) > 1 else "train"

    def log(at: int, entry: Mapping[str, Any]) -> None:
        seen[at] = entry["rows"]
        note = f"FVU {entry['fvu']:.3f}, L0 {entry['l0']:.0f}, {entry['dead']} dead"
        context.progress(phase, sum(seen), total, note)

    return log


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
            _columns_of(store, book.meta, "site", config.site),
            book,
            config.out or _results_home(Path(config.dictionary)),
            targets=_columns_of(store, book.meta, "targets", config.target),
            split=split,
            suites=_suites_of(config),
            runtime=runtime,
            progress=lambda done, parts: context.progress("evaluate", done, parts, unit="parts"),
        )
    found = figures(result)
    text = (
        f"FVU {found['fvu']:.4f}, L0 {found['l0_mean']:.1f}, {found['dead']:.0f} of {found['latents']:.0f} "
        f"latents dead, cosine {found['cosine']:.4f} on {found['rows']:,.0f} rows of split {config.split}\n"
    )
    told = [f"{name} {found[name]:.4f}" for name in TOLD if name in found]
    text += f"{', '.join(told)}\n" if told else ""
    text += str(result.path)
    return Answer({"result": str(result.path), **found}, text)


TOLD = (
    *("ce", "delta_ce", "ce_recovered_zero", "ce_recovered_mean", "kl_sae"),
    *("probe_k1", "probe_k5", "probe_channels_k1", "probe_channels_k5"),
    *("mcc", "f1", "uniqueness", "recovered", "stability"),
)
"""Figures of suites that are printed; all of them are in the result."""


FLAGS = {
    "behaviour": ("model", "sequences", "device"),
    "probing": ("label",),
    "stability": ("against",),
}
"""Flags of one suite."""


def _suites_of(config: settings.Eval) -> list[Any]:
    """Return the suites named, each with its settings; a setting of another is refused."""
    from jobs.dictionaries.run import load
    from jobs.dictionaries.suite import SUITES

    for suite, names in FLAGS.items():
        said = [name for name in names if getattr(config, name)]
        if said and suite not in config.suite:
            raise UsageError(
                f"--{said[0]} is about suite {suite}, and the suites asked for are {', '.join(config.suite)}. Nothing was "
                f"started. Say --suite {','.join((*config.suite, suite))}, or leave it out.",
                kind="unknown-field",
            )
    found: list[Any] = []
    for name in config.suite:
        said_of = {flag: getattr(config, flag) for flag in FLAGS.get(name, ())}
        if name == "stability":
            said_of["against"] = tuple(load(path) for path in config.against)
        given = {flag: value for flag, value in said_of.items() if value is not None}
        found.append(SUITES.get(name)(**given) if given else name)
    return found


def _columns_of(
    store: Any, meta: Mapping[str, Any], key: str, names: Sequence[str] | None
) -> list[str]:
    """Return the columns named, or those a dictionary says it was trained on."""
    from jobs.columns import columns_of

    if names is not None:
        return columns_of(store, names)
    held = meta.get(key, [])
    if key == "site" and not held:
        _site_of(meta, None)
    return [held] if isinstance(held, str) else list(held)


def _site_of(meta: Mapping[str, Any], site: str | None) -> str:
    found = site or meta.get("site")
    if isinstance(found, list):
        raise UsageError(
            f"the dictionary reads {len(found)} columns side by side, {', '.join(found)}; encode writes codes of one column. "
            "Nothing was started. `actlake eval` reads all of them.",
            kind="column-kind",
        )
    if found is None:
        raise UsageError(
            "the dictionary does not say which site it is of. Nothing was started. Say --site GROUP:SITE, "
            "and --target where it is a transcoder."
        )
    return str(found)


def _results_home(path: Path) -> Path:
    """Return the folder whose ``results/`` a dictionary lies in, else the current one."""
    above = (parent for parent in path.resolve().parents if parent.name == "results")
    return next((parent.parent for parent in above), Path())


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
