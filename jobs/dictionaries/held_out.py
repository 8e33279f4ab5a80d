"""A dictionary on a store's held-out rows: part by part, anywhere, into tables with a run card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ingest.contract import Runtime
from jobs.blocks import side_by_side
from jobs.codebook import Codebook
from jobs.dictionaries import saebench
from jobs.dictionaries.evaluate import EvalPartial, EvalResult, finalize, massive_norm_of
from jobs.dictionaries.heads import heads_table
from jobs.dictionaries.run import pin_of
from jobs.dictionaries.suite import Asked, Suite, suites_of
from jobs.dictionaries.suites.truth import directions, true_features
from jobs.errors import JobError
from jobs.feed import usual_rows
from jobs.results import Result, finished
from jobs.run import map_merge
from jobs.runtimes.in_process import InProcess
from jobs.sequences import made_by
from store import Store
from store import open as open_store
from store.conditions import Condition
from store.tokens import FLAG_SPECIAL


def evaluate_on(
    store: Store,
    site: str | Sequence[str],
    book: Codebook,
    out: str | Path,
    *,
    targets: Sequence[str] = (),
    split: str | None = "test",
    suites: Sequence[str | Suite] = (),
    runtime: Runtime | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Evaluate a dictionary on a site's ordinary rows of one split, part by part.

    Parameters
    ----------
    site, targets
        Columns it reads, side by side, and rebuilds; no targets: those it reads.
    suites
        What is measured beyond reconstruction and sparsity, by name or with settings; see the files of ``suites``.
    runtime
        Where parts are worked on; None: here. The figures are the same bits anywhere.
    progress
        Called with (parts done, parts).

    Returns
    -------
    The result: tables ``summary`` (see ``figures``), ``latents`` (density) and ``positions``; of a site with
    heads also ``heads``; with suite behaviour also SAEBench's file of core metrics.
    """
    ordinary = usual_rows(split)
    where = [condition for condition in ordinary if condition[0] == "split"]
    columns = (site,) if isinstance(site, str) else tuple(site)
    check_widths(store, columns, targets, book)
    described: dict[str, Any] = {"site": columns[0] if len(columns) == 1 else list(columns)}
    described |= {"split": split, "dictionary": book.sha}
    runtime = runtime or InProcess()
    asked = Asked(
        store=store,
        columns=columns,
        targets=tuple(targets),
        book=book,
        split=split,
        where=tuple(ordinary),
        runtime=runtime,
    )
    beyond = suites_of(suites)
    if beyond:
        described["suites"] = [{"kind": one.kind, **one.described()} for one in beyond]
    if targets:
        described["targets"] = list(targets)
    pin = pin_of(store, *columns, *targets)
    done = finished(out, "eval", described)
    computed = [one.prepare(asked) for one in beyond] if not done else []
    result = Result.create(out, "eval", described, store=store.id, pin=pin)
    if not result.done:
        with result:
            massive = massive_norm_of(book, first_rows(store, columns, ordinary))
            make = partial(EvaluationWorker, store.url, columns, targets, where, book, massive)
            groups = [store.view.resolve(name)[0].name for name in (*columns, *targets)]
            parts = sorted(set.intersection(*(set(store.view.parts(group)) for group in groups)))
            merged = map_merge(runtime, make, parts, progress=progress)
            found = finalize(merged)
            more = against_truth(store, columns[0], book) if len(columns) == 1 else {}
            for figures_of in computed:
                more |= figures_of()
            file = saebench.core_file(found, more, book, result.card, called(store, columns[0]))
            if file is not None:
                result.write_file(saebench.FILE, file)
            tables = dict(evaluation_tables(found, more))
            shape = store.column((*targets, columns[0])[0]).shape
            if len(columns) == 1 and len(targets) <= 1 and len(shape) == 2:
                tables["heads"] = heads_table(book, shape[0])
            for name, table in tables.items():
                result.write_table(name, table)
    return result


def called(store: Store, column: str) -> str:
    """Return what the model of a column is called, its last part where it was a path."""
    return made_by(store, store.view.resolve(column)[0]).rstrip("/").rpartition("/")[2]


