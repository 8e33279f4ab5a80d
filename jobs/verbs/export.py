"""``export`` and ``import``: a store's columns as Zarr arrays, dictionaries in other libraries' files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

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


def dictionary(kind: str, config: settings.ExportDictionary, _context: Context) -> Answer:
    """Write a dictionary in another library's format."""
    from jobs.codebook import Codebook
    from jobs.export.foreign import FOREIGN
    from jobs.export.target import target

    book = Codebook.load(config.dictionary)
    with target(Path(config.out)) as folder:
        names = FOREIGN.get(kind)().write(book, folder)
    value = {"path": config.out, "format": kind, "files": names, "sha": book.sha}
    return Answer(value, f"{config.out}: {', '.join(names)}, {book.latents:,} latents")


def foreign(kind: str, config: settings.ImportDictionary, _context: Context) -> Answer:
    """Read a dictionary in another library's format."""
    from jobs.export.foreign import FOREIGN
    from jobs.export.target import target

    book = FOREIGN.get(kind)().read(Path(config.folder))
    if config.site is not None:
        book = dataclasses.replace(book, meta={**book.meta, "site": config.site})
    with target(Path(config.out)) as folder:
        book.save(folder)
    value = {"path": config.out, "format": kind, "sha": book.sha, "latents": book.latents}
    return Answer(value, f"{config.out}: {book.latents:,} latents of width {book.width}")
