"""Plans an ingest: what it would check before it writes is checked, what it would write is counted, nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ingest.asked import Rows, asked, asked_into, specs
from ingest.config import HarvestConfig, TokensConfig
from ingest.contract import ObserverPlan
from ingest.estimate import (
    Cut,
    Estimate,
    Forward,
    Prices,
    Run,
    column_bytes,
    cut,
    forward,
    money,
    packed,
)
from ingest.generating import Generating
from ingest.gradients import Gradient
from ingest.models import LoadedModel
from ingest.models.contract import Given
from ingest.models.derived import Derived
from ingest.plan import Batching
from ingest.run import silent
from ingest.tasks import NAMES
from ingest.vectors import VECTOR_CONTEXT, vector_rows
from ingest.writing import Progress
from store import TokenSequence, create
from store.commits import exists
from store.layout import STORE_KEY
from store.tables import column
from store.urls import open_storage


def plan(
    tokens: TokensConfig,
    harvest: HarvestConfig,
    *,
    url: str | Path | None = None,
    observers: Sequence[ObserverPlan] = (),
    prices: Prices | None = None,
    progress: Progress = silent,
) -> Estimate:
    """Return what `ingest` would come to, after the checks it would make; nothing is written.

    Parameters
    ----------
    url
        Where the store would be; one of other part sizes there is refused.

    Raises
    ------
    ModelError, SiteError, SourceError, IngestError
        What `ingest` would raise.
    """
    wish = asked(tokens, harvest, observers)
    if url is not None and exists(open_storage(str(url)), STORE_KEY):
        create(url, part_rows=wish.part_rows, part_stride=wish.stride_rows)  # opens it, or refuses
    groups = _counted(wish.rows, tokens.rows, progress)
    found = cut(groups, wish.part_rows, wish.stride_rows)
    batching = Batching.of(harvest.batch, wish.context, lanes=harvest.lanes)
    return _estimate(found, wish.loaded, wish.sites, harvest, batching, wish.stride_rows, prices)


def plan_into(
    url: str | Path,
    harvest: HarvestConfig,
    *,
    observers: Sequence[ObserverPlan] = (),
    prices: Prices | None = None,
) -> Estimate:
    """Return what `ingest_into` would come to; nothing is written."""
    store, loaded, sites, context = asked_into(url, harvest, observers, elsewhere=False)
    lengths = []
    for commit in store.view.commits("tokens", store.view.parts("tokens")):
        rows = column(store.view.table(commit, "sequences.parquet"), "rows")
        lengths.append(tuple(int(count) for count in rows))
    parts = tuple(map(sum, lengths))
    found = Cut(
        rows=sum(parts),
        sequences=sum(map(len, lengths)),
        parts=parts,
        lengths=tuple(lengths),
        tokens_bytes=0,
    )
    batching = Batching.of(harvest.batch, context, lanes=harvest.lanes)
    return _estimate(found, loaded, sites, harvest, batching, store.part_stride, prices)


def _counted(
    rows: Rows, limit: int | None, progress: Progress
) -> Iterator[Sequence[TokenSequence]]:
    """Yield the sequences that stay in one part together, and say how many rows went by."""
    done = 0
    every: Iterator[Any] = (
        rows.planned()
        if isinstance(rows, Generating)
        else (found for found, _ in rows.sequences(None))
    )
    for found in every:
        group = found if isinstance(found, list) else [found]
        done += sum(len(one) for one in group)
        progress("plan", done, limit)
        yield group


def _estimate(
    found: Cut,
    loaded: LoadedModel,
    sites: Sequence[str],
    harvest: HarvestConfig,
    batching: Batching,
    stride_rows: int,
    prices: Prices | None,
) -> Estimate:
    declared = specs(harvest, loaded, sites)
    kept = found.parts
    if harvest.sample is not None:
        kept = tuple(
            int(harvest.sample.kept(np.arange(rows) + part * stride_rows).sum())
            for part, rows in enumerate(found.parts)
        )
    sizes = {
        site: column_bytes(spec, harvest.codec, kept, stride_rows)
        for site, spec in declared.items()
    }
    run = forward(
        loaded,
        _run_of(loaded, sites, harvest),
        found.lengths,
        batching,
        harvest.device,
        longest=_image_rows(loaded, found),
    )
    return _told(found, sizes, run, prices)


def _told(
    found: Cut, sizes: Mapping[str, tuple[int, bool]], run: Forward, prices: Prices | None
) -> Estimate:
    size = sum(one for one, _ in sizes.values())
    return Estimate(
        rows=found.rows,
        sequences=found.sequences,
        parts=len(found.parts),
        columns={name: one for name, (one, _) in sizes.items()},
        about=tuple(name for name, (_, exact) in sizes.items() if not exact),
        tokens_bytes=found.tokens_bytes,
        padded_tokens=run.padded_tokens,
        flops=run.flops,
        forward_seconds=run.seconds,
        money=None if prices is None else money(prices, run, len(found.parts), len(sizes), size),
    )


def _run_of(loaded: LoadedModel, sites: Sequence[str], harvest: HarvestConfig) -> Run:
    """Return what the ingest does with a batch: a forward, or all that a gradient's rule asks for."""
    gradient = Gradient.of_config(harvest)
    if gradient is None:
        derived = Derived(loaded.adapter)
        return lambda ids, mask: derived.capture(ids, mask, sites, given=_black(loaded, len(ids)))

    def run(ids: Tensor, mask: Tensor) -> object:
        asked = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        answers = dict.fromkeys(NAMES, asked) if gradient.metric.needs_answers else None
        partner = None if gradient.rule.point == "here" else ids
        return gradient.at(loaded.adapter, ids, mask, sites, len(ids), answers, partner)

    return run


def _image_rows(loaded: LoadedModel, found: Cut) -> int | None:
    """Return the rows of an image, where sequences are images."""
    vision = loaded.adapter.vision
    if vision is None or vision.rows == "tokens":
        return None
    return max((max(part) for part in found.lengths if part), default=None)


def _black(loaded: LoadedModel, count: int) -> Given | None:
    """Return black images for a model whose rows are those of images."""
    vision = loaded.adapter.vision
    if vision is None or vision.rows == "tokens":
        return None
    text = torch.zeros((count, vision.text_tokens), dtype=torch.long)
    pixels = torch.zeros((count, 3, vision.height, vision.width))
    return Given(pixels=pixels, text=text, text_mask=torch.ones_like(text))


def plan_vectors(tokens: TokensConfig, *, prices: Prices | None = None) -> Estimate:
    """Return what `ingest_vectors` would come to; there is no model to run.

    Raises
    ------
    IngestError
        ``rows-missing``: the source has no end of its own, and none was given.
    """
    rows = vector_rows(tokens)
    whole = tokens.context or VECTOR_CONTEXT
    counts = [min(whole, rows - low) for low in range(0, rows, whole)]
    stride = max(65_536, tokens.part_rows)
    lengths = packed([[count] for count in counts], tokens.part_rows)
    parts = tuple(map(sum, lengths))
    found = Cut(
        rows=rows,
        sequences=len(counts),
        parts=parts,
        lengths=tuple(map(tuple, lengths)),
        tokens_bytes=0,
    )
    sizes = {
        name: column_bytes(spec, "raw", parts, stride)
        for name, spec in tokens.source.columns.items()
    }
    return _told(found, sizes, Forward(padded_tokens=0, flops=0.0, seconds=0.0), prices)
