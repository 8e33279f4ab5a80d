"""From times over a grid of L/k to the L/k at which sparse overtakes dense."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from typing import Any

from jobs.kernels.codes.rows import Row

Point = tuple[float, float, str]
"""L/k, the best sparse form's speedup over dense, and its name."""


def crossovers(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return, for each product, number of latents and dense form, where the best sparse form overtakes it.

    Columns: op, product, width, latents, dense (the form), sparse (the form at the largest L/k), ratio (L/k where the
    speedup is 1, on the line through the measured ones in logarithms), bound (``measured``; ``below`` or ``above``
    where sparse wins or loses on the whole grid and ratio is its end), and the speedups at both ends.
    """
    usable = [r for r in rows if r.control == "grid" and r.product and r.valid and r.n_samples]
    usable.sort(key=lambda r: (r.op, r.width, r.latents))
    found = []
    for (op, width, latents), group in groupby(usable, key=lambda r: (r.op, r.width, r.latents)):
        cells = list(group)
        for dense in sorted({row.method for row in cells if row.dense}):
            points = _points(cells, dense)
            if not points:  # no ratio at which both kinds passed their gates
                continue
            ratio, bound = crossing(points)
            found.append(
                {
                    "op": op,
                    "product": cells[0].product,
                    "width": width,
                    "latents": latents,
                    "dense": dense,
                    "sparse": points[-1][2],
                    "ratio": ratio,
                    "bound": bound,
                    "lowest_ratio": points[0][0],
                    "speedup_lowest": points[0][1],
                    "highest_ratio": points[-1][0],
                    "speedup_highest": points[-1][1],
                }
            )
    return found


def _points(cells: Sequence[Row], dense: str) -> list[Point]:
    """Return the points of one size against one dense form, by L/k."""
    points = []
    for ratio, group in groupby(sorted(cells, key=lambda r: r.ratio), key=lambda r: r.ratio):
        rows = list(group)
        bases = [row.t_total_us for row in rows if row.method == dense]
        sparse = [row for row in rows if not row.dense]
        if not (bases and sparse):
            continue
        base, best = min(bases), min(sparse, key=lambda row: row.t_total_us)
        points.append((ratio, base / best.t_total_us, best.method))
    return points


def crossing(points: Sequence[Point]) -> tuple[float, str]:
    """Return the L/k from which sparse wins on all of the grid beyond, and whether it was bracketed.

    Where noise makes the speedup cross 1 more than once the last crossing counts: up to it dense wins somewhere.
    """
    if points[-1][1] < 1:
        return points[-1][0], "above"
    for (x0, y0, _), (x1, y1, _) in reversed(list(pairwise(points))):
        if y0 < 1 <= y1:
            share = math.log(1 / y0) / math.log(y1 / y0)
            return x0 * (x1 / x0) ** share, "measured"
    return points[0][0], "below"
