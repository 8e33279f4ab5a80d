"""Wires plan, worker, store and the runtime and observers it is given; returns a summary."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ingest.config import HarvestConfig, TokensConfig
from ingest.contract import Harvest, Observer, ObserverPlan, PairSource, Runtime, elsewhere
from ingest.errors import IngestError, OverBudgetError
from ingest.failures import PARTS_FAILED, parts_failed
from ingest.gradients import Gradient, check_answers, check_differentiable, stored_dtype
from ingest.harvest import HarvestJob, MakeHarvester, VectorWorker, harvest_recipe
from ingest.models import LoadedModel, check_device, load, resolve_dtype, resolve_sites
from ingest.models.backward import check_gradients, check_head
from ingest.models.derived import PREDICTED, Derived, is_derived
from ingest.models.facts import ModelFacts
from ingest.tasks import ROLES, Pairing, check_group, has_answers, write_answers
from ingest.tokens import (
    Progress,
    Tokenizing,
    check_same_tokenizer,
    check_vocabulary,
    resolve_context,
    tokenizer_files,
    tokens_recipe,
    vector_recipe,
    write_vector_tokens,
)
from store import ActlakeError, Store, create
from store import open as open_store
from store.layout import CHUNK_ROWS
from store.windows import free_memory_bytes


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
    unobserved_parts: int = 0
    """Parts of which an observer has said nothing: they were harvested before it was asked for."""

    def to_json(self) -> dict[str, Any]:
        """Return the summary for programs."""
        return {name: getattr(self, name) for name in self.__slots__}


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
    check_group(harvest.group)
    loaded = _load(harvest, elsewhere=elsewhere(runtime))
    sites = _sites(harvest, loaded)
    _check_observable(loaded, sites, observers, harvest)
    context = resolve_context(tokens, loaded)
    rows = _rows(tokens, loaded, context)
    check_answers(harvest, there=isinstance(rows, Pairing))
    _check_memory(harvest, context, loaded)
    rows.check()  # refused before a store exists, as every other bad input
    inputs = tokens.source.inputs()
    together = context * (len(ROLES) if isinstance(rows, Pairing) else 1)
    part_rows = max(tokens.part_rows, -(-together // CHUNK_ROWS) * CHUNK_ROWS)
    store = create(url, part_rows=part_rows, part_stride=max(65_536, part_rows))
    asset = store.put_asset(tokenizer_files(loaded.folder))
    recipe = tokens_recipe(tokens, inputs, context, asset)
    writer = store.writer("tokens", recipe=recipe, provenance=_truth(store, tokens.source))
    job = _job(store.refresh(), harvest, loaded, sites)
    watching = _observers(job, loaded, observers)
    rows.write(writer, progress)
    if isinstance(rows, Pairing):
        write_answers(store.refresh(), rows)
    return _harvest(job, loaded, runtime, watching, progress)


def ingest_into(
    url: str | Path,
    harvest: HarvestConfig,
    *,
    runtime: Runtime,
    observers: Sequence[ObserverPlan] = (),
    progress: Progress = silent,
) -> Summary:
    """Add a group of columns to the rows of a store; the model must use the same tokenizer."""
    store = open_store(url)
    store.view.group("tokens")
    check_group(harvest.group)
    loaded = _load(harvest, elsewhere=elsewhere(runtime))
    check_same_tokenizer(store, loaded)
    sites = _sites(harvest, loaded)
    context = int(store.groups["tokens"].recipe.get("context", 0))
    limit = loaded.adapter.max_positions
    if limit is not None and context > limit:
        raise IngestError(
            f"the sequences of {store.url} have up to {context} tokens; {loaded.name} has {limit} "
            "positions. Nothing was written. Use a model with more positions.",
            kind="context-too-long",
        )
    _check_memory(harvest, context, loaded)
    _check_observable(loaded, sites, observers, harvest)
    check_answers(harvest, there=has_answers(store))
    job = _job(store, harvest, loaded, sites)
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
    rows = tokens.rows
    if rows is None:
        raise IngestError(
            f"source {tokens.source.kind!r} has no end of its own. Nothing was written. Say --rows N.",
            kind="rows-missing",
        )
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


def check_memory(batch: int, context: int, loaded: LoadedModel, *, logits: int = 0) -> None:
    """Raise ``over-budget`` where one batch cannot fit the memory that is free.

    Counts ids and mask, and four float32 copies of the residual stream: less than any model needs; and, where a
    gradient begins at them, three of the ``logits`` of a token.
    """
    need = batch * context * (16 + 4 * 4 * loaded.adapter.width + 3 * 4 * logits)
    free = free_memory_bytes()
    if need > free:
        raise OverBudgetError(
            f"a batch of {batch} sequences of {context} tokens needs at least {need / 1e9:,.1f} GB for "
            f"{loaded.name}; {free / 1e9:,.1f} GB are free. Nothing was written. Use a smaller --batch."
        )


def _truth(store: Store, source: Any) -> dict[str, str]:
    """Return the asset that holds what a source is drawn from, where that is known."""
    known = getattr(source, "truth", None)
    return {} if known is None else {"truth": store.put_asset(known())}


def _sites(harvest: HarvestConfig, loaded: LoadedModel) -> list[str]:
    """Return the sites and derived columns a harvest names; those whose gradients are asked for must have some."""
    if harvest.gradient is not None:
        sites = resolve_sites(harvest.sites, loaded.adapter)
        check_gradients(loaded.adapter, sites)
        return sites
    derived = [pattern for pattern in harvest.sites if is_derived(pattern)]
    plain = [pattern for pattern in harvest.sites if pattern not in derived]
    columns = Derived(loaded.adapter).resolve(derived)
    if set(columns) & set(PREDICTED):
        check_head(loaded.model)
    return [*resolve_sites(plain, loaded.adapter), *columns]


def _rows(tokens: TokensConfig, loaded: LoadedModel, context: int) -> Pairing | Tokenizing:
    """Return what cuts a source into rows."""
    if isinstance(tokens.source, PairSource):
        return Pairing(config=tokens, tokenizer=loaded.tokenizer, context=context)
    return Tokenizing(
        config=tokens, source=tokens.source, tokenizer=loaded.tokenizer, context=context
    )


def _check_memory(config: HarvestConfig, context: int, loaded: LoadedModel) -> None:
    vocabulary = int(getattr(loaded.model.config, "vocab_size", 0))
    asked = config.gradient is not None or bool(set(PREDICTED) & set(config.sites))
    check_memory(config.batch, context, loaded, logits=vocabulary if asked else 0)


def _check_observable(
    loaded: LoadedModel,
    sites: Sequence[str],
    plans: Sequence[ObserverPlan],
    harvest: HarvestConfig,
) -> None:
    """Raise, before anything is written, where an observer cannot have what it needs of the model."""
    if plans and harvest.gradient is not None:
        raise IngestError(
            f"gradients by rule {harvest.gradient!r} were asked for together with statistics, which look at values. "
            "Nothing was written. Take the statistics in a run of their own, without --gradient.",
            kind="gradient-observed",
        )
    facts = ModelFacts.of(loaded.adapter)
    for plan in plans:
        for site in plan.requires(facts, sites):
            facts.shape(site)


def _observers(
    job: HarvestJob, loaded: LoadedModel, plans: Sequence[ObserverPlan]
) -> list[Observer]:
    harvest = Harvest(
        url=job.url,
        recipe=job.recipe,
        dtype=job.dtype,
        sites=job.sites,
        model=ModelFacts.of(loaded.adapter),
    )
    return [plan.observer(harvest) for plan in plans]


def _load(config: HarvestConfig, *, elsewhere: bool) -> LoadedModel:
    """Load the model, on the CPU where workers elsewhere will load it again: this machine may lack their device."""
    gradient = Gradient.of_config(config)  # refused before a model is loaded
    if not (elsewhere and config.device.startswith("cuda")):
        check_device(config.device)
    compute, _ = resolve_dtype(config.dtype, config.store_dtype, device=config.device)
    loaded = load(
        config.model,
        dtype=compute,
        device="cpu" if elsewhere else config.device,
        attn_implementation=config.attn_implementation,
        revision=config.revision,
    )
    check_vocabulary(loaded)
    if gradient is not None:
        check_differentiable(loaded)
    return loaded


def spec_of(dtype: str, shape: Sequence[int]) -> str:
    """Return how a column is declared, ``bfloat16[4,8]``; ``float32`` for one number a row."""
    return f"{dtype}[{','.join(map(str, shape))}]" if shape else dtype


def _job(
    store: Store, config: HarvestConfig, loaded: LoadedModel, sites: Sequence[str]
) -> HarvestJob:
    _, usual = resolve_dtype(config.dtype, config.store_dtype, device=config.device)
    stored = stored_dtype(config, usual)
    derived = Derived(loaded.adapter)
    known = {**loaded.adapter.sites(), **derived.sites()}
    dtypes = {site: known[site].dtype or stored for site in sites}
    columns = {site: spec_of(dtypes[site], known[site].shape) for site in sites}
    recipe = harvest_recipe(
        loaded,
        store.groups["tokens"].recipe_hash,
        sites,
        dtypes,
        config.batch,
        Gradient.of_config(config),
    )
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
        allow_nonfinite=config.allow_nonfinite or derived.gaps(sites),
    )
    store.writer(
        job.group, columns=job.columns, recipe=job.recipe, codec=job.codec
    )  # refuses a taken name
    return job


def _harvest(
    job: HarvestJob,
    loaded: LoadedModel,
    runtime: Runtime,
    observers: Sequence[Observer],
    progress: Progress,
) -> Summary:
    make = MakeHarvester(job=job, observers=tuple(observers), loaded=loaded)
    done = _run(job.url, job.group, job.sites, make, runtime, progress, time.monotonic())
    parts = open_store(job.url).view.parts(job.group)
    unobserved = [part for part in parts if not all(one.done(part) for one in observers)]
    return replace(done, unobserved_parts=len(unobserved))


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
    new = 0
    results = runtime.map(make, [part for part in parts if part not in held])
    try:
        for part, record in results:
            new += int(record["rows"])
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
    )
