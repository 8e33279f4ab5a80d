"""Writes a dictionary's codes of a whole column as a group over the same rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ingest.contract import Runtime
from jobs.blocks import blocks
from jobs.codebook import Codebook
from jobs.errors import JobError
from jobs.feed import dense_column
from jobs.runtimes.in_process import InProcess
from store import Codes, Store
from store import open as open_store


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """What an encoding wrote."""

    group: str
    dictionary: str
    rows: int
    codes: int

    def to_json(self) -> dict[str, Any]:
        """Return the summary for programs."""
        return {name: getattr(self, name) for name in self.__slots__}


def encode(
    store: Store,
    site: str,
    book: Codebook,
    group: str,
    *,
    runtime: Runtime | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Encoded:
    """Encode every row of a dense column; parts that are committed are passed over.

    The frozen dictionary is copied into the store's assets first, so that the codes can always be decoded.

    Parameters
    ----------
    runtime
        Where parts are worked on; None: here.
    progress
        Called with (rows done, rows to do).

    Raises
    ------
    JobError
        ``width-mismatch``: the dictionary is of another width. ``column-kind``: the column is not dense.
    ConflictError
        A group of that name was made by another dictionary or site.
    """
    holder, spec = dense_column(store, site)
    width = math.prod(spec.shape)
    if width != book.width:
        raise JobError(
            f"the dictionary reads rows of width {book.width} (site {book.meta.get('site', 'not stated')}); "
            f"column {site!r} of {store.url} holds width {width}. Nothing was written. Choose the site the "
            "dictionary was trained on.",
            kind="width-mismatch",
        )
    asset = store.put_asset(book.to_bytes())
    recipe = {
        "schema": 1,
        "source": holder.recipe_hash,
        "group": holder.name,
        "column": spec.name,
        "dictionary": asset,
        "mask": holder.recipe.get("mask"),
    }
    writing: dict[str, Any] = {
        "columns": {"codes": "codes"},
        "recipe": recipe,
        "masked": holder.masked,
    }
    writer = store.writer(group, **writing)
    parts = [part for part in store.view.parts(holder.name) if not writer.done(part)]
    total = sum(store.view.commit(holder.name, part).rows for part in parts)
    rows = codes = 0
    make = partial(EncodeWorker, store.url, site, book, group, writing)
    for _, (part_rows, part_codes) in (runtime or InProcess()).map(make, parts):
        rows += part_rows
        codes += part_codes
        if progress is not None:
            progress(rows, total)
    store.seal(group)
    return Encoded(group=group, dictionary=asset, rows=rows, codes=codes)


class EncodeWorker:
    """Writes the codes of one part after the other."""

    def __init__(
        self, url: str, site: str, book: Codebook, group: str, writing: Mapping[str, Any]
    ) -> None:
        self._store = open_store(url)
        self._site, self._book = site, book
        self._group, self._writing = group, writing
        self._writer = self._store.writer(group, **writing)

    def run(self, part: int) -> tuple[int, int]:
        """Return the rows and codes of a part, written; doing it again is no error."""
        rows = codes = 0
        try:
            for block in blocks(self._store, self._site, parts=[part]):
                found = self._book.encode(block.x)
                row_ids = block.row_ids[found.row_index]
                values = Codes(row=row_ids, latent=found.latent, value=found.value)
                self._writer.put(block.row_ids, {"codes": values})
                rows += len(block.row_ids)
                codes += len(found)
        except BaseException:
            self._writer.abandon()
            raise
        if self._writing["masked"]:  # a sample's part is known to be whole when its writer ends
            self._writer.close()
            self._writer = self._store.writer(self._group, **self._writing)
        return rows, codes

    def close(self) -> None:
        """Seal the group where all of it is there."""
        self._writer.close()
