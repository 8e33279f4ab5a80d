"""``query`` and ``tables``."""

from __future__ import annotations

from jobs import config as settings
from jobs.verbs.contract import Answer, Context


def query(config: settings.Query, _context: Context) -> Answer:
    """Answer a SELECT."""
    from jobs.features import query, render_frame
    from store import open as open_store

    store = open_store(config.url)
    found = query(store.without_indexes() if config.without_indexes else store, config.sql)
    rows = found.to_dicts() if config.json else []
    return Answer(rows, render_frame(found, config.max_rows))


def tables(config: settings.Tables, _context: Context) -> Answer:
    """List what a SELECT may name."""
    from jobs.features import describe_tables
    from store import open as open_store

    found = describe_tables(open_store(config.url))
    lines = []
    for table in found:
        lines.append(f"{table['table']} ({table['rows']:,} rows)")
        lines += [f"    {name:<28} {kind}" for name, kind in table["columns"].items()]
    return Answer(found, "\n".join(lines))
