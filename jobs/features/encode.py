"""Writes a dictionary's codes of a whole column as a group over the same rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.codebook import Codebook
from jobs.errors import JobError
from jobs.feed import blocks, dense_column
from store import Codes, Store


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
    progress: Callable[[int, int], None] | None = None,
) -> Encoded:
    """Encode every row of a dense column; parts that are committed are passed over.

    The frozen dictionary is copied into the store's assets first, so that the codes can always be decoded.

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
    writer = store.writer(group, columns={"codes": "codes"}, recipe=recipe, masked=holder.masked)
    parts = [part for part in store.view.parts(holder.name) if not writer.done(part)]
    total = sum(store.view.commit(holder.name, part).rows for part in parts)
    rows = codes = 0
    with writer:
        for block in blocks(store, site, parts=parts):
            found = book.encode(block.x)
            row_ids = block.row_ids[found.row_index]
            writer.put(
                block.row_ids,
                {"codes": Codes(row=row_ids, latent=found.latent, value=found.value)},
            )
            rows += len(block.row_ids)
            codes += len(found)
            if progress is not None:
                progress(rows, total)
    return Encoded(group=group, dictionary=asset, rows=rows, codes=codes)
