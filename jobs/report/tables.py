"""The result tables a report reads: their names, columns and types, checked once, here.

A report recomputes nothing. It takes a result for what its tables say, whatever verb wrote them:

- ``curve``: one row per logged training step;
- ``summary``: ``metric, value`` of an evaluation: ``fvu``, ``fvu_all_rows``, ``l0_mean``, ``l0_p5``, ``l0_p50``,
  ``l0_p95``, ``dead``, ``dense``, ``cosine``, ``shrinkage``, ``relative_bias``, ``rows``, ``excluded_share``,
  ``latents`` and any other;
- ``latents``: the share of rows each latent fires on; ``positions``: the relative error at each position;
- ``telling``: latents worth showing; ``contexts``: one row per passage, rank 0 the strongest;
  ``context_tokens``: the texts of each passage, which join in order of offset (from the top token), with the
  latent's activation there, 0 if silent;
- ``heads``: what each attention head looks at; ``attention_sinks``: how much it gives to the first positions;
- ``layers``: how far the greatest magnitude of each layer stands out;
- ``head_passages``: one row per pair of rows a head connects; ``head_tokens``: the texts around both;
- ``ablation``: the loss on repeated tokens with and without some heads, by seed; ``confirmation``: what that says of
  the head with the top score; ``copying``: how much each head raises what it attends to;
- ``attention``: what planners of sparse attention keep and miss, by sequence; ``structure``: how much of that is
  owed to what real tensors have and controls lack; ``timing``: what they take;
- ``codes``: forms of the products of sparse codes; ``crossover``: where sparse ones overtake dense ones.

Columns beyond those of ``SCHEMAS`` are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jobs.errors import JobError

if TYPE_CHECKING:
    from jobs.results import Result

SCHEMAS: dict[str, dict[str, str]] = {
    "curve": {
        "step": "i", "rows": "i", "fvu": "f", "l0": "f", "dead": "i", "threshold": "f",
        "rows_per_second": "f", "seconds": "f",
    },
    "summary": {"metric": "s", "value": "f"},
    "latents": {"latent": "i", "density": "f"},
    "positions": {"position": "i", "relative_error": "f", "rows": "i"},
    "contexts": {
        "latent": "i", "rank": "i", "value": "f", "row": "i", "doc_id": "i", "document": "s",
        "position": "i",
    },
    "context_tokens": {
        "latent": "i", "rank": "i", "offset": "i", "text": "s", "value": "f", "is_top": "b",
    },
    "telling": {"latent": "i", "score": "f", "density": "f", "max": "f", "documents": "i"},
    "heads": {
        "layer": "i", "head": "i", "prefix_matching": "f", "previous_token": "f",
        "duplicate_token": "f",
    },
    "attention_sinks": {"layer": "i", "head": "i", "position": "i", "alpha": "f", "sink_rate": "f"},
    "head_passages": {
        "layer": "i", "head": "i", "rank": "i", "weight": "f", "document": "s",
        "query_position": "i", "key_position": "i",
    },
    "head_tokens": {
        "layer": "i", "head": "i", "rank": "i", "offset": "i", "text": "s", "is_query": "b",
        "is_key": "b",
    },
    "ablation": {
        "seed": "i", "what": "s", "layer": "i", "head": "i", "heads": "i", "score": "f",
        "loss_second_before": "f", "loss_second_after": "f", "rise": "f",
    },
    "confirmation": {
        "seed": "i", "layer": "i", "head": "i", "score": "f", "rise": "f", "rise_low": "f",
        "rise_high": "f", "rank": "i", "weak_rise": "f", "strong": "i", "strong_rise": "f",
        "confirmed": "i",
    },
    "layers": {
        "layer": "i", "median": "f", "top1": "f", "top1_over_median": "f", "hits": "i",
    },
    "copying": {"layer": "i", "head": "i", "copying": "f"},
    "attention": {
        "layer": "i", "method": "s", "control": "s", "budget": "f", "Nq": "i", "rho_tile": "f",
        "rho_token": "f", "mass_recall": "f", "regret": "f", "out_rel_err": "f", "valid": "b",
    },
    "structure": {
        "layer": "i", "method": "s", "control": "s", "budget": "f", "metric": "s", "gain": "f",
        "low": "f", "high": "f",
    },
    "timing": {
        "layer": "i", "method": "s", "budget": "f", "claim": "s", "Nq": "i", "rho_tile": "f",
        "t_plan_us": "f", "t_exec_us": "f", "t_total_us": "f", "t_dense_best_us": "f",
        "noise_band": "f", "speedup_best": "f", "verdict": "s", "valid": "b",
    },
    "codes": {
        "op": "s", "method": "s", "control": "s", "latents": "i", "rows": "i", "pairs": "i",
        "t_total_us": "f", "speedup_best": "f", "speedup_fastest_dense": "f", "verdict": "s", "chosen": "b",
        "valid": "b",
    },
    "crossover": {
        "op": "s", "sparse": "s", "dense": "s", "latents": "i", "ratio": "f", "bound": "s",
    },
}  # fmt: skip
"""Columns each table must have, by kind: integer, float, string, bool."""

_DTYPES = {"i": np.int64, "f": np.float64, "b": np.bool_}

Table: TypeAlias = dict[str, Any]
Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


def read(result: Result, name: str) -> Table | None:
    """Return a table's columns: arrays of the schema's dtypes, text as lists; None if not there.

    Raises
    ------
    JobError
        ``bad-table`` where a column is missing, of another kind or of another length.
    """
    if name not in result.tables():
        return None
    found = result.table(name)
    table: Table = {}
    for column, kind in SCHEMAS[name].items():
        if column not in found:
            raise _bad(result, name, f"has no column {column!r}; it has {', '.join(found)}")
        table[column] = _column(result, name, column, found[column], kind)
    lengths = {column: len(values) for column, values in table.items()}
    if len(set(lengths.values())) > 1:
        raise _bad(result, name, f"has columns of different lengths: {lengths}")
    return table


def _column(result: Result, name: str, column: str, values: Any, kind: str) -> Any:
    if kind == "s":
        return [str(value) for value in values]
    array = np.asarray(values)
    allowed = {"i": "iu", "f": "fiu", "b": "b"}[kind]
    if array.ndim != 1 or (array.size and array.dtype.kind not in allowed):
        raise _bad(result, name, f"has column {column!r} of dtype {array.dtype}")
    return array.astype(_DTYPES[kind])


def _bad(result: Result, name: str, what: str) -> JobError:
    return JobError(
        f"table {name!r} of result {result.path} {what}. No report was written. "
        f"Run {result.card.verb} again with this version of actlake.",
        kind="bad-table",
    )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Tables of one evaluation, by what they say."""

    metrics: dict[str, float]
    densities: Floats | None
    positions: Table | None


