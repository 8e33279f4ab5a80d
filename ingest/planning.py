"""Plans an ingest: everything it would check is checked, everything it would write is counted, nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ingest.asked import asked, asked_into, specs
from ingest.config import HarvestConfig, TokensConfig
from ingest.estimate import Cut, Estimate, Forward, Prices, column_bytes, cut, forward, money
from ingest.models import LoadedModel
from ingest.tasks import Pairing
from ingest.tokens import VECTOR_CONTEXT, Progress, Tokenizing, vector_rows
from store import TokenSequence
from store.tables import column


def _silent(phase: str, done: int, total: int | None) -> None:
    del phase, done, total


def plan(
    tokens: TokensConfig,
    harvest: HarvestConfig,
    *,
    prices: Prices | None = None,
    progress: Progress = _silent,
) -> Estimate:
    """Return what `ingest` would come to, after every check it would make; nothing is written.

    Raises
    ------
    ModelError, SiteError, SourceError, IngestError
        What `ingest` would raise.
    """
    wish = asked(tokens, harvest, ())
    groups = _counted(wish.rows, tokens.rows, progress)
    found = cut(groups, wish.part_rows, wish.stride_rows)
    return _estimate(found, wish.loaded, wish.sites, harvest, wish.stride_rows, prices)


def plan_into(url: str | Path, harvest: HarvestConfig, *, prices: Prices | None = None) -> Estimate:
    """Return what `ingest_into` would come to; nothing is written."""
    store, loaded, sites, _ = asked_into(url, harvest, (), elsewhere=False)
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
    return _estimate(found, loaded, sites, harvest, store.part_stride, prices)


def _counted(
    rows: Pairing | Tokenizing, limit: int | None, progress: Progress
) -> Iterator[Sequence[TokenSequence]]:
    """Yield the sequences that stay in one part together, and say how many rows went by."""
    done = 0
    for found, _ in rows.sequences(None):
        group = found if isinstance(found, list) else [found]
        done += sum(len(one) for one in group)
        progress("plan", done, limit)
        yield group


def _estimate(
    found: Cut,
    loaded: LoadedModel,
    sites: Sequence[str],
    harvest: HarvestConfig,
    stride_rows: int,
    prices: Prices | None,
) -> Estimate:
    declared = specs(harvest, loaded, sites)
    columns = {
        site: column_bytes(spec, harvest.codec, found.parts, stride_rows)
        for site, spec in declared.items()
    }
    run = forward(loaded, sites, found.lengths, harvest.batch)
    size = sum(size or 0 for size in columns.values())
    return Estimate(
        rows=found.rows,
        sequences=found.sequences,
        parts=len(found.parts),
        columns=columns,
        tokens_bytes=found.tokens_bytes,
        padded_tokens=run.padded_tokens,
        flops=run.flops,
        forward_seconds=run.seconds,
        money=None if prices is None else money(prices, run, len(found.parts), len(columns), size),
    )


def plan_vectors(tokens: TokensConfig, codec: str, *, prices: Prices | None = None) -> Estimate:
    """Return what `ingest_vectors` would come to; there is no model to run.

    Raises
    ------
    IngestError
        ``rows-missing``: the source has no end of its own, and none was given.
    """
    rows = vector_rows(tokens)
    stride = max(65_536, tokens.part_rows)
    whole = tokens.context or VECTOR_CONTEXT
    per_part = tokens.part_rows // whole * whole
    parts = [min(per_part, rows - low) for low in range(0, rows, per_part)]
    columns = {
        name: column_bytes(spec, codec, parts, stride)
        for name, spec in tokens.source.columns.items()
    }
    run = Forward(padded_tokens=0, flops=0.0, seconds=0.0)
    size = sum(size or 0 for size in columns.values())
    return Estimate(
        rows=rows,
        sequences=-(-rows // whole),
        parts=len(parts),
        columns=columns,
        tokens_bytes=0,
        padded_tokens=0,
        flops=0.0,
        forward_seconds=0.0,
        money=None if prices is None else money(prices, run, len(parts), len(columns), size),
    )
