"""What ``train`` makes of its settings: a recipe for each dictionary of the grid."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs import config as settings
from jobs.errors import JobError, UsageError

if TYPE_CHECKING:
    from jobs.dictionaries.recipe import Recipe
    from store import Store

GRADIENTS = "grad.exact.nll"
"""The group in which a g-SAE looks for gradients unless told otherwise."""


def recipes_of(store: Store, config: settings.Train) -> list[Recipe]:
    """Return the grid: variants × columns × latents × k × seeds.

    Raises
    ------
    UsageError
        ``unknown-field``, ``no-target``: settings that do not go together.
    JobError
        ``no-column``, ``no-gradient``: the store lacks what a variant needs.
    """
    from jobs.columns import columns_of
    from jobs.dictionaries.config import TrainConfig
    from jobs.dictionaries.contract import VARIANTS
    from jobs.dictionaries.recipe import Recipe
    from jobs.feed import StoreFeed, usual_rows

    columns = columns_of(store, config.site)
    more = _settings(config.set)
    rows = StoreFeed(store, columns, config.batch_rows, where=usual_rows(config.split)).rows
    steps = max(1, (config.rows or 4 * rows) // config.batch_rows)
    found = []
    for kind in config.variant:
        needs = VARIANTS.get(kind).needs
        together = [tuple(columns)] if "columns" in needs else [(name,) for name in columns]
        targets = (
            _targets(store, config, columns, together)
            if "target" in needs
            else [()] * len(together)
        )
        for (read, rebuilt), latents, k, seed in itertools.product(
            list(zip(together, targets, strict=True)), config.latents, config.k, config.seeds
        ):
            train = TrainConfig(
                variant={"kind": kind, "latents": latents, "k": k, **more},
                steps=steps,
                batch_rows=config.batch_rows,
                lr=config.lr,
                seed=seed,
                precision=config.precision,
                optimizer=config.optimizer,
                average=config.average,
                resample_every=config.resample_every,
            )
            gradient = _gradient(store, config, read[0]) if "gradient" in needs else None
            found.append(Recipe(columns=read, config=train, targets=rebuilt, gradient=gradient))
    return found


def _settings(words: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name in {"kind", "latents", "k"}:
            raise UsageError(
                f"--set has {word!r}; it takes NAME=VALUE of the variant's further settings, as aux_weight=0.1. Nothing "
                "was started. --variant, --latents and --k have flags of their own.",
                kind="unknown-field",
            )
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def _targets(
    store: Store,
    config: settings.Train,
    columns: Sequence[str],
    together: Sequence[tuple[str, ...]],
) -> list[tuple[str, ...]]:
    """Return the targets of each dictionary's columns."""
    from jobs.columns import columns_of

    if config.target is not None:
        named = columns_of(store, config.target)
    elif all(name.endswith(".mlp.in") for name in columns):
        named = [name.removesuffix(".in") + ".out" for name in columns]
    else:
        raise UsageError(
            f"a transcoder was asked for on {', '.join(columns)} without a target to rebuild. Nothing was started. Name "
            "one for each --site: --target blocks.3.mlp.out.",
            kind="no-target",
        )
    if len(named) != len(columns):
        raise UsageError(
            f"{len(columns)} columns to read were named and {len(named)} targets: {', '.join(columns)} and "
            f"{', '.join(named)}. Nothing was started. Name one target for each --site, in the same order.",
            kind="no-target",
        )
    return [tuple(named)] if len(together) == 1 else [(name,) for name in named]


def _gradient(store: Store, config: settings.Train, site: str) -> str:
    """Return the column of gradients by a site, or tell the command that makes it."""
    from jobs.sequences import made_by

    bare = site.rpartition(":")[2]
    wanted = config.gradient or f"{GRADIENTS}:{bare}"
    if wanted in store.sites or (
        ":" not in wanted and any(s.endswith(":" + wanted) for s in store.sites)
    ):
        return wanted
    group, _ = store.view.resolve(site)
    raise JobError(
        f"a g-SAE was asked for on {site}, which needs the gradient of the model's loss there; {store.url} has no column "
        f"{wanted!r}. Nothing was started. Add it: actlake ingest --into {store.url} --gradient exact --model "
        f"{made_by(store, group) or 'MODEL'} --sites {bare}",
        kind="no-gradient",
    )
