"""A small store of many parts with codes and scalars, for those who index it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from store.reader import Store
from store.testing.small import codes_of, fill, tokens_store

LENGTHS = (100, 150, 200, 56, 90, 120) * 4
LATENTS = 300


def rows_only(url: str) -> Store:
    """Make tokens and scalars."""
    made = tokens_store(url, LENGTHS, part_rows=256, part_stride=512)
    return fill(made, "labels", {"y": "int32", "pair": "float32[2]"})


def put_codes(opened: Store, parts: Iterable[int]) -> Store:
    """Write the codes of some parts; those that are there are passed over."""
    with opened.writer("codes", columns={"codes": "codes"}, recipe={"by": "test"}) as writer:
        for part in parts:
            if not writer.done(part):
                ids = part * opened.part_stride + np.arange(opened.view.commit("tokens", part).rows)
                writer.put(ids, {"codes": codes_of(ids, LATENTS)})
    return opened.refresh()


def made_store(url: str) -> Store:
    """Make all of it."""
    opened = rows_only(url)
    return put_codes(opened, opened.view.parts("tokens"))
