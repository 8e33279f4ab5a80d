"""Wires plan, worker, store and the runtime and observers it is given; returns a summary."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ingest.asked import Asked, Rows, asked, asked_into, sees, specs
from ingest.chats import write_roles
from ingest.config import HarvestConfig, TokensConfig
from ingest.contract import ChatSource, Harvest, Observer, ObserverPlan, Runtime, elsewhere
from ingest.duplicates import Repeats, repeats, seen_in
from ingest.errors import IngestError
from ingest.estimate import column_bytes
from ingest.failures import PARTS_FAILED, parts_failed
from ingest.generating import Generating, write_steps
from ingest.gradients import Gradient, stored_dtype
from ingest.harvest import HarvestJob, MakeHarvester, harvest_recipe
from ingest.models import LoadedModel, resolve_dtype
from ingest.models.derived import Derived
from ingest.models.facts import ModelFacts
from ingest.models.matrices import matrices, resolve, to_files
from ingest.pace import NAMES, Spent
from ingest.picturing import Picturing, write_inputs
from ingest.plan import Batching
from ingest.showing import sees_of
from ingest.tasks import Pairing, write_answers
from ingest.tokens import Tokenizing, picture_recipe, tokenizer_files, tokens_recipe
from ingest.vectors import VectorWorker, vector_recipe, vector_rows, write_vector_tokens
from ingest.writing import Progress
from store import ActlakeError, Store, create
from store import open as open_store
from store.codecs import CODECS
from store.commits import Commit
from store.schema import Column


def silent(phase: str, done: int, total: int | None) -> None:
    """Report progress to nobody."""
    del phase, done, total


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What an ingest did."""

    url: str
    group: str
    sites: tuple[str, ...]
    rows: int
    parts: int
    new_rows: int
    left_parts: int
    """Parts other shards have still to do."""
    seconds: float
    kept_rows: int | None = None
    """Rows the group holds; fewer than there are where it is a sample."""
    group_bytes: int = 0
    """What the group's objects take."""
    planned_bytes: int | None = None
    """What `actlake plan` says they would; None where a codec's outcome depends on the values."""
    spent: Spent = field(default_factory=Spent)
    """What harvesting the new rows took, summed over workers."""
    new_bytes: int = 0
    """What their objects take."""
    repeats: Repeats | None = None
    """How many documents have the text of an earlier one; None where this run made no rows."""
    unobserved_parts: int = 0
    """Parts of which an observer has said nothing: they were harvested before it was asked for."""

    def to_json(self) -> dict[str, Any]:
        """Return the summary for programs."""
        found = {name: getattr(self, name) for name in self.__slots__}
        repeats = None if self.repeats is None else self.repeats.to_json()
        return {**found, "spent": self.spent.to_json(), "repeats": repeats}


def ingest(
    url: str | Path,
    tokens: TokensConfig,
    harvest: HarvestConfig,
    *,
    runtime: Runtime,
    observers: Sequence[ObserverPlan] = (),
    progress: Progress = silent,
) -> Summary:
    """Make (or complete) a store: tokens from a source of texts or of token ids, columns from a model.

    Raises
    ------
    ModelError, SiteError, SourceError, IngestError
        Before anything is written.
    ConflictError
        A store of another recipe is there.
    """
    wish = asked(tokens, harvest, observers, elsewhere=elsewhere(runtime))
    loaded, sites, rows, context = wish.loaded, wish.sites, wish.rows, wish.context
    inputs = tokens.source.inputs()
    store = create(url, part_rows=wish.part_rows, part_stride=wish.stride_rows)
    recipe = _recipe(store, tokens, inputs, wish)
    writer = store.writer("tokens", recipe=recipe, provenance=_truth(store, tokens.source))
    shown = sees(tokens.source)
    job = _job(store.refresh(), harvest, loaded, sites, context, shown)
    watching = _observers(job, loaded, observers)
    new = not writer.sealed and isinstance(rows, Tokenizing | Generating)
    if tokens.duplicates == "drop" and isinstance(rows, Tokenizing | Generating):
        prompts = rows.prompts if isinstance(rows, Generating) else rows
        prompts.seen = seen_in(store.refresh())
    rows.write(writer, progress)
    _write_beside(store.refresh(), tokens, rows, loaded)
    found = repeats(store.refresh()) if new else None
    return replace(_harvest(job, loaded, runtime, watching, progress), repeats=found)


