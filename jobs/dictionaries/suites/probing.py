"""Classes of rows told apart by few latents: a logistic probe on the one, two or five best.

One pool of rows serves all classes. Documents are shared out between choosing and fitting on one side and scoring on the
other, so that no probe is scored on neighbours of what it learnt from; where documents are what is told apart, sequences
are. Beside every figure stands the same probe on as many channels of the row itself: what a dictionary has to beat.

Dimensions: R rows, L latents, D width, K features of a probe, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csc_matrix, issparse
from scipy.special import expit

from jobs.blocks import Block, blocks
from jobs.codebook import Codebook
from jobs.dictionaries.suite import SUITES, Asked, Figures
from jobs.dictionaries.suites.truth import TRUTH, true_features
from jobs.errors import JobError
from store import Store, tables
from store.tokens import COLUMNS

Array = np.ndarray[Any, np.dtype[Any]]
KS = (1, 2, 5)
RIDGE = 1e-3
"""Penalty on the squared weights of standardised features, per row: keeps separable classes' weights finite."""
LEAST = 50
"""Rows a class must have, and lack, on either side."""


@SUITES.register("probing")
@dataclass(frozen=True, kw_only=True, slots=True)
class Probing:
    """Accuracy of sparse logistic probes, the mean over classes.

    ``probe_k1``, ``probe_k2``, ``probe_k5`` on the latents that differ most in mean; ``probe_channels_k1``, …: on channels of
    the row; ``probe_channels``: on all of them, where there are fewer than half as many as rows; ``probe_classes``. As many
    rows of a class as of the others, so chance is .5.

    Notes
    -----
    Source: sparse probing of SAEBench (2503.09532), of single rows instead of whole documents.
    """

    kind: ClassVar[str]
    label: str | None = None
    """``truth`` (a planted feature fires), or a column of the tokens: ``token_id``, ``doc_id``, …. None: ``truth`` where it
    is known, else ``token_id``."""
    classes: int = 20
    """So many of the commonest."""
    rows: int = 20_000
    """Rows of the pool."""

    def __post_init__(self) -> None:
        if self.classes < 1 or self.rows < 4 * LEAST:
            raise JobError(
                f"probing of {self.classes} classes on {self.rows} rows was asked for. Nothing was run. Ask for at least one "
                f"class and {4 * LEAST} rows.",
                kind="bad-number",
            )

    def described(self) -> dict[str, Any]:
        """Return the settings."""
        return {"label": self.label, "classes": self.classes, "rows": self.rows}

    def prepare(self, asked: Asked) -> Figures:
        """Return what computes the figures.

        Raises
        ------
        JobError
            ``one-column``: the dictionary reads several; ``unknown-label``; ``no-truth``; when it is computed,
            ``too-few-rows``: no class has enough.
        """
        store, label = asked.store, self.label
        if len(asked.columns) != 1:
            raise JobError(
                f"suite probing reads one column, not {', '.join(asked.columns)}. Nothing was written. Take another suite.",
                kind="one-column",
            )
        planted = true_features(store, asked.columns[0]) is not None and TRUTH in store.groups
        label = label or ("truth" if planted else "token_id")
        known = ("truth", *(name for name in COLUMNS if name not in ("seq_id", "split")))
        if label not in known or (label == "truth" and not planted):
            found = "whose features are not known" if label == "truth" else "which has none such"
            raise JobError(
                f"suite probing was to tell {label!r} apart on {asked.columns[0]} of {store.url}, {found}. Nothing was "
                f"written. Say another with --label: {', '.join(known)}.",
                kind="no-truth" if label == "truth" else "unknown-label",
            )
        return partial(_figures, asked, self, label)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Rows with their codes, classes and side."""

    x: Array
    """float32 [R, D]."""
    codes: csc_matrix
    """[R, L]."""
    is_class: csc_matrix
    """Which rows belong to which class, [R, C]."""
    test: Array
    """Rows that score, bool [R]; whole documents, or sequences."""


def _figures(asked: Asked, probing: Probing, label: str) -> dict[str, float]:
    pool = pool_of(asked, probing, label)
    scored: dict[str, list[float]] = {}
    for name in range(pool.is_class.shape[1]):
        of_class = np.asarray(pool.is_class[:, name].todense()).ravel() > 0
        rng = np.random.default_rng(name)
        fit, test = (_balanced(of_class, side, rng) for side in (~pool.test, pool.test))
        if min(len(fit), len(test)) < 2 * LEAST:
            continue
        for key, value in _scores(pool, of_class, fit, test).items():
            scored.setdefault(key, []).append(value)
    if not scored:
        raise JobError(
            f"suite probing found no class of {label!r} with {LEAST} rows of {asked.store.url} to fit and as many to score. "
            "No result was finished. Say another --label, or a --split with more rows.",
            kind="too-few-rows",
        )
    classes = len(scored[f"probe_k{KS[0]}"])
    return {name: float(np.mean(values)) for name, values in scored.items()} | {
        "probe_classes": float(classes)
    }


def _scores(pool: Pool, of_class: Array, fit: Array, test: Array) -> dict[str, float]:
    """Return the accuracies for one class."""
    found, y = {}, of_class.astype(np.float64)
    for name, features in (("probe", pool.codes), ("probe_channels", pool.x)):
        best = strongest(features[fit], of_class[fit], max(KS))
        for k in KS:
            dense = _dense(features[:, best[:k]])
            found[f"{name}_k{k}"] = probed(dense[fit], y[fit], dense[test], y[test])
    if pool.x.shape[1] < len(fit) // 2:
        found["probe_channels"] = probed(pool.x[fit], y[fit], pool.x[test], y[test])
    return found


def strongest(features_RL: Any, of_class_R: Array, k: int) -> Array:
    """Return the ``k`` features whose mean differs most between a class and the rest, in order, int64 [k]."""
    mine, rest = features_RL[of_class_R], features_RL[~of_class_R]
    gap_L = np.abs(np.asarray(mine.mean(axis=0)).ravel() - np.asarray(rest.mean(axis=0)).ravel())
    order: Array = np.argsort(-gap_L, kind="stable")[:k]
    return order


def probed(x_RK: Array, y_R: Array, test_RK: Array, test_y_R: Array) -> float:
    """Return the accuracy on test rows of a logistic probe fitted to others; features are standardised."""
    mean_K, spread_K = x_RK.mean(axis=0), x_RK.std(axis=0)
    spread_K = np.where(spread_K > 0, spread_K, 1.0)
    weight_K, bias = logistic((x_RK - mean_K) / spread_K, y_R)
    said_R = ((test_RK - mean_K) / spread_K) @ weight_K + bias > 0
    return float((said_R == (test_y_R > 0)).mean())


def logistic(x_RK: Array, y_R: Array) -> tuple[Array, float]:
    """Return weights [K] and bias that minimise the mean logistic loss + RIDGE ‖w‖²/2; y is 0 or 1."""
    x_RK = x_RK.astype(np.float64)

    def loss(theta: Array) -> tuple[float, Array]:
        weight_K, bias = theta[:-1], theta[-1]
        logit_R = x_RK @ weight_K + bias
        value = np.logaddexp(0, logit_R).mean() - (y_R * logit_R).mean()
        off_R = (expit(logit_R) - y_R) / len(y_R)
        slope = np.append(x_RK.T @ off_R + RIDGE * weight_K, off_R.sum())
        return float(value + RIDGE / 2 * weight_K @ weight_K), slope

    found = minimize(loss, np.zeros(x_RK.shape[1] + 1), jac=True, method="L-BFGS-B")
    return found.x[:-1], float(found.x[-1])


def pool_of(asked: Asked, probing: Probing, label: str) -> Pool:
    """Return rows of the split, parts drawn in an order that is always the same, with what a probe needs of them.

    Raises
    ------
    JobError
        ``too-few-rows``: there is none.
    """
    unit = "seq_id" if label == "doc_id" else "doc_id"
    extra = [unit, *([] if label == "truth" else [label])]
    parts, drawn = _drawn(asked, extra, probing.rows)
    if not drawn:
        raise JobError(
            f"suite probing was asked for on split {asked.split or 'all'} of {asked.store.url}, which has no ordinary row. No "
            "result was finished. Say another --split.",
            kind="too-few-rows",
        )
    x_RD = np.concatenate([block.x.flatten(1).numpy() for block in drawn])
    if label == "truth":
        rows = np.concatenate([block.row_ids for block in drawn])
        is_class = _commonest(*_firing(asked.store, parts, rows), len(rows), probing.classes)
    else:
        values = np.concatenate([block.tokens[label] for block in drawn])
        _, mark = np.unique(values, return_inverse=True)
        is_class = _commonest(np.arange(len(mark)), mark, len(mark), probing.classes)
    return Pool(
        x=x_RD,
        codes=_sparse(asked.book, x_RD),
        is_class=is_class,
        test=_half(np.concatenate([block.tokens[unit] for block in drawn])),
    )


def _drawn(asked: Asked, extra: list[str], rows: int) -> tuple[list[int], list[Block]]:
    """Return at most ``rows`` rows in blocks, and the parts they lie in."""
    group, _ = asked.store.view.resolve(asked.columns[0])
    order = np.random.default_rng(0).permutation(sorted(asked.store.view.parts(group.name)))
    parts: list[int] = []
    drawn: list[Block] = []
    for part in order.tolist():
        parts.append(part)
        for block in blocks(
            asked.store, asked.columns[0], where=asked.where, extra=extra, parts=[part]
        ):
            tokens = {name: values[:rows] for name, values in block.tokens.items()}
            drawn.append(Block(row_ids=block.row_ids[:rows], x=block.x[:rows], tokens=tokens))
            rows -= len(block.x)
            if rows <= 0:
                return parts, drawn
    return parts, drawn


def _sparse(book: Codebook, x_RD: Array) -> csc_matrix:
    codes = book.encode(x_RD)
    shape = (len(x_RD), book.latents)
    return csc_matrix((codes.value, (codes.row_index, codes.latent.astype(np.int64))), shape)


def _firing(store: Store, parts: list[int], row_R: Array) -> tuple[Array, Array]:
    """Return (row of the pool, feature) of every planted code of the pool's rows, int64 each."""
    held = [store.view.table(store.view.commit(TRUTH, one), "codes.parquet") for one in parts]
    row, feature = (
        np.concatenate([np.asarray(tables.column(one, name), np.int64) for one in held])
        for name in ("row", "latent")
    )
    mine = np.isin(row, row_R)
    order_R = np.argsort(row_R)
    return order_R[np.searchsorted(row_R, row[mine], sorter=order_R)], feature[mine]