def evaluation(result: Result) -> Evaluation | None:
    """Return the evaluation a result holds, if it holds one."""
    summary = read(result, "summary")
    if summary is None:
        return None
    latents = read(result, "latents")
    metrics = dict(zip(summary["metric"], summary["value"].tolist(), strict=True))
    densities = latents["density"] if latents else None
    return Evaluation(metrics, densities, read(result, "positions"))


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a passage."""

    text: str
    value: float
    is_top: bool


@dataclass(frozen=True, slots=True)
class Passage:
    """One context of a latent: the tokens around one on which it fires strongly."""

    rank: int
    value: float
    row: int
    document: str
    position: int
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Latent:
    """One latent and the passages it fires on, strongest first."""

    latent: int
    score: float
    density: float
    max: float
    documents: int
    passages: tuple[Passage, ...]


def telling_latents(result: Result, limit: int = 10) -> list[Latent]:
    """Return the most telling latents of a result, best score first, each with its passages."""
    telling, contexts = read(result, "telling"), read(result, "contexts")
    if telling is None or contexts is None:
        return []
    tokens = _tokens(read(result, "context_tokens"))
    passages: dict[int, list[Passage]] = {}
    for i in np.lexsort((contexts["rank"], contexts["latent"])).tolist():
        latent, rank = int(contexts["latent"][i]), int(contexts["rank"][i])
        passage = Passage(
            rank=rank,
            value=float(contexts["value"][i]),
            row=int(contexts["row"][i]),
            document=contexts["document"][i],
            position=int(contexts["position"][i]),
            tokens=tuple(tokens.get((latent, rank), ())),
        )
        passages.setdefault(latent, []).append(passage)
    order = np.argsort(-telling["score"], kind="stable")[:limit]
    return [
        Latent(
            latent=int(telling["latent"][i]),
            score=float(telling["score"][i]),
            density=float(telling["density"][i]),
            max=float(telling["max"][i]),
            documents=int(telling["documents"][i]),
            passages=tuple(passages.get(int(telling["latent"][i]), ())),
        )
        for i in order.tolist()
    ]


def _tokens(table: Table | None) -> dict[tuple[int, int], list[Token]]:
    found: dict[tuple[int, int], list[Token]] = {}
    if table is None:
        return found
    for i in np.lexsort((table["offset"], table["rank"], table["latent"])).tolist():
        key = int(table["latent"][i]), int(table["rank"][i])
        token = Token(table["text"][i], float(table["value"][i]), bool(table["is_top"][i]))
        found.setdefault(key, []).append(token)
    return found
