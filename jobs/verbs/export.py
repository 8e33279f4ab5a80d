"""``export zarr``."""

from __future__ import annotations

from jobs import config as settings
from jobs.values import counted
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
    text = f"{found.path}: {', '.join(found.arrays)}, {counted(found.parts, 'part')}, {found.rows:,} rows"
    if found.left_out:
        text += "\nleft out: " + "; ".join(
            f"{name} ({why})" for name, why in found.left_out.items()
        )
    return Answer(found.to_json(), text)
