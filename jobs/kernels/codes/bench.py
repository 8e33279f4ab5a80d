"""Code products measured: correct first, then dense against sparse over L/k, real codes against redraws.

Order of a case: gate on a slice of its own inputs, then times, baseline first and last of every round (timed as
two, which gives the noise band). A form that fails its gate keeps its row, without times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ingest.models import hardware_class
from jobs.errors import UsageError
from jobs.kernels.codes.choose import choose
from jobs.kernels.codes.contract import Encoder, Shape
from jobs.kernels.codes.crossover import crossovers
from jobs.kernels.codes.encoding import encoder_rows
from jobs.kernels.codes.inputs import (
    CONTROLS,
    ZIPF,
    coded_group,
    drawn,
    fitted_exponent,
    from_store,
    redraw,
    synthetic,
)
from jobs.kernels.codes.records import FOLDER, Figure, Record, record_of
from jobs.kernels.codes.rows import Batch, Row, product_rows
from jobs.kernels.measure import MIN_REPEATS, Ceiling, ceilings
from jobs.results import Result
from store import Store

Step = Callable[[str, int, int], None]
BATCHES = 3
"""Batches that take turns, so that no round reads what the one before left in cache."""
USUAL_K = 32
LEAST_RATIO = 2
"""Grid shapes keep at most every second latent of a row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CodesBench:
    """What is measured."""

    width: int = 384
    """Values of a row in the grid."""
    latents: tuple[int, ...] = (1024, 4096, 16384)
    """Latents in the grid."""
    k: tuple[int, ...] = (8, 32, 128, 512)
    """Pairs of a row in the grid; at most half the latents."""
    rows: int = 2048
    """Rows of a batch."""
    repeats: int = 7
    """Timed rounds, at least 5."""
    controls: tuple[str, ...] = CONTROLS
    """Of codes from a store: real, idx_uniform, idx_zipf."""
    group: str | None = None
    """Group of codes in the store."""
    seed: int = 0
    """Root of what is drawn."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.controls) - set(CONTROLS)):
            raise UsageError(
                f"there is no control called {', '.join(unknown)}; known: {', '.join(CONTROLS)}. Nothing was "
                "measured. Name some of them.",
                kind="unknown-name",
            )
        if self.repeats < MIN_REPEATS:
            raise UsageError(
                f"{self.repeats} timed rounds were asked; a median takes at least {MIN_REPEATS}. Nothing was "
                "measured. Use more --repeats.",
                kind="bad-number",
            )


def bench_codes(
    settings: CodesBench,
    out: str | Path,
    *,
    store: Store | None = None,
    encoders: Mapping[str, Mapping[str, Encoder]] | None = None,
    records: Path = FOLDER,
    step: Step = lambda *_: None,
) -> Result:
    """Measure every form of every product, and encoders that are handed in.

    Parameters
    ----------
    store
        Where ``settings.group`` lies; None measures the grid alone.
    encoders
        Operation (``encode_topk``, ``encode_threshold``) to encoders by name.
    records
        Where the records lie whose choices are put to the test.

    Returns
    -------
    The result: tables ``codes`` (a row per case, operation and form), ``crossover``, ``ceilings``.

    Raises
    ------
    JobError
        ``no-codes``: the store has no such codes, or codes of fewer rows.
    """
    if store is not None and settings.group is not None:
        coded_group(store, settings.group)
    hardware, threads = hardware_class(), torch.get_num_threads()
    described = {
        "bench": "codes",
        **asdict(settings),
        "hardware_class": hardware,
        "threads": threads,
    }
    described["store"] = None if store is None else store.id
    pin = (
        None
        if store is None or settings.group is None
        else store.pin_id(["tokens", settings.group])
    )
    result = Result.create(
        out,
        "bench",
        {**described, "pin": pin},
        store=described["store"],
        pin=pin,
        seed=settings.seed,
    )
    if result.done:
        return result
    with result, torch.no_grad():
        limits = ceilings()
        rows = list(_measured(settings, store, encoders or {}, limits, step))
        record = record_of(hardware, records)
        for row in rows:
            _judge(row, record)
        result.write_table("codes", _columns([row.to_json() for row in rows]))
        result.write_table("crossover", _columns(crossovers(rows)))
        result.write_table("ceilings", _columns([asdict(limit) for limit in limits]))
    return result


def _measured(
    settings: CodesBench,
    store: Store | None,
    encoders: Mapping[str, Mapping[str, Encoder]],
    limits: list[Ceiling],
    step: Step,
) -> Iterator[Row]:
    makers = [*_stored(settings, store), *_grid(settings)]
    for done, make in enumerate(makers):
        step("bench codes", done, len(makers))
        batch = make()
        yield from product_rows(batch, repeats=settings.repeats, limits=limits)
        if batch.encode:
            yield from encoder_rows(batch, encoders, repeats=settings.repeats, limits=limits)
    step("bench codes", len(makers), len(makers))


def _grid(settings: CodesBench) -> Iterator[Callable[[], Batch]]:
    """Yield what makes the batches of the grid: popularity falls as 1/rank, every row has k pairs."""
    usual = min(settings.k, key=lambda k: abs(k - USUAL_K))
    for latents in settings.latents:
        for k in settings.k:
            if k * LEAST_RATIO > latents:
                continue

            def make(latents: int = latents, k: int = k) -> Batch:
                shape = Shape(
                    rows=settings.rows,
                    width=settings.width,
                    latents=latents,
                    pairs=settings.rows * k,
                )
                cases = [synthetic(shape, seed=settings.seed + i) for i in range(BATCHES)]
                return Batch("grid", cases, exponent=ZIPF, seed=settings.seed, encode=k == usual)

            yield make


def _stored(settings: CodesBench, store: Store | None) -> Iterator[Callable[[], Batch]]:
    """Yield what makes the batches of a store's codes, and redraws with as many pairs in every row."""
    if store is None or settings.group is None:
        return
    seeds = [settings.seed + i for i in range(BATCHES)]
    real = from_store(store, settings.group, settings.rows, seeds=seeds)
    latents, width = real[0].w.shape
    fitted = fitted_exponent(torch.cat([case.pattern.latent for case in real]), latents)
    exponents = {"real": float("nan"), "idx_uniform": 0.0, "idx_zipf": fitted}
    for control in settings.controls:

        def make(control: str = control) -> Batch:
            exponent = exponents[control]
            if control == "real":
                return Batch(control, real, exponent=exponent, seed=settings.seed)
            cases = []
            for case, seed in zip(real, seeds, strict=True):
                counts_R = torch.bincount(case.pattern.row, minlength=settings.rows)
                pattern = redraw(counts_R, latents, exponent=exponent, seed=seed)
                cases.append(drawn(pattern, width, seed=seed))
            return Batch(control, cases, exponent=exponent, seed=settings.seed)

        yield make


