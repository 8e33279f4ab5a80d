"""Whole sequences of a store's columns, in the very blocks the harvest saw; and what is known of their model.

A block is a batch of the harvest, so that what is computed block by block has the bits it would have had live.
Columns may lie in several groups if these were made alike: of the same model, in the same batches.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ingest.contract import SequenceBlock
from ingest.models.facts import ModelFacts
from ingest.models.rules import RULES
from jobs.errors import JobError
from store import Store, tables
from store.records import canonical
from store.schema import Column, Group

Array = np.ndarray[Any, np.dtype[Any]]
USUAL_ATTENTION = "sdpa"  # what ingest takes where nothing is said and the model has it
DEFAULT_BATCH = 32  # sequences of a block where the recipe names no batch
_OF_COLUMNS = {"schema", "sites", "dtypes"}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """Which group holds each site, and what all of these groups have in common."""

    groups: Mapping[str, str]
    """Site → group."""
    specs: Mapping[str, str]
    """Site → its column's declaration, ``bfloat16[384]``."""
    base: Mapping[str, Any]
    """What decides the values of any site: model, tokens, batch, compute dtype (`base_of`)."""

    @property
    def batch(self) -> int:
        """Sequences of a block."""
        return batch_of(self.base)


def base_of(recipe: Mapping[str, Any], group: str | None = None) -> dict[str, Any]:
    """Return what a recipe says of any column, whichever were stored with it.

    Two groups of equal base hold equal values of the same site. A recipe that names no model says too little for
    that: there the group's name is part of it.
    """
    base = {name: value for name, value in recipe.items() if name not in _OF_COLUMNS}
    return base if "model" in recipe else {**base, "group": group}


def batch_of(base: Mapping[str, Any]) -> int:
    """Return how many sequences a block holds."""
    batch = base.get("batch")
    return int(batch["sequences"]) if isinstance(batch, Mapping) else DEFAULT_BATCH


def whole_groups(store: Store, groups: Sequence[str] | None = None) -> list[Group]:
    """Return some groups (default: all but gradients) that hold dense or scalar columns of whole sequences.

    Raises
    ------
    JobError
        ``masked-group``: a group named holds a sample of the rows.
    """
    found = [store.view.group(name) for name in groups or store.groups if name != "tokens"]
    for group in found:
        if groups and group.masked:
            raise JobError(
                f"group {group.name!r} of {store.url} holds a sample of the rows; this needs whole sequences. "
                "Nothing was started. Choose a group that holds all rows.",
                kind="masked-group",
                group=group.name,
            )
    return [group for group in found if not group.masked and (groups or not group.gradient)]


def stored_sites(store: Store, groups: Sequence[str] | None = None) -> list[str]:
    """Return the dense columns of some groups (default: all) that hold whole sequences, each name once.

    Where no group is named, those of what models are shown (pixels, texts of pairs) are left out: no site held it.
    """
    dense = (
        column.name
        for group in whole_groups(store, groups)
        for column in group.columns.values()
        if column.kind == "dense" and (groups is not None or "shown" not in group.recipe)
    )
    return list(dict.fromkeys(dense))


def locate(
    store: Store,
    sites: Sequence[str],
    groups: Sequence[str] | None = None,
    *,
    model: str | None = None,
) -> Sources:
    """Return where some sites lie; ``model`` is named in the command that adds those that are missing.

    Raises
    ------
    JobError
        ``columns-missing``, with the ingest command that adds them. ``ambiguous-column``: groups made differently
        hold a site, or the sites together. ``masked-group``.
    """
    held = whole_groups(store, groups)
    if [site for site in sites if not _holders(held, site)]:
        raise missing_columns_error(store, sites, groups, model=model)
    chosen = {site: _widest(store, _holders(held, site)) for site in sites}
    rivals = [group for site in sites for group in _holders(held, site)]
    bases = {canonical(base_of(group.recipe, group.name)) for group in rivals}
    if len(bases) != 1:
        names = ", ".join(sorted({group.name for group in rivals}))
        raise JobError(
            f"the columns {_brief(sites)} lie in groups that were made differently ({names}): of another model, "
            f"or in other batches. Nothing was started. Say which to read: --group {rivals[0].name}",
            kind="ambiguous-column",
        )
    return Sources(
        groups={site: group.name for site, group in chosen.items()},
        specs={site: group.columns[site].spec for site, group in chosen.items()},
        base=base_of(rivals[0].recipe, rivals[0].name),
    )


def _gradient_words(made: Group) -> list[str]:
    """Return the flags that make gradients as those of a group are."""
    rule = made.recipe["gradient"]
    named = next((name for name, one in RULES.items() if one.to_json() == rule), "RULE")
    return ["--gradient", named, "--metric", str(made.recipe["metric"]["kind"])]