def _write_beside(store: Store, tokens: TokensConfig, rows: Rows, loaded: LoadedModel) -> None:
    """Write the groups that come with the rows of a source, whoever looks at them later."""
    if isinstance(rows, Pairing):
        write_answers(store, rows)
    if isinstance(rows, Picturing):
        write_inputs(store, rows)
    if isinstance(tokens.source, ChatSource):
        write_roles(store, tokens.source, loaded.tokenizer)
    if isinstance(rows, Generating):
        write_steps(store)


def _recipe(
    store: Store, tokens: TokensConfig, inputs: Mapping[str, str], wish: Asked
) -> dict[str, Any]:
    """Return the recipe of the rows, what it names being in the store."""
    loaded = wish.loaded
    asset = None
    if loaded.tokenizer is not None:
        asset = store.put_asset(tokenizer_files(loaded.folder))
    if isinstance(wish.rows, Picturing):
        assert loaded.pictures is not None
        processor = store.put_asset(loaded.pictures.files)
        return picture_recipe(tokens, inputs, wish.context, asset, processor, wish.rows.images)
    assert asset is not None
    writer = None
    if tokens.generation is not None:
        compute = {"compute_dtype": loaded.compute_dtype}
        writer = {**tokens.generation.to_json(), **compute, "model": loaded.identity}
    return tokens_recipe(tokens, inputs, wish.context, asset, writer)


def ingest_into(
    url: str | Path,
    harvest: HarvestConfig,
    *,
    runtime: Runtime,
    observers: Sequence[ObserverPlan] = (),
    progress: Progress = silent,
) -> Summary:
    """Add a group of columns to the rows of a store; the model must use the same tokenizer."""
    store, loaded, sites, context = asked_into(
        url, harvest, observers, elsewhere=elsewhere(runtime)
    )
    job = _job(store, harvest, loaded, sites, context, sees_of(store))
    return _harvest(job, loaded, runtime, _observers(job, loaded, observers), progress)


def ingest_vectors(
    url: str | Path,
    tokens: TokensConfig,
    group: str,
    *,
    runtime: Runtime,
    progress: Progress = silent,
) -> Summary:
    """Make (or complete) a store from a source that makes vectors, its truth beside them."""
    began = time.monotonic()
    rows = vector_rows(tokens)
    store = create(url, part_rows=tokens.part_rows, part_stride=max(65_536, tokens.part_rows))
    writer = store.writer("tokens", recipe=vector_recipe(tokens, tokens.source))
    write_vector_tokens(writer, tokens, rows, progress)
    recipe = {
        "schema": 1,
        "tokens": store.refresh().groups["tokens"].recipe_hash,
        "truth": store.put_asset(tokens.source.truth()),
        "mask": None,
    }
    make = partial(VectorWorker, str(url), group, tokens.source, recipe)
    summary = _run(str(url), group, tuple(tokens.source.columns), make, runtime, progress, began)
    open_store(url).seal("truth")
    return summary


def _truth(store: Store, source: Any) -> dict[str, str]:
    """Return the asset that holds what a source is drawn from, where that is known."""
    known = getattr(source, "truth", None)
    return {} if known is None else {"truth": store.put_asset(known())}


def _observers(
    job: HarvestJob, loaded: LoadedModel, plans: Sequence[ObserverPlan]
) -> list[Observer]:
    facts = ModelFacts.of(loaded.adapter)
    harvest = Harvest(
        url=job.url,
        recipe=job.recipe,
        dtype=job.dtype,
        sites=tuple(site for site in job.sites if site in facts.shapes),  # derived columns are none
        model=facts,
    )
    return [plan.observer(harvest) for plan in plans]