def _commonest(row_N: Array, mark_N: Array, rows: int, classes: int) -> csc_matrix:
    """Return which rows carry each of the commonest marks, [R, C]."""
    marks, count = np.unique(mark_N, return_counts=True)
    best = np.sort(marks[np.argsort(-count, kind="stable")[:classes]])
    keep_N = np.isin(mark_N, best)
    at = (row_N[keep_N], np.searchsorted(best, mark_N[keep_N]))
    return csc_matrix((np.ones(len(at[0])), at), (rows, len(best)))


def _half(unit_R: Array) -> Array:
    """Return which rows are of every second document or sequence, drawn, bool [R]."""
    every, which = np.unique(unit_R, return_inverse=True)
    second: Array = np.random.default_rng(1).permutation(len(every)) % 2 == 0
    return second[which]


def _balanced(of_class_R: Array, side_R: Array, rng: np.random.Generator) -> Array:
    """Return as many rows of a class as of the others, from one side, int64."""
    mine, rest = np.flatnonzero(of_class_R & side_R), np.flatnonzero(~of_class_R & side_R)
    count = min(len(mine), len(rest))
    return np.concatenate([rng.permutation(mine)[:count], rng.permutation(rest)[:count]])


def _dense(features: Any) -> Array:
    return np.asarray(features.todense() if issparse(features) else features, np.float64)