def _holders(groups: Sequence[Group], site: str) -> list[Group]:
    return [g for g in groups if site in g.columns and g.columns[site].kind in {"dense", "scalar"}]


def _widest(store: Store, groups: Sequence[Group]) -> Group:
    return max(groups, key=lambda group: len(store.view.parts(group.name)))


def missing_columns_error(
    store: Store,
    sites: Sequence[str],
    groups: Sequence[str] | None = None,
    *,
    model: str | None = None,
) -> JobError:
    """Return the error for sites that no group holds: ``columns-missing``, with the command that adds them.

    The command makes them as the columns already there were made, so that all can be read together.

    Parameters
    ----------
    model
        What the caller called the model; default: what the columns' commits say.
    """
    held = whole_groups(store, groups)
    missing = [site for site in sites if not _holders(held, site)]
    made = next((group for group in held if "model" in group.recipe), None)
    words = ["actlake", "ingest", "--into", store.url, "--group", _free_name(store, made)]
    words += ["--model", model or made_by(store, made) or "MODEL"]
    words += ["--sites", ",".join(_compact(missing))]
    words += [] if made is None or not made.gradient else _gradient_words(made)
    if made is not None:
        words += ["--batch", str(batch_of(made.recipe)), "--dtype", made.recipe["compute_dtype"]]
        words += ["--lanes"] if "lanes" in made.recipe["batch"] else []
        dtypes = sorted(set(made.recipe["dtypes"].values()))
        words += ["--store-dtype", dtypes[0]] if len(dtypes) == 1 else []
        attention = str(_provenance(store, made).get("attention") or USUAL_ATTENTION)
        words += [] if attention == USUAL_ATTENTION else ["--attn-implementation", attention]
        revision = made.recipe["model"].get("commit")
        words += [] if revision is None else ["--revision", str(revision)]
    where = f"groups {', '.join(groups)} of {store.url}" if groups else store.url
    return JobError(
        f"{len(missing)} of {len(sites)} columns that were asked for are not in {where}: {_brief(missing)}. Nothing "
        f"was started. Add them: {shlex.join(words)}",
        kind="columns-missing",
        columns=missing,
    )


def _brief(sites: Sequence[str]) -> str:
    return (
        ", ".join(sites) if len(sites) <= 8 else f"{', '.join(sites[:8])} and {len(sites) - 8} more"
    )


def _free_name(store: Store, made: Group | None) -> str:
    stem = "acts" if made is None else made.name
    names = (f"{stem}-{number}" for number in range(2, len(store.groups) + 3))
    return next(name for name in names if name not in store.groups)


def made_by(store: Store, made: Group | None) -> str:
    """Return what the model that filled a group was called there, empty where it does not say."""
    return str(_provenance(store, made).get("model_name") or "")


def model_name(store: Store, groups: Sequence[str] | None = None) -> str:
    """Return what the model that filled some groups (default: all) was called, its last part where it was a path."""
    held = whole_groups(store, groups)
    made = next((group for group in held if "model" in group.recipe), None)
    return made_by(store, made).rstrip("/").rpartition("/")[2]


def _compact(sites: Sequence[str]) -> list[str]:
    """Return patterns that stand for exactly these sites: ``blocks.{0,1}.attn.q``."""
    layers: dict[str, list[str]] = {}
    for site in sites:
        match = _BLOCK.fullmatch(site)
        layers.setdefault(match[2] if match else site, []).append(match[1] if match else "")
    return [
        name
        if numbers == [""]
        else f"blocks.{numbers[0] if len(numbers) == 1 else '{' + ','.join(numbers) + '}'}.{name}"
        for name, numbers in layers.items()
    ]


def _provenance(store: Store, group: Group | None) -> Mapping[str, Any]:
    parts = store.view.parts(group.name) if group is not None else {}
    if group is None or not parts:
        return {}
    return store.view.commit(group.name, next(iter(parts))).provenance


def model_facts(
    store: Store, groups: Sequence[str] | None = None, *, model: str | None = None
) -> ModelFacts:
    """Return what is known of the model that filled some groups (default: all).

    Parameters
    ----------
    model
        Folder of that model, where its facts are not beside the columns (stores of older versions); its config must
        be the one the columns were made with.

    Returns
    -------
    The record written beside the columns; else one made from the columns' names and shapes alone, which knows sites
    but not how blocks attend (``attention`` then raises ``facts-missing``).

    Raises
    ------
    JobError
        ``model-differs``: the folder holds another model. ``ambiguous-column``: the groups come from several.
        ``masked-group``: what a model filled are samples.
    """
    held = whole_groups(store, groups)
    _refuse_samples(store, held)
    if model is not None:
        return _named_facts(store, held, model)
    _refuse_several_models(store, held)
    for group in held:
        asset = _provenance(store, group).get("model")
        if asset is not None:
            return ModelFacts.from_files(store.asset(str(asset)))
    return _facts_of_columns(held)


