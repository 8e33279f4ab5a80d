"""``plan``: what an ingest would come to, after every check it would make."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs import config as settings
from jobs.config.prices import read_prices
from jobs.verbs.circuits import live_statistics
from jobs.verbs.contract import Answer, Context
from jobs.verbs.ingest import (
    check_places,
    harvest_config,
    refuse_without_model,
    token_source,
    tokens_config,
)

if TYPE_CHECKING:
    from ingest.estimate import Estimate

_SHOWN = 12  # columns named one by one


def plan(config: settings.Plan, context: Context) -> Answer:
    """Count what an ingest would write; nothing is written."""
    from ingest.estimate import Prices
    from ingest.planning import plan as plan_ingest
    from ingest.planning import plan_into, plan_vectors

    check_places(config)
    observers = live_statistics(config.stats or ())
    prices = None if config.prices is None else Prices(**read_prices(config.prices))
    source = None if config.into else token_source(config)
    if config.into is not None:
        found = plan_into(config.into, harvest_config(config), observers=observers, prices=prices)
    elif hasattr(source, "block"):
        refuse_without_model(config)
        found = plan_vectors(tokens_config(config, source), prices=prices)
    else:
        found = plan_ingest(
            tokens_config(config, source),
            harvest_config(config),
            url=config.out,
            observers=observers,
            prices=prices,
            progress=context.progress,
        )
    return Answer(found.to_json(), told(found, None if config.into else config.part_rows))


def told(found: Estimate, part_rows: int | None) -> str:
    """Return an estimate as text; advice where the rows of a part can still be chosen."""
    lines = [
        f"{found.rows:,} rows in {found.sequences:,} sequences and {found.parts:,} parts",
        f"{found.group_bytes / 1e6:,.1f} MB of columns"
        + (f", {found.tokens_bytes / 1e6:,.1f} MB of tokens" if found.tokens_bytes else ""),
    ]
    for name, size in list(found.columns.items())[:_SHOWN]:
        about = "about " if name in found.about else ""
        lines.append(f"  {name:<32} {about}{size / 1e6:,.1f} MB")
    if len(found.columns) > _SHOWN:
        lines.append(f"  … and {len(found.columns) - _SHOWN} more")
    if found.padded_tokens:
        lines.append(
            f"{found.padded_tokens:,} tokens of padded batches, {found.flops:.2e} operations; about "
            f"{_span(found.forward_seconds)} here, by a few batches that were run"
        )
    if found.money is not None:
        m = found.money
        c = m.currency
        pays = f"keeping for a month pays from read {m.reads_until_keeping_pays} on"
        if not m.compute:
            pays = "computing has no price (machine_hour)"
        elif m.reads_until_keeping_pays is None:
            pays = "keeping never pays: reading costs more than computing"
        lines.append(
            f"{c}{m.compute:,.4g} to compute once, {c}{m.write:,.4g} to write, {c}{m.month:,.4g} a month to keep, "
            f"{c}{m.read:,.4g} a read; {pays}"
        )
    return "\n".join([*lines, *(found.advice(part_rows) if part_rows else ())])


def _span(seconds: float) -> str:
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:,.1f} seconds"
