"""Passages for pairs of rows: what a head looks from, and what it looks at."""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs.features.contexts import passage
from store import Store
from store import tables as store_tables

GAP = " … "
RADIUS = 8  # tokens on each side of both ends


def pair_passages(store: Store, pairs: dict[str, Any], *, radius: int = RADIUS) -> dict[str, Any]:
    """Return the text around pairs of rows: tables ``head_passages`` and ``head_tokens``.

    Parameters
    ----------
    pairs
        Columns ``layer, head, rank, query_row, key_row, weight``, one entry a pair; both rows lie in one
        sequence.

    Returns
    -------
    dict
        ``head_passages``: ``layer, head, rank, weight, document, query_position, key_position``.
        ``head_tokens``: ``layer, head, rank, offset`` (in tokens from the query)``, text, is_query, is_key``.
        The texts of one pair, in order, are the passages around its two rows, a gap between them where they do
        not meet.

    Raises
    ------
    JobError
        ``row-missing``: the store holds no such row.
    """
    passages: dict[str, list[Any]] = {
        name: []
        for name in (
            *("layer", "head", "rank", "weight", "document"),
            *("query_position", "key_position"),
        )
    }
    tokens: dict[str, list[Any]] = {
        name: [] for name in ("layer", "head", "rank", "offset", "text", "is_query", "is_key")
    }
    names = ("layer", "head", "rank", "query_row", "key_row", "weight")
    for layer, head, rank, query, key, weight in zip(
        *(np.asarray(pairs[name]).tolist() for name in names), strict=True
    ):
        around = _spelled(store, query, key, radius)
        document, (at_query, at_key) = _where(store, query, key)
        values = (layer, head, rank, weight, document, at_query, at_key)
        for name, value in zip(passages, values, strict=True):
            passages[name].append(value)
        for offset, text, row in around:
            values = (layer, head, rank, offset, text, row == query, row == key)
            for name, value in zip(tokens, values, strict=True):
                tokens[name].append(value)
    return {"head_passages": _columns(passages), "head_tokens": _columns(tokens)}


def _spelled(store: Store, query: int, key: int, radius: int) -> list[tuple[int, str, int]]:
    """Return (offset from the query, text, row) around both rows, ascending, a gap where they do not meet."""
    found = {
        row: text for at in (key, query) for _, text, row in passage(store, at, radius)
    }  # where they overlap, both say the same save for a first token's leading space
    spelled: list[tuple[int, str, int]] = []
    before: int | None = None
    for row, text in sorted(found.items()):
        if before is not None and row > before + 1:
            spelled.append((before + 1 - query, GAP, -1))
        spelled.append((row - query, text, row))
        before = row
    return spelled


def _where(store: Store, query: int, key: int) -> tuple[str, tuple[int, int]]:
    """Return the name of the document both rows lie in, and their positions in the sequence."""
    part = query // store.part_stride
    commit = store.view.commit("tokens", part)
    data = store.view.table(commit, "tokens.parquet")
    positions = store_tables.column(data, "pos")
    at = np.searchsorted(store_tables.column(data, "row"), [query, key])
    doc_id = int(store_tables.column(data, "doc_id")[at[0]])
    documents = store.view.table(commit, "documents.parquet")
    named = np.flatnonzero(store_tables.column(documents, "doc_id") == doc_id)
    name = documents.column("name")[int(named[0])].as_py() if len(named) else ""
    return str(name), (int(positions[at[0]]), int(positions[at[1]]))


def _columns(lists: dict[str, list[Any]]) -> dict[str, Any]:
    return {
        name: values if name in {"document", "text"} else np.asarray(values)
        for name, values in lists.items()
    }
