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

    Found in the latent-sorted copy of the codes, strongest first, at most one a document.
    """
    import polars as pl

    by_latent = frame(store, f"{config.group}_by_latent")
    wanted = pl.Series("latent", list(latents), dtype=pl.UInt32)
    found = (
        by_latent.filter(pl.col("latent").is_in(wanted.implode()))
        .join(_ordinary(store, config.group).select("row", "seq_id", "doc_id", "pos"), on="row")
        .sort(["latent", "value", "row"], descending=[False, True, False])
        .unique(["latent", "doc_id"], keep="first", maintain_order=True)
        .group_by("latent", maintain_order=True)
        .head(config.passages)
        .collect()
    )
    named = frame(store, "documents").filter(pl.col("doc_id").is_in(found["doc_id"].implode()))
    names = dict(named.select("doc_id", "name").collect().iter_rows())
    rank = found.select(pl.int_range(pl.len()).over("latent")).to_series().to_numpy()
    contexts: Columns = {
        "latent": found["latent"].cast(pl.Int64).to_numpy(),
        "rank": rank,
        "value": found["value"].cast(pl.Float64).to_numpy(),
        "row": found["row"].to_numpy(),
        "doc_id": found["doc_id"].to_numpy(),
        "document": [names.get(doc, "") for doc in found["doc_id"].to_list()],
        "position": found["pos"].cast(pl.Int64).to_numpy(),
    }
    return {"contexts": contexts, "context_tokens": _spell(store, config, contexts)}


def _spell(store: Store, config: ContextsConfig, contexts: Columns) -> Columns:
    """Return the tokens around each passage's top row with their text and the latent's value there."""
    import polars as pl

    spelled: Columns = {
        name: [] for name in ("latent", "rank", "offset", "text", "value", "is_top")
    }
    wanted = np.unique(
        (contexts["row"][:, None] + np.arange(-config.radius, config.radius + 1)).reshape(-1)
    )
    active = (
        frame(store, config.group)
        .filter(pl.col("row").is_in(pl.Series(wanted, dtype=pl.Int64).implode()))
        .filter(
            pl.col("latent").is_in(
                pl.Series(contexts["latent"], dtype=pl.UInt32).unique().implode()
            )
        )
        .collect()
    )
    values = {(row, latent): value for row, latent, value in active.iter_rows()}
    for latent, rank, row in zip(
        contexts["latent"], contexts["rank"], contexts["row"], strict=True
    ):
        for offset, text, at in passage(store, int(row), config.radius):
            spelled["latent"].append(int(latent))
            spelled["rank"].append(int(rank))
            spelled["offset"].append(offset)
            spelled["text"].append(text)
            spelled["value"].append(float(values.get((at, int(latent)), 0.0)))
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
    part, at = divmod(row, store.part_stride)
    held = store.view.parts("tokens")
    commit = store.view.commit("tokens", part) if part in held else None
    if commit is None or at >= commit.rows:
        raise JobError(
            f"row {row} is not in {store.url}. Nothing was read. `actlake inspect` shows coverage.",
            kind="row-missing",
        )
    data = store.view.table(commit, "tokens.parquet")
    low, high = max(at - radius, 0), min(at + radius + 1, commit.rows)
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


def _document_text(store: Store, part: int, doc_id: int) -> tuple[str | None, int]:
    data = store.view.table(store.view.commit("tokens", part), "documents.parquet")
    at = np.flatnonzero(tables.column(data, "doc_id") == doc_id)
    if not len(at):
        return None, 0
    return data.column("text")[int(at[0])].as_py(), int(
        data.column("char_start")[int(at[0])].as_py()
    )
