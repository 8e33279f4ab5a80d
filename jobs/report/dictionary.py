"""The sections about a dictionary: how it was trained and how well it does on held-out rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.report import numbers, plots
from jobs.report.markup import Html, details, element, figure, headline, join, section, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.report.tables import Evaluation, Table

DENSE_ABOVE = 0.1
"""Share of rows above which a latent is called dense (the mark in the histogram)."""

_SHOWN_STEPS = 12

_CURVES = (
    ("fvu", "Fraction of variance unexplained", "FVU falls or stalls"),
    ("l0", "Active latents per row (L0)", "active latents per row"),
    ("dead", "Dead latents", "latents that have not fired within the dead window"),
    ("threshold", "Threshold", "estimated activation threshold"),
    ("rows_per_second", "Rows per second", "training speed"),
)

_METRICS = {
    "fvu": "FVU, held-out rows",
    "fvu_all_rows": "FVU with excluded rows",
    "l0_mean": "L0, mean",
    "l0_p5": "L0, 5th percentile",
    "l0_p50": "L0, median",
    "l0_p95": "L0, 95th percentile",
    "latents": "latents",
    "dead": "dead latents",
    "dense": "dense latents",
    "cosine": "cosine of row and reconstruction",
    "shrinkage": "norm of reconstruction over norm of row",
    "relative_bias": "best scale of the reconstruction",
    "rows": "rows evaluated",
    "excluded_share": "rows excluded",
}
_COUNTS = {"rows", "dead", "dense", "latents"}


def training(key: str, curve: Table, label: Any) -> Html:
    """Return the training section: one plot per quantity against rows, and the numbers."""
    rows = curve["rows"]
    drawings = [
        figure(_curve(f"{key}-{name}", rows, curve[name], title, said), title)
        for name, title, said in _CURVES
    ]
    seen = int(rows[-1]) if len(rows) else 0
    spent = numbers.duration(float(curve["seconds"][-1])) if len(rows) else "no time"
    said = f"{numbers.count(seen)} rows in {spent}; every quantity against rows seen."
    grid = element("div", *drawings, class_="figures")
    return section(key, join(["Training", label]), element("p", said), grid, _steps(curve))


def _curve(name: str, rows: Any, values: Any, title: str, said: str) -> Html:
    finite = values[np.isfinite(values)] if len(values) else values
    ends = (
        f" From {numbers.decimal(float(finite[0]))} to {numbers.decimal(float(finite[-1]))}."
        if len(finite)
        else " No values."
    )
    alt = f"{title} against rows: {said}.{ends}"
    plot = plots.Line(name=name, alt=alt, x=rows, y=values, x_label="rows", size=plots.SMALL)
    return Html(plots.line(plot))


def _steps(curve: Table) -> Html:
    total = len(curve["step"])
    chosen = np.unique(np.linspace(0, total - 1, min(total, _SHOWN_STEPS)).round().astype(int))
    head = ("step", "rows", "FVU", "L0", "dead", "threshold", "rows/s", "time")
    lines = [
        (
            numbers.count(curve["step"][i]),
            numbers.count(curve["rows"][i]),
            numbers.decimal(curve["fvu"][i], trim=False),
            numbers.decimal(curve["l0"][i], trim=False),
            numbers.count(curve["dead"][i]),
            numbers.decimal(curve["threshold"][i], trim=False),
            numbers.rate(curve["rows_per_second"][i]).removesuffix("\u00a0rows/s"),
            numbers.duration(curve["seconds"][i]),
        )
        for i in chosen.tolist()
    ]
    said = f"Training steps, {len(lines)} of {total} logged"
    return details("Numbers behind the curves", table(said, head, lines, text_columns=0))


def evaluation(key: str, found: Evaluation, label: Any) -> Html:
    """Return the evaluation section: headline numbers, two plots and every metric."""
    lead = headline(_headline(found.metrics))
    drawings: list[Html] = []
    if found.densities is not None and len(found.densities):
        drawings.append(_histogram(key, found.densities))
    if found.positions is not None and len(found.positions["position"]):
        drawings.append(_positions(key, found.positions))
    grid = element("div", *drawings, class_="figures two") if drawings else ""
    said = element(
        "p",
        "FVU is the squared error of the reconstruction over the variance of the rows about the "
        "mean of the data set; 0 is perfect, 1 is no better than that mean. L0 counts the latents "
        "active on a row.",
        class_="note",
    )
    everything = details(
        "All metrics", table("Evaluation metrics", ("metric", "value"), _all(found))
    )
    return section(key, join(["Evaluation", label]), lead, grid, said, everything)


def _headline(metrics: dict[str, float]) -> list[tuple[str, str, str]]:
    items: list[tuple[str, str, str]] = []
    if "fvu" in metrics:
        explained = f"{numbers.share(1 - metrics['fvu'])} of the variance explained"
        items.append(("Held-out FVU", numbers.decimal(metrics["fvu"]), explained))
    if "l0_p50" in metrics:
        spread = [numbers.decimal(metrics[name]) for name in ("l0_p5", "l0_p95") if name in metrics]
        remark = f"5th to 95th percentile: {' to '.join(spread)}" if len(spread) == 2 else "median"
        items.append(("Active latents (L0)", numbers.decimal(metrics["l0_p50"]), remark))
    total = metrics.get("latents")
    for name, label, remark in (
        ("dead", "Dead latents", "never fire on these rows"),
        ("dense", "Dense latents", f"fire on more than {numbers.share(DENSE_ABOVE)} of the rows"),
    ):
        if name in metrics:
            of = (
                f"{numbers.share(metrics[name] / total)} of {numbers.count(total)}; "
                if total
                else ""
            )
            items.append((label, numbers.count(metrics[name]), of + remark))
    if "cosine" in metrics:
        items.append(("Cosine", numbers.decimal(metrics["cosine"]), "of row and reconstruction"))
    return items


def _all(found: Evaluation) -> list[Sequence[str]]:
    return [
        (_METRICS.get(name, name), _metric(name, value)) for name, value in found.metrics.items()
    ]


def _metric(name: str, value: float) -> str:
    if name in _COUNTS:
        return numbers.count(value)
    return numbers.share(value) if name.endswith("_share") else numbers.decimal(value, 4)


def _histogram(key: str, densities: Any) -> Html:
    silent = int((densities <= 0).sum())
    median = float(np.median(densities[densities > 0])) if silent < len(densities) else 0.0
    dense = numbers.share(DENSE_ABOVE)
    caption = (
        f"Latents by firing density; {numbers.count(silent)} of {numbers.count(len(densities))} "
        f"never fire. Dashed: dense, above {dense}."
    )
    alt = (
        "Histogram of firing density on a log axis. Half of the latents that fire at all do so on "
        f"more than {numbers.share(median)} of the rows."
    )
    return figure(
        Html(plots.density_histogram(f"{key}-density", alt, densities, DENSE_ABOVE)), caption
    )


def _positions(key: str, positions: Any) -> Html:
    x, y = positions["position"], positions["relative_error"]
    order = np.argsort(x, kind="stable")
    alt = (
        f"Relative error against position in the sequence, {numbers.count(len(x))} positions. "
        f"First {numbers.decimal(float(y[order][0]))}, last {numbers.decimal(float(y[order][-1]))}."
    )
    plot = plots.Line(
        name=f"{key}-positions", alt=alt, x=x[order], y=y[order], x_label="position in the sequence"
    )
    caption = "Relative squared error by position in the sequence"
    return figure(Html(plots.line(plot)), caption)
