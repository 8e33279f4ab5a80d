"""What an ingest is asked for: the model loaded, sites resolved, and whatever cannot be done refused before a store exists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.config import HarvestConfig, TokensConfig
from ingest.contract import ObserverPlan, PairSource, PictureSource
from ingest.errors import IngestError, OverBudgetError, SiteError
from ingest.generating import Generating, check_room
from ingest.generation import Generation
from ingest.gradients import Gradient, check_answers, check_differentiable, stored_dtype
from ingest.models import LoadedModel, check_device, load, resolve_dtype, resolve_sites
from ingest.models.backward import check_gradients, check_head
from ingest.models.derived import PREDICTED, PROBE, Derived, is_derived
from ingest.models.facts import ModelFacts
from ingest.models.lanes import check_lanes
from ingest.models.matrices import resolve
from ingest.picturing import Picturing, check_shown, resolve_rows
from ingest.showing import check_inputs, sees_of
from ingest.tasks import ROLES, Pairing, check_group, has_answers
from ingest.tokens import Tokenizing, check_same_tokenizer, check_vocabulary, resolve_context
from store import Store
from store import open as open_store
from store.layout import CHUNK_ROWS
from store.schema import Column
from store.tables import column
from store.values import check_columns
from store.windows import free_memory_bytes

Rows = Pairing | Tokenizing | Picturing | Generating
"""What makes rows of a source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What an ingest was asked for, checked."""

    loaded: LoadedModel
    sites: list[str]
    rows: Rows
    context: int
    part_rows: int

    @property
    def stride_rows(self) -> int:
        """Ids a part may use."""
        return max(65_536, self.part_rows)


def asked(
    tokens: TokensConfig,
    harvest: HarvestConfig,
    observers: Sequence[ObserverPlan],
    *,
    elsewhere: bool = False,
) -> Asked:
    """Load the model and refuse, before a store exists, whatever cannot be done."""
    check_group(harvest.group)
    loaded = _load(harvest, sees(tokens.source), elsewhere=elsewhere)
    shows = tokens.source.shows if isinstance(tokens.source, PictureSource) else None
    check_shown(loaded, shows)
    sites = _sites(harvest, loaded)
    _check_observable(loaded, sites, observers, harvest)
    context = resolve_context(tokens, loaded) if shows is None else resolve_rows(tokens, loaded)
    rows = _rows(tokens, loaded, context)
    check_answers(harvest, there=isinstance(rows, Pairing))
    _check_memory(harvest, context, loaded, sites)
    _check_columns(harvest, loaded, sites)
    _check_lanes(harvest, loaded, sites, sees(tokens.source))
    _check_patterns(loaded, sites, context)
    rows.check()
    together = context * (len(ROLES) if isinstance(rows, Pairing) else 1)
    part_rows = max(tokens.part_rows, -(-together // CHUNK_ROWS) * CHUNK_ROWS)
    return Asked(loaded=loaded, sites=sites, rows=rows, context=context, part_rows=part_rows)


def asked_into(
    url: str | Path,
    harvest: HarvestConfig,
    observers: Sequence[ObserverPlan],
    *,
    elsewhere: bool,
) -> tuple[Store, LoadedModel, list[str], int]:
    """Return store, model, sites and context of a group to be added, checked."""
    store = open_store(url)
    store.view.group("tokens")
    check_group(harvest.group)
    loaded = _load(harvest, sees_of(store), elsewhere=elsewhere)
    check_inputs(store, loaded)
    check_same_tokenizer(store, loaded)
    sites = _sites(harvest, loaded)
    context = int(store.groups["tokens"].recipe.get("context", 0)) or _longest(store)
    limit = None if sees_of(store) == "images" else loaded.adapter.max_positions
    if limit is not None and context > limit:
        raise IngestError(
            f"the sequences of {store.url} have up to {context} tokens; {loaded.name} has {limit} "
            "positions. Nothing was written. Use a model with more positions.",
            kind="context-too-long",
        )
    _check_memory(harvest, context, loaded, sites)
    _check_columns(harvest, loaded, sites)
    _check_lanes(harvest, loaded, sites, sees_of(store))
    _check_patterns(loaded, sites, context)
    _check_observable(loaded, sites, observers, harvest)
    check_answers(harvest, there=has_answers(store))
    return store, loaded, sites, context


def _longest(store: Store) -> int:
    """Return the rows of the longest sequence there is."""
    lengths = [
        int(column(store.view.table(commit, "sequences.parquet"), "rows").max())
        for commit in store.view.commits("tokens", store.view.parts("tokens"))
    ]
    return max(lengths, default=1)


def check_memory(
    batch: int, context: int, loaded: LoadedModel, *, logits: int = 0, lanes: bool = False
) -> None:
    """Raise ``over-budget`` where one batch cannot fit the memory that is free.

    Counts ids and mask, and four float32 copies of the residual stream: less than any model needs; and, where a
    gradient begins at them, three of the ``logits`` of a token; of lanes also what says which tokens see which.
    """
    need = batch * context * (16 + 4 * 4 * loaded.adapter.width + 3 * 4 * logits)
    need += batch * context * context if lanes else 0
    free = free_memory_bytes()
    if need > free:
        raise OverBudgetError(
            f"a batch of {batch} sequences of {context} tokens needs at least {need / 1e9:,.1f} GB for "
            f"{loaded.name}; {free / 1e9:,.1f} GB are free. Nothing was written. Use a smaller --batch."
        )


def _sites(harvest: HarvestConfig, loaded: LoadedModel) -> list[str]:
    """Return the sites and derived columns a harvest names; those whose gradients are asked for must have some."""
    if harvest.gradient is not None:
        if derived := [pattern for pattern in harvest.sites if is_derived(pattern)]:
            raise SiteError(
                f"gradients at {', '.join(derived)} were asked for; derived columns are computed of sites and have none. Nothing "
                "was written. Name sites; what the gradient is of is --metric (nll is the loss).",
                kind="no-gradient",
                site=derived[0],
            )
        sites = resolve_sites(harvest.sites, loaded.adapter)
        check_gradients(loaded.adapter, sites)
        return sites
    derived = [pattern for pattern in harvest.sites if is_derived(pattern)]
    plain = [pattern for pattern in harvest.sites if pattern not in derived]
    columns = Derived(loaded.adapter).resolve(derived)
    if set(columns) & set(PREDICTED):
        check_head(loaded.model)
    return [*resolve_sites(plain, loaded.adapter), *columns]


def _check_patterns(loaded: LoadedModel, sites: Sequence[str], context: int) -> None:
    """Raise where whole attention patterns of long sequences were asked for."""
    patterns = Derived(loaded.adapter).patterns(sites)
    if patterns and context > PROBE:
        raise IngestError(
            f"{patterns[0]} keeps a query's weights on {PROBE} positions; sequences here have up to {context}. Nothing was "
            f"written. Use --context {PROBE} or less, or columns of one number a head (stat.{{lse,entropy,top}}.blocks.L.attn).",
            kind="context-too-long",
        )


def _check_lanes(
    harvest: HarvestConfig, loaded: LoadedModel, sites: Sequence[str], shown: str | None
) -> None:
    """Raise where sequences that share a lane could not be told apart by what is asked for."""
    if not harvest.lanes:
        return
    if loaded.adapter.vision is not None and shown != "texts":
        raise IngestError(
            f"--lanes was said of rows that {loaded.name} makes of images, which fill their lanes. Nothing was written. Leave "
            "it out.",
            kind="lanes-unsupported",
        )
    check_lanes(loaded.adapter, loaded.attn_implementation)
    attended = Derived(loaded.adapter).attended(sites)
    if harvest.gradient is None and not attended:
        return
    found = (
        f"gradients by rule {harvest.gradient!r}, which are of one example a lane"
        if harvest.gradient is not None
        else f"{attended[0]}, which is computed over a whole lane"
    )
    raise IngestError(
        f"--lanes was said together with {found}. Nothing was written. Leave --lanes out, or write them in a group of their own.",
        kind="lanes-unsupported",
    )


def sees(source: object) -> str | None:
    """Return what a source shows a model alone, ``texts`` or ``images``; None for images with texts."""
    if not isinstance(source, PictureSource):
        return "texts"
    return "images" if source.shows == "images" else None


def _rows(tokens: TokensConfig, loaded: LoadedModel, context: int) -> Rows:
    """Return what cuts a source into rows."""
    if tokens.generation is not None and not isinstance(tokens.source, PairSource | PictureSource):
        return _going_on(tokens, tokens.generation, loaded, context)
    if isinstance(tokens.source, PictureSource):
        return Picturing(config=tokens, loaded=loaded, context=context)
    if isinstance(tokens.source, PairSource):
        return Pairing(config=tokens, tokenizer=loaded.tokenizer, context=context)
    return Tokenizing(
        config=tokens, source=tokens.source, tokenizer=loaded.tokenizer, context=context
    )


def _going_on(
    tokens: TokensConfig, generation: Generation, loaded: LoadedModel, context: int
) -> Generating:
    """Return what makes prompts of a source, with room for what follows them."""
    check_room(tokens, generation, context)
    prompts = Tokenizing(
        config=tokens,
        source=tokens.source,
        tokenizer=loaded.tokenizer,
        context=context - generation.tokens,
        open_ended=True,
    )
    return Generating(prompts=prompts, loaded=loaded, generation=generation)


def _check_columns(harvest: HarvestConfig, loaded: LoadedModel, sites: Sequence[str]) -> None:
    """Raise, before anything is written, where the columns could not be kept together or coded as asked."""
    declared = specs(harvest, loaded, sites)
    columns = {
        name: Column.parse(name, spec, codec=harvest.codec) for name, spec in declared.items()
    }
    check_columns(harvest.group, columns, masked=harvest.sample is not None)
    adapter: Any = loaded.adapter
    resolve(harvest.weights, adapter)


def _check_memory(
    config: HarvestConfig, context: int, loaded: LoadedModel, sites: Sequence[str]
) -> None:
    settings: Any = loaded.model.config
    vocabulary = int(getattr(getattr(settings, "text_config", settings), "vocab_size", 0))
    asked = config.gradient is not None or bool(set(PREDICTED) & set(sites))
    logits = vocabulary if asked else 0
    check_memory(config.batch, context, loaded, logits=logits, lanes=config.lanes)


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
    stored = [site for site in sites if site in facts.shapes]  # derived columns are no sites
    for plan in plans:
        for site in plan.requires(facts, stored):
            facts.shape(site)


def _check_unseeing(loaded: LoadedModel, shown: str | None) -> None:
    """Raise where gradients were asked for of a model that is shown images."""
    if loaded.adapter.vision is not None and shown != "texts":
        raise IngestError(
            f"gradients were asked for of {loaded.name}, which is shown images; they are taken of texts alone. Nothing was "
            "written. Leave out --gradient, or give it texts.",
            kind="gradient-images",
        )


def _load(config: HarvestConfig, shown: str | None, *, elsewhere: bool) -> LoadedModel:
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
        sees=shown,
    )
    check_vocabulary(loaded)
    if gradient is not None:
        check_differentiable(loaded)
        _check_unseeing(loaded, shown)
    return loaded


def specs(config: HarvestConfig, loaded: LoadedModel, sites: Sequence[str]) -> dict[str, str]:
    """Return how the columns of some sites are declared."""
    _, usual = resolve_dtype(config.dtype, config.store_dtype, device=config.device)
    stored = stored_dtype(config, usual)
    known = {**loaded.adapter.sites(), **Derived(loaded.adapter).sites()}
    return {site: spec_of(known[site].dtype or stored, known[site].shape) for site in sites}


def spec_of(dtype: str, shape: Sequence[int]) -> str:
    """Return how a column is declared, ``bfloat16[4,8]``; ``float32`` for one number a row."""
    return f"{dtype}[{','.join(map(str, shape))}]" if shape else dtype
