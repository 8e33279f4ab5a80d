"""Which latents say something, and the passages where they say it loudest.

Everything here is a query over the codes joined to the tokens. A latent is *telling* when the tokens it fires on
are far from the corpus at large yet not one single token: its score is the Kullback-Leibler divergence of its
tokens' distribution from the corpus', in bits, times the share of that distribution's effective number of
tokens that is more than one.

Source: own definition; the divergence is that of Kullback and Leibler (1951), the effective number is the
exponential of the entropy (Hill 1973, order 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.errors import JobError
from jobs.features.query import frame
from store import Store, tables
from store.tokens import FLAG_SPECIAL

if TYPE_CHECKING:
    import polars as pl

Array = np.ndarray[Any, np.dtype[Any]]
Columns = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextsConfig:
    """How many latents and passages, and which latents may be told of."""

    group: str = "codes"
    latents: int = 10
    passages: int = 8
    """Passages of a latent, at most one a document."""
    radius: int = 14
    """Tokens shown on each side."""
    min_rows: int = 40
    """Rows a latent must fire on."""
    min_documents: int = 12
    max_density: float = 0.02


def telling(store: Store, config: ContextsConfig) -> Columns:
    """Return the most telling latents: columns ``latent, score, density, max, documents``, best first.

    The corpus is the ordinary rows the codes cover. Equal scores go by latent; sums are made in one order, so
    equal codes give equal bits.

    Raises
    ------
    JobError
        ``no-latents``: none fires often and widely enough.
    """
    import polars as pl

    tokens = _ordinary(store, config.group)
    fired = (
        frame(store, config.group)
        .filter(pl.col("value") > 0)
        .join(tokens.select("row", "token_id", "doc_id"), on="row")
    )
    corpus = tokens.group_by("token_id").len("count").collect()
    rows = int(corpus["count"].sum())
    usable = (
        fired.group_by("latent")
        .agg(
            pl.len().cast(pl.Int64).alias("n"),
            pl.col("value").max().cast(pl.Float64).alias("max"),
            pl.col("doc_id").n_unique().cast(pl.Int64).alias("documents"),
        )
        .filter(
            (pl.col("n") >= config.min_rows)
            & (pl.col("documents") >= config.min_documents)
            & (pl.col("n") <= config.max_density * rows)
        )
        .sort("latent")
        .collect()
    )
    if not len(usable):
        raise JobError(
            f"no latent of group {config.group!r} fires on {config.min_rows} rows of "
            f"{config.min_documents} documents and on at most {config.max_density:.0%} of all. Nothing was "
            "written. Lower the limits, or encode more rows.",
            kind="no-latents",
        )
    mass = (
        fired.join(usable.lazy().select("latent"), on="latent")
        .group_by("latent", "token_id")
        .agg(pl.col("value").cast(pl.Float64).sum().alias("mass"))
        .join(corpus.lazy(), on="token_id")
        .sort("latent", "token_id")
        .collect()
    )
    score_L = telling_scores(
        mass["latent"].to_numpy(), mass["mass"].to_numpy(), mass["count"].to_numpy() / rows
    )
    best = np.argsort(-score_L, kind="stable")[: config.latents]
    return {
        "latent": usable["latent"].cast(pl.Int64).to_numpy()[best],
        "score": score_L[best],
        "density": usable["n"].to_numpy()[best] / rows,
        "max": usable["max"].to_numpy()[best],
        "documents": usable["documents"].to_numpy()[best],
    }


def _ordinary(store: Store, group: str) -> pl.LazyFrame:
    """Return the tokens that are not special, of the rows a group covers."""
    import polars as pl

    tokens = frame(store, "tokens").filter(pl.col("flags") & FLAG_SPECIAL == 0)
    if store.view.coverage(group).rows == store.view.coverage("tokens").rows:
        return tokens
    covered = pl.LazyFrame({"row": store.row_ids(group=group)})
    return tokens.join(covered, on="row", how="semi")


def telling_scores(latent_N: Array, mass_N: Array, corpus_N: Array) -> Array:
    """Return the score of each latent, ``float64[L]``, ascending by latent.

    Parameters
    ----------
    latent_N
        Latents, ascending; one entry for each token a latent fires on.
    mass_N
        Sum of the latent's values on that token, above 0.
    corpus_N
        Share of that token in the corpus.
    """
    starts = np.flatnonzero(np.diff(latent_N.astype(np.int64), prepend=-1))
    sizes = np.diff(starts, append=len(latent_N))
    p_N = mass_N / np.repeat(np.add.reduceat(mass_N, starts), sizes)
    bits_L = np.add.reduceat(p_N * np.log2(p_N / corpus_N), starts)
    effective_L = np.exp(-np.add.reduceat(p_N * np.log(p_N), starts))
    return np.asarray(bits_L * (1 - 1 / effective_L))


def top_passages(
    store: Store, config: ContextsConfig, latents: Sequence[int]
) -> dict[str, Columns]:
    """Return the strongest passages of some latents: tables ``contexts`` and ``context_tokens``.

    Strongest first, at most one a document. Reads the codes of those latents (through an index, where there is one) and the
    parts that hold the passages, whatever the size of the store.
    """
    data = store.strongest(config.group, latents)
    codes = {name: tables.column(data, name) for name in ("latent", "row", "value")}
    edges = np.flatnonzero(np.diff(codes["latent"].astype(np.int64), prepend=-1, append=-1))
    best = [_best(store, codes["row"][low:high], config.passages) for low, high in pairwise(edges)]
    at = np.concatenate(
        [np.empty(0, int), *(low + found for low, found in zip(edges[:-1], best, strict=True))]
    )
    near = _tokens_at(store, codes["row"][at])
    contexts: Columns = {
        "latent": codes["latent"][at].astype(np.int64),
        "rank": np.concatenate([np.empty(0, int), *(np.arange(len(found)) for found in best)]),
        "value": codes["value"][at].astype(np.float64),
        "row": codes["row"][at],
        "doc_id": near["doc_id"],
        "document": [
            _document_name(store, int(row), int(doc))
            for row, doc in zip(codes["row"][at], near["doc_id"], strict=True)
        ],
        "position": near["pos"].astype(np.int64),
    }
    return {"contexts": contexts, "context_tokens": _spell(store, config, contexts, codes)}


def _best(store: Store, row_N: Array, passages: int) -> Array:
    """Return which of some rows, strongest first, are ordinary and the first of their document; so many at most."""
    found, documents = np.empty(0, int), np.empty(0, np.int64)
    low, step = 0, 4 * passages
    while low < len(row_N) and len(found) < passages:
        near = _tokens_at(store, row_N[low : low + step])
        usual = np.flatnonzero(near["known"] & (near["flags"] & FLAG_SPECIAL == 0))
        new = usual[~np.isin(near["doc_id"][usual], documents)]
        _, first = np.unique(near["doc_id"][new], return_index=True)
        mine = new[np.sort(first)]
        documents = np.concatenate([documents, near["doc_id"][mine]])
        found = np.concatenate([found, low + mine])
        low, step = low + step, 2 * step
    return found[:passages]


def _tokens_at(store: Store, row_N: Array) -> Columns:
    """Return ``flags, doc_id, pos`` of some rows, and which are ``known``; only their parts are read."""
    near: Columns = {
        "known": np.zeros(len(row_N), bool),
        "flags": np.zeros(len(row_N), np.uint16),
        "doc_id": np.zeros(len(row_N), np.int64),
        "pos": np.zeros(len(row_N), np.int32),
    }
    part_N = row_N // store.part_stride
    for part in np.unique(part_N).tolist():
        data = store.view.table(store.view.commit("tokens", part), "tokens.parquet")
        mine = np.flatnonzero(part_N == part)
        held = tables.column(data, "row")
        at = np.minimum(np.searchsorted(held, row_N[mine]), len(held) - 1)
        near["known"][mine] = held[at] == row_N[mine]
        for name in ("flags", "doc_id", "pos"):
            near[name][mine] = tables.column(data, name)[at]
    return near


def _spell(store: Store, config: ContextsConfig, contexts: Columns, codes: Columns) -> Columns:
    """Return the tokens around each passage's top row with their text and the latent's value there."""
    spelled: Columns = {
        name: [] for name in ("latent", "rank", "offset", "text", "value", "is_top")
    }
    by_row = np.lexsort((codes["row"], codes["latent"]))
    latent_N, row_N, value_N = (codes[name][by_row] for name in ("latent", "row", "value"))
    for latent, rank, row in zip(
        contexts["latent"], contexts["rank"], contexts["row"], strict=True
    ):
        low, high = np.searchsorted(latent_N, [latent, latent + 1])
        first, last = low + np.searchsorted(
            row_N[low:high], [row - config.radius, row + config.radius + 1]
        )
        on = dict(zip(row_N[first:last].tolist(), value_N[first:last].tolist(), strict=True))
        for offset, text, at in passage(store, int(row), config.radius):
            spelled["latent"].append(int(latent))
            spelled["rank"].append(int(rank))
            spelled["offset"].append(offset)
            spelled["text"].append(text)
            spelled["value"].append(float(on.get(at, 0.0)))
            spelled["is_top"].append(offset == 0)
    return {
        name: column if name == "text" else np.array(column) for name, column in spelled.items()
    }


def passage(store: Store, row: int, radius: int) -> list[tuple[int, str, int]]:
    """Return (offset, text, row id) of the tokens around a row, within its sequence, special ones left out.

    Texts join to the passage as it stands in the document: each token has the characters since the one before,
    and of several tokens of one character the first has it. Where the store knows no text of a token, its id
    stands in.

    Raises
    ------
    JobError
        ``row-missing``: the store holds no such row.
    """
    part = row // store.part_stride
    held = store.view.parts("tokens")
    commit = store.view.commit("tokens", part) if part in held else None
    data = None if commit is None else store.view.table(commit, "tokens.parquet")
    ids = np.empty(0, np.int64) if data is None else tables.column(data, "row")
    at = int(np.searchsorted(ids, row))
    if data is None or at == len(ids) or ids[at] != row:
        raise JobError(
            f"row {row} is not in {store.url}. Nothing was read. `actlake inspect` shows coverage.",
            kind="row-missing",
        )
    low, high = max(at - radius, 0), min(at + radius + 1, len(ids))
    near = {name: tables.column(data.slice(low, high - low), name) for name in tables.TOKENS.names}
    seq_id, doc_id = (near[name][at - low] for name in ("seq_id", "doc_id"))
    mine = (near["seq_id"] == seq_id) & (near["doc_id"] == doc_id)
    mine &= near["flags"] & FLAG_SPECIAL == 0
    text, shift = _document_text(store, part, int(doc_id))
    found: list[tuple[int, str, int]] = []
    before: int | None = None
    for index in np.flatnonzero(mine):
        start, end = int(near["char_start"][index]), int(near["char_end"][index])
        spelled = f" {near['token_id'][index]}"
        if text is not None and end >= 0:
            start = start if before is None else before
            before = max(start, end)
            spelled = text[start - shift : before - shift]
        found.append((int(index) + low - at, spelled, int(near["row"][index])))
    return found


def _document_name(store: Store, row: int, doc_id: int) -> str:
    data = store.view.table(
        store.view.commit("tokens", row // store.part_stride), "documents.parquet"
    )
    at = np.flatnonzero(tables.column(data, "doc_id") == doc_id)
    return (data.column("name")[int(at[0])].as_py() or "") if len(at) else ""


def _document_text(store: Store, part: int, doc_id: int) -> tuple[str | None, int]:
    data = store.view.table(store.view.commit("tokens", part), "documents.parquet")
    at = np.flatnonzero(tables.column(data, "doc_id") == doc_id)
    if not len(at):
        return None, 0
    return data.column("text")[int(at[0])].as_py(), int(
        data.column("char_start")[int(at[0])].as_py()
    )