def _job(
    store: Store,
    config: HarvestConfig,
    loaded: LoadedModel,
    sites: Sequence[str],
    context: int,
    shown: str | None,
) -> HarvestJob:
    _, usual = resolve_dtype(config.dtype, config.store_dtype, device=config.device)
    stored = stored_dtype(config, usual)
    columns = specs(config, loaded, sites)
    dtypes = {site: spec.partition("[")[0] for site, spec in columns.items()}
    recipe = harvest_recipe(
        loaded,
        store.groups["tokens"].recipe_hash,
        sites,
        dtypes,
        Batching.of(config.batch, context, lanes=config.lanes),
        Gradient.of_config(config),
        config.sample,
        seeing=loaded.adapter.vision is not None and shown != "texts",
    )
    asset = None
    if config.weights:
        adapter: Any = loaded.adapter
        names = resolve(config.weights, adapter)
        asset = store.put_asset(to_files(matrices(loaded, names)))
        _check_weights(store, config.group, asset)
    job = HarvestJob(
        url=store.url,
        group=config.group,
        model=config.model,
        revision=config.revision,
        sites=tuple(sites),
        columns=columns,
        dtype=stored,
        recipe={**recipe, "codec": config.codec},
        codec=config.codec,
        attn_implementation=config.attn_implementation,
        device=config.device,
        weights=asset,
        sees=shown,
        allow_nonfinite=config.allow_nonfinite or Derived(loaded.adapter).gaps(sites),
    )
    store.writer(
        job.group, columns=job.columns, recipe=job.recipe, codec=job.codec
    )  # refuses a taken name
    return job


def _check_weights(store: Store, group: str, asset: str) -> None:
    """Raise where parts of a group were written without the weights that are now to be beside it."""
    if group not in store.groups:
        return
    held = store.view.commits(group, store.view.parts(group))
    late = [one.part for one in held if one.provenance.get("weights") != asset]
    if late:
        raise IngestError(
            f"weights were to be kept beside group {group!r}, of which part {late[0]} was written without them. What was "
            "committed stands. Leave out --weights, or write another --group with them.",
            kind="weights-late",
        )


def _harvest(
    job: HarvestJob,
    loaded: LoadedModel,
    runtime: Runtime,
    observers: Sequence[Observer],
    progress: Progress,
) -> Summary:
    make = MakeHarvester(job=job, observers=tuple(observers), loaded=loaded)
    before = set(open_store(job.url).view.parts(job.group))
    done = _run(job.url, job.group, job.sites, make, runtime, progress, time.monotonic())
    store = open_store(job.url)
    parts = store.view.parts(job.group)
    unobserved = [part for part in parts if not all(one.done(part) for one in observers)]
    commits = list(store.view.commits(job.group, parts))
    sizes = [
        column_bytes(spec, job.codec, [one.slots for one in commits], store.part_stride)
        for spec in job.columns.values()
    ]
    coded = all(
        CODECS.get(job.codec)().row_bytes(Column.parse("c", spec)) for spec in job.columns.values()
    )
    return replace(
        done,
        unobserved_parts=len(unobserved),
        kept_rows=sum(one.rows for one in commits),
        group_bytes=_bytes(commits),
        new_bytes=_bytes([one for one in commits if one.part not in before]),
        planned_bytes=sum(size for size, _ in sizes) if coded else None,
    )


def _bytes(commits: Sequence[Commit]) -> int:
    return sum(item.size for one in commits for item in one.objects.values())


def _run(
    url: str,
    group: str,
    sites: tuple[str, ...],
    make: Any,
    runtime: Runtime,
    progress: Progress,
    began: float,
) -> Summary:
    store = open_store(url)
    parts = list(store.view.parts("tokens"))
    held = set(store.view.parts(group)) if group in store.groups else set()
    rows = {part: store.view.commit("tokens", part).rows for part in parts}
    total = sum(rows.values())
    done = sum(rows[part] for part in held)
    new, spent = 0, Spent()
    results = runtime.map(make, [part for part in parts if part not in held])
    try:
        for part, record in results:
            new += int(record["rows"])
            spent += Spent(**{name: record[name] for name in NAMES if name in record})
            done += rows[part]
            progress("harvest", done, total)
    except ActlakeError as error:
        if error.kind != PARTS_FAILED:
            raise
        raise parts_failed(store, group, error.where["parts"], url) from error
    finally:
        if isinstance(results, Generator):
            results.close()  # at once, whatever still refers to it: its workers must not go on
    return Summary(
        url=store.url,
        group=group,
        sites=sites,
        rows=total,
        parts=len(parts),
        new_rows=new,
        left_parts=0 if store.seal(group) else len(parts) - len(store.refresh().view.parts(group)),
        seconds=time.monotonic() - began,
        spent=spent,
    )