class EvaluationWorker:
    """Turns one part of a store into a share of an evaluation."""

    def __init__(
        self,
        url: str,
        columns: Sequence[str],
        targets: Sequence[str],
        where: Sequence[Condition],
        book: Codebook,
        massive: float,
    ) -> None:
        self._store = open_store(url)
        self._columns, self._targets = columns, targets
        self._where, self._book, self._massive = where, book, massive

    def run(self, part: int) -> EvalPartial | None:
        """Return the part's share, or None where no row of it counts."""
        share: EvalPartial | None = None
        options = {"where": self._where, "extra": ["pos", "flags"], "parts": [part]}
        for block, target in side_by_side(self._store, self._columns, self._targets, **options):
            y = block.x if target is None else target
            share = share or EvalPartial.empty(self._book.latents, y.shape[1])
            special = (block.tokens["flags"] & FLAG_SPECIAL) > 0
            rows = (block.x, block.tokens["pos"], special, y)
            share.update(self._book, rows, massive_norm=self._massive)
        return share

    def close(self) -> None:
        """Hold nothing open."""


def check_widths(
    store: Store, columns: Sequence[str], targets: Sequence[str], book: Codebook
) -> None:
    """Raise ``width-mismatch`` where a dictionary is not of these columns."""
    for what, names, expected in (
        ("reads", columns, book.width),
        ("rebuilds", targets or columns, book.out_width),
    ):
        width = sum(int(np.prod(store.column(name).shape)) for name in names)
        if width != expected:
            raise JobError(
                f"the dictionary {what} rows of width {expected} (site {book.meta.get('site', 'not stated')}); "
                f"{', '.join(names)} of {store.url} hold width {width}. Nothing was written. Name the columns it was "
                "trained on with --site, and a transcoder's with --target.",
                kind="width-mismatch",
            )


def first_rows(store: Store, columns: Sequence[str], where: Sequence[Condition]) -> Tensor:
    """Return the first block of rows that count, ``float32[R, D]``; R is 0 where none does."""
    width = sum(int(np.prod(store.column(name).shape)) for name in columns)
    found = (block.x for block, _ in side_by_side(store, columns, where=where))
    return next(found, torch.zeros(0, width))


def figures(evaluation: Result) -> dict[str, float]:
    """Return an evaluation's figures by name: fvu, l0_mean, dead, latents, rows, cosine and more."""
    table = evaluation.table("summary")
    return dict(zip(table["metric"], map(float, table["value"]), strict=True))


def against_truth(store: Store, site: str, book: Codebook) -> dict[str, float]:
    """Return how well a dictionary found a synthetic source's planted features; empty on other columns.

    See ``suites.truth.directions``; what costs a pass over rows is suite ``truth``.
    """
    features = true_features(store, site)
    if features is None or features.shape[1] != book.out_width:
        return {}
    found = directions(features, book)
    return {name: found[name] for name in ("mean_max_cosine", "recovered")}


def evaluation_tables(
    found: EvalResult, more: Mapping[str, float] | None = None
) -> Mapping[str, dict[str, Any]]:
    """Return an evaluation as tables: ``summary`` (with ``more`` figures), ``latents``, ``positions``."""
    figures = {
        "fvu": found.fvu,
        "fvu_all_rows": found.fvu_all_rows,
        "l0_mean": found.l0,
        **{f"l0_{name}": value for name, value in found.l0_percentiles.items()},
        "dead": found.dead,
        "dense": found.dense,
        "cosine": found.cosine,
        "shrinkage": found.shrinkage,
        "relative_bias": found.relative_bias,
        "l1": found.l1,
        "mse": found.mse,
        "rows": found.rows,
        "excluded_share": found.special_share + found.massive_share,
        "latents": len(found.fired),
        **(more or {}),
    }
    there = np.flatnonzero(found.position_rows)
    return {
        "summary": {
            "metric": list(figures),
            "value": np.array(list(figures.values()), np.float64),
        },
        "latents": {
            "latent": np.arange(len(found.fired)),
            "density": found.fired / max(found.rows, 1),
        },
        "positions": {
            "position": there,
            "relative_error": found.position_error[there],
            "rows": found.position_rows[there],
        },
    }
