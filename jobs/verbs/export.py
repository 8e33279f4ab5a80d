"""``export zarr``."""

from __future__ import annotations

from jobs import config as settings
from jobs.verbs.contract import Answer, Context


def zarr(config: settings.ExportZarr, _context: Context) -> Answer:
    """Write a store's columns as Zarr arrays."""
    from jobs.export.zarr import export_zarr
    from store import open as open_store

    found = export_zarr(
        open_store(config.url, config.pin),
        config.out,
        groups=config.groups,
        mode=config.mode,
        dtype=config.dtype,
    )
    text = f"{found.path}: {', '.join(found.arrays)}, {found.parts} parts, {found.rows:,} rows"
    return Answer(found.to_json(), text)