def _judge(row: Row, record: Record | None) -> None:
    """Mark the form that the shipped records choose for this shape."""
    if row.product:
        shape = Shape(rows=row.rows, width=row.width, latents=row.latents, pairs=row.pairs)
        row.chosen = choose(shape, record).forms[row.product] == row.method


def recorded(result: Result, meta: Mapping[str, Any], month: str) -> Record:
    """Return the record of a finished measurement: the grid's figures that passed their gates."""
    table = result.table("codes")
    figures = []
    for i in range(len(table["op"])):
        row = {name: column[i] for name, column in table.items()}
        if row["control"] == "grid" and row["product"] and row["valid"]:
            figures.append(
                Figure(
                    product=row["product"],
                    form=row["method"],
                    dense=bool(row["dense"]),
                    rounding=row["exec_precision"],
                    rows=int(row["rows"]),
                    width=int(row["width"]),
                    latents=int(row["latents"]),
                    pairs=int(row["pairs"]),
                    seconds=round(float(row["t_total_us"]) / 1e6, 9),
                    seconds_p20=round(float(row["t_p20_us"]) / 1e6, 9),
                    seconds_p80=round(float(row["t_p80_us"]) / 1e6, 9),
                )
            )
    card = result.card
    facts = {
        "threads": card.config["threads"],
        "repeats": card.config["repeats"],
        "versions": dict(card.versions),
        "revision": dict(card.revision),
        "hardware": dict(card.hardware),
        **meta,
    }
    return Record(
        hardware_class=card.config["hardware_class"],
        month=month,
        figures=tuple(figures),
        meta=facts,
    )


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return rows of one shape as columns."""
    names = list(rows[0]) if rows else []
    return {name: [row[name] for row in rows] for name in names}