def _refuse_samples(store: Store, held: Sequence[Group]) -> None:
    """Raise where a model filled samples of the rows and nothing else: they are no reason to say that there is nothing."""
    every = [store.view.group(name) for name in store.groups]
    samples = [group.name for group in every if group.masked and "model" in group.recipe]
    if samples and not any("model" in group.recipe for group in held):
        raise JobError(
            f"this needs whole sequences, and what a model filled of {store.url} are samples of the rows: {', '.join(samples)}. "
            "Nothing was started. Add a group of all rows (actlake ingest --into, without --sample).",
            kind="masked-group",
            group=samples[0],
        )


def _refuse_several_models(store: Store, groups: Sequence[Group]) -> None:
    made = [group for group in groups if "model" in group.recipe]
    if len({canonical(group.recipe["model"]) for group in made}) > 1:
        raise JobError(
            f"the groups {', '.join(group.name for group in made)} of {store.url} come from different models. Nothing "
            f"was started. Say which to read: --group {made[0].name}",
            kind="ambiguous-column",
        )


def _named_facts(store: Store, groups: Sequence[Group], model: str) -> ModelFacts:
    facts, config = ModelFacts.of_folder(model)
    for group in groups:
        wanted = group.recipe.get("model", {}).get("config.json")
        if wanted is not None and wanted != config:
            raise JobError(
                f"the config.json of {model} is not the one group {group.name!r} of {store.url} was made with "
                f"({config[:12]}, {wanted[:12]}). Nothing was started. Name the model of that group.",
                kind="model-differs",
            )
    return facts


def _facts_of_columns(groups: Sequence[Group]) -> ModelFacts:
    shapes = {
        column.name: column.shape
        for group in groups
        for column in group.columns.values()
        if column.kind in {"dense", "scalar"}
    }
    layers = [int(match[1]) for match in map(_BLOCK.fullmatch, shapes) if match is not None]
    widths = [shape[0] for name, shape in shapes.items() if ".resid_" in name and shape]
    families = [str(g.recipe["model"].get("family", "")) for g in groups if "model" in g.recipe]
    return ModelFacts(
        family=next(iter(families), ""),
        layers=max(layers, default=-1) + 1,
        width=next(iter(widths), 0),
        causal=False,
        shapes=shapes,
    )


def sequence_blocks(
    store: Store,
    sites: Sequence[str],
    parts: Sequence[int] | None = None,
    groups: Sequence[str] | None = None,
) -> Iterator[SequenceBlock]:
    """Yield whole sequences of some sites, one block a batch of the harvest, parts in the order given.

    Parameters
    ----------
    parts
        Default: all parts that every site has, ascending.
    groups
        Where to look for the sites; default: everywhere.

    Raises
    ------
    JobError
        See ``locate``.
    """
    held = locate(store, sites, groups)
    for part in shared_parts(store, held) if parts is None else parts:
        yield from _part_blocks(store, held, part)


def shared_parts(store: Store, held: Sources) -> list[int]:
    """Return the parts that every group of some sites has, ascending."""
    names = {"tokens", *held.groups.values()}
    return sorted(set.intersection(*(set(store.view.parts(name)) for name in names)))


def _part_blocks(store: Store, held: Sources, part: int) -> Iterator[SequenceBlock]:
    commit = store.view.commit("tokens", part)
    tokens = store.view.table(commit, "tokens.parquet")
    lengths = tables.column(store.view.table(commit, "sequences.parquet"), "rows")
    columns = {name: tables.column(tokens, name) for name in tokens.column_names}
    bounds = np.concatenate([[0], np.cumsum(lengths.astype(np.int64))])
    for first in range(0, len(lengths), held.batch):
        count = min(held.batch, len(lengths) - first)
        low, high = int(bounds[first]), int(bounds[first + count])
        values = {
            site: _rows(store, group, site, part, low, high) for site, group in held.groups.items()
        }
        yield SequenceBlock.cut(part, columns, bounds, first=first, count=count, sites=values)


def _rows(store: Store, group: str, site: str, part: int, low: int, high: int) -> torch.Tensor:
    """Return rows of a part as a tensor in the declared dtype, its bits those stored."""
    spec: Column = store.groups[group].columns[site]
    commit = store.view.commit(group, part)
    if spec.kind == "scalar":  # bfloat16 lies in tables as float32 that is rounded already
        values = tables.column(store.view.table(commit, "scalars.parquet"), site)[low:high]
        shaped = np.array(values).reshape(high - low, *spec.shape)
        return torch.from_numpy(shaped).to(getattr(torch, spec.dtype))
    raw = np.empty((high - low, *spec.shape), spec.stored)
    store.view.shard(commit, spec).read(low, high, raw)
    if spec.bits:
        return torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(raw)
