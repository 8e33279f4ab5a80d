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

    Raises
    ------
    JobError
        ``no-latents``: none fires often and widely enough.
    """
    import polars as pl

    codes = frame(store, config.group)
    tokens = frame(store, "tokens").filter(pl.col("flags") & FLAG_SPECIAL == 0)
    rows = tokens.select(pl.len()).collect().item()
    corpus = tokens.group_by("token_id").agg((pl.len() / rows).alias("q"))
    fired = codes.join(tokens.select("row", "token_id", "doc_id"), on="row")
    per_latent = fired.group_by("latent").agg(
        pl.len().alias("n"),
        pl.col("value").max().alias("max"),
        pl.col("doc_id").n_unique().alias("documents"),
    )
    usable = per_latent.filter(
        (pl.col("n") >= config.min_rows)
        & (pl.col("documents") >= config.min_documents)
        & (pl.col("n") <= config.max_density * rows)
    )
    mass = fired.group_by("latent", "token_id").agg(pl.col("value").sum().alias("mass"))
    share = mass.join(usable, on="latent").join(corpus, on="token_id")
    p = pl.col("mass") / pl.col("mass").sum().over("latent")
    found = (
        share.with_columns(p.alias("p"))
        .group_by("latent")
        .agg(
            (pl.col("p") * (pl.col("p") / pl.col("q")).log(2)).sum().alias("bits"),
            (-(pl.col("p") * pl.col("p").log())).sum().exp().alias("effective"),
            pl.col("n", "max", "documents").first(),
        )
        .with_columns(
            (pl.col("bits") * (1 - 1 / pl.col("effective"))).alias("score"),
            (pl.col("n") / rows).alias("density"),
        )
        .sort(["score", "latent"], descending=[True, False])
        .head(config.latents)
        .select(
            pl.col("latent").cast(pl.Int64),
            "score",
            "density",
            pl.col("max").cast(pl.Float64),
            pl.col("documents").cast(pl.Int64),
        )
        .collect()
    )
    if not len(found):
        raise JobError(
            f"no latent of group {config.group!r} fires on {config.min_rows} rows of "
            f"{config.min_documents} documents and on at most {config.max_density:.0%} of all. Nothing was "
            "written. Lower the limits, or encode more rows.",
            kind="no-latents",
        )
    return _columns(found)


def top_passages(
    store: Store, config: ContextsConfig, latents: Sequence[int]
) -> dict[str, Columns]:
    """Return the strongest passages of some latents: tables ``contexts`` and ``context_tokens``.

    Found in the latent-sorted copy of the codes, strongest first, at most one a document.
    """
    import polars as pl

    by_latent = frame(store, f"{config.group}_by_latent")
    tokens = frame(store, "tokens")
    ordinary = tokens.filter(pl.col("flags") & FLAG_SPECIAL == 0)
    found = (
        by_latent.filter(pl.col("latent").is_in(list(latents)))
        .join(ordinary.select("row", "seq_id", "doc_id", "pos"), on="row")
        .sort(["latent", "value", "row"], descending=[False, True, False])
        .unique(["latent", "doc_id"], keep="first", maintain_order=True)
        .group_by("latent", maintain_order=True)
        .head(config.passages)
        .collect()
    )
    names = dict(frame(store, "documents").select("doc_id", "name").unique().collect().iter_rows())
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
        .filter(pl.col("latent").is_in(np.unique(contexts["latent"]).tolist()))
        .filter(pl.col("row").is_in(wanted.tolist()))
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

    Texts join to the passage as it stands in the document: each token has the characters since the one before.
    Where the store keeps no text, token ids stand in for it.
    """
    part = row // store.part_stride
    commit = store.view.commit("tokens", part)
    data = store.view.table(commit, "tokens.parquet")
    base = part * store.part_stride
    low, high = max(row - radius - base, 0), min(row + radius + 1 - base, commit.rows)
    near = {name: tables.column(data, name)[low:high] for name in tables.TOKENS.names}
    at = row - base - low
    mine = (near["seq_id"] == near["seq_id"][at]) & (near["doc_id"] == near["doc_id"][at])
    mine &= near["flags"] & FLAG_SPECIAL == 0
    text, shift = _document_text(store, part, int(near["doc_id"][at]))
    found: list[tuple[int, str, int]] = []
    before: int | None = None
    for index in np.flatnonzero(mine):
        start, end = int(near["char_start"][index]), int(near["char_end"][index])
        start = start if before is None else min(before, start)
        spelled = (
            f" {near['token_id'][index]}" if text is None else text[start - shift : end - shift]
        )
        found.append((int(index - at), spelled, int(near["row"][index])))
        before = end
    return found


def _document_text(store: Store, part: int, doc_id: int) -> tuple[str | None, int]:
    data = store.view.table(store.view.commit("tokens", part), "documents.parquet")
    at = np.flatnonzero(tables.column(data, "doc_id") == doc_id)
    if not len(at):
        return None, 0
    return data.column("text")[int(at[0])].as_py(), int(
        data.column("char_start")[int(at[0])].as_py()
    )


def _columns(data: pl.DataFrame) -> Columns:
    return {name: data[name].to_numpy() for name in data.columns}
