"""What was measured where: one JSON file per kind of hardware and month, kept with the code.

A run may not choose a kernel by its own stopwatch: the choice changes low bits, and two runs of one recipe have to
agree. So machines are measured once, by hand (``actlake bench codes --record``), and the figures become part of the
code revision that run cards name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from jobs.codebook import write_atomic
from jobs.errors import JobError
from jobs.kernels.codes.contract import PRODUCTS, Shape

FORMAT = "actlake-codes-record/1"
FOLDER = Path(__file__).resolve().parents[1] / "records"
PREFIX = "codes"


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """Time of one form of one product at one shape."""

    product: str
    form: str
    dense: bool
    """Whether its cost follows R·L·D, not N·D."""
    rounding: str
    rows: int
    width: int
    latents: int
    pairs: int
    seconds: float
    """Median."""
    seconds_p20: float
    seconds_p80: float

    @property
    def shape(self) -> Shape:
        """The size it was measured at."""
        return Shape(rows=self.rows, width=self.width, latents=self.latents, pairs=self.pairs)

    @property
    def per_term(self) -> float:
        """Seconds of one multiply-add that the form carries out."""
        return self.seconds / _terms(self.shape, dense=self.dense)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """The figures of one kind of hardware."""

    hardware_class: str
    """As ``ingest.models.hardware_class`` names it."""
    month: str
    """Of the measurement: 202611."""
    figures: tuple[Figure, ...]
    meta: Mapping[str, Any]
    """Command, threads, versions, revision, repeats, ceilings."""

    @property
    def name(self) -> str:
        """File name without its ending."""
        plain = re.sub(r"[^a-z0-9]+", "-", self.hardware_class.lower()).strip("-")
        return f"{PREFIX}_{plain}_{self.month}"

    def forms(self, product: str, rounding: str) -> dict[str, list[Figure]]:
        """Return the figures of a product by form, of those that round no more than allowed."""
        allowed = ("input",) if rounding == "input" else ("input", rounding)
        of = [f for f in self.figures if f.product == product and f.rounding in allowed]
        of.sort(key=lambda figure: figure.form)
        return {form: list(found) for form, found in groupby(of, key=lambda figure: figure.form)}

    def predict(self, figures: Sequence[Figure], shape: Shape) -> float:
        """Return the seconds a form should take at a shape.

        From the figures whose weights are nearest in size (caches decide the cost of a gathered value): the cost of
        one multiply-add, linear between measured L/k in logarithms and constant beyond them, times their number.
        """
        cells = shape.latents * shape.width
        sizes = sorted({f.latents * f.width for f in figures})
        nearest = min(sizes, key=lambda size: (abs(math.log(size / cells)), size))
        points = sorted(
            (f.shape.ratio, f.per_term) for f in figures if f.latents * f.width == nearest
        )
        per_term = _between(points, shape.ratio)
        return per_term * _terms(shape, dense=figures[0].dense)

    def save(self, folder: Path = FOLDER) -> Path:
        """Write the record into a folder and return its file; one of the same name is replaced.

        Raises
        ------
        JobError
            ``not-permitted``: the folder cannot be written.
        """
        described = {
            "format": FORMAT,
            "hardware_class": self.hardware_class,
            "month": self.month,
            "meta": dict(self.meta),
            "figures": [asdict(figure) for figure in self.figures],
        }
        path = folder / f"{self.name}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(described, indent=1, sort_keys=True).encode() + b"\n")
        except OSError as error:
            raise JobError(
                f"the record was to be kept in {path}: {error.strerror}. Nothing was kept; the result stands. "
                "Run from a checkout that may be written.",
                kind="not-permitted",
            ) from error
        return path

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read what ``save`` wrote, or raise ``bad-record`` (``JobError``)."""
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            fields = {name: held[name] for name in ("hardware_class", "month", "meta")}
            known = {FORMAT: held["figures"]}
            figures = tuple(Figure(**row) for row in known[held["format"]])
            if lacking := set(PRODUCTS) - {f.product for f in figures if f.rounding == "input"}:
                raise ValueError(f"no figures of {', '.join(sorted(lacking))}")  # noqa: TRY301
            return cls(figures=figures, **fields)
        except (ValueError, KeyError, TypeError) as error:
            raise JobError(
                f"a record in {FORMAT} was to be read from {path}, and it is none ({type(error).__name__}: {error}). "
                "Nothing was started. Restore the file, remove it, or measure again: actlake bench codes --record.",
                kind="bad-record",
            ) from error


def records(folder: Path = FOLDER) -> Iterator[Record]:
    """Yield the records of a folder by file name."""
    for path in sorted(folder.glob(f"{PREFIX}_*.json")):
        yield Record.load(path)


def record_of(hardware: str, folder: Path = FOLDER) -> Record | None:
    """Return the newest record of a kind of hardware, or None."""
    held = [record for record in records(folder) if record.hardware_class == hardware]
    return max(held, key=lambda record: record.month, default=None)


def _terms(shape: Shape, *, dense: bool) -> int:
    return max(1, shape.dense_terms if dense else shape.sparse_terms)


def _between(points: Sequence[tuple[float, float]], at: float) -> float:
    """Return y at x on the line through sorted points in logarithms, level beyond its ends."""
    if at <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if at <= x1:
            share = math.log(at / x0) / math.log(x1 / x0) if x1 > x0 else 0.0
            return float(y0 * (y1 / y0) ** share)
    return points[-1][1]
