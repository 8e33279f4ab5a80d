"""Tables as Polars lazy frames: over explicit committed files, never globs, and codes by latent.

The door to Polars. A frame of codes reads what a query's conditions on ``latent`` allow, and nothing else: conditions are
split where they are joined by AND, and those on ``latent`` alone are tried out on every latent there is. So whatever Polars
can say of a latent is understood, and nothing is guessed at.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from store.errors import InvalidInputError

if TYPE_CHECKING:
    import polars as pl
    from polars import LazyFrame as LazyFrame

Array = np.ndarray[Any, np.dtype[Any]]
Reader = Callable[[Array], Iterator[Any]]
"""Takes which latents may be wanted, ``bool[L]``; yields Arrow tables of all their codes, and maybe of others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Some rows of a verified file (or of its bytes), as a source of ``lazy``."""

    source: Path | bytes
    low: int
    rows: int


def polars() -> Any:
    """Return the package, or raise ``missing-package``."""
    try:
        import polars
    except ModuleNotFoundError as error:
        raise InvalidInputError(
            "lazy tables need the package polars, which is not installed. Nothing was read. Install it "
            "(pip install polars), or use .arrow(name).",
            kind="missing-package",
        ) from error
    return polars


def lazy(sources: Sequence[Path | bytes | Slice], schema: Any) -> pl.LazyFrame:
    """Return a Polars lazy frame over verified files, their bytes or slices of them, one below the other.

    Raises
    ------
    InvalidInputError
        ``missing-package`` where Polars is not installed.
    """
    polars()
    import polars as pl

    frames: list[pl.LazyFrame] = []
    for whole, run in itertools.groupby(sources, key=lambda source: isinstance(source, Path)):
        pieces = list(run)
        frames += [_scan(pieces)] if whole else map(_piece, pieces)
    if not frames:
        return from_arrow(schema.empty_table())
    return frames[0] if len(frames) == 1 else pl.concat(frames)


def _scan(paths: Sequence[Any]) -> pl.LazyFrame:
    import polars as pl

    # A group may be called a=b; that makes no column of it.
    return pl.scan_parquet([str(path) for path in paths], glob=False, hive_partitioning=False)


def _piece(source: Any) -> pl.LazyFrame:
    import polars as pl

    if not isinstance(source, Slice):
        return pl.read_parquet(source).lazy()
    if isinstance(source.source, Path):
        return _scan([source.source]).slice(source.low, source.rows)
    return pl.read_parquet(source.source).slice(source.low, source.rows).lazy()


def from_arrow(data: Any) -> pl.LazyFrame:
    """Return an Arrow table as a Polars lazy frame."""
    import polars as pl

    frame = pl.from_arrow(data)
    assert isinstance(frame, pl.DataFrame)
    return frame.lazy()


def lazy_by_latent(latents: Array, read: Reader) -> pl.LazyFrame:
    """Return codes (``row, latent, value``) as a lazy frame; ``latents`` are those that ``read`` may leave out."""
    polars()  # says so where it is not installed
    import polars as pl
    from polars.io.plugins import register_io_source

    def source(
        with_columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        del batch_size
        left = n_rows
        for data in read(_allowed(predicate, latents)):
            frame = pl.from_arrow(data if left is None else data.slice(0, left))
            assert isinstance(frame, pl.DataFrame)
            left = None if left is None else left - len(frame)
            found = frame if predicate is None else frame.filter(predicate)
            yield found if with_columns is None else found.select(with_columns)
            if left == 0:
                return

    schema = pl.Schema({"row": pl.Int64(), "latent": pl.UInt32(), "value": pl.Float32()})
    made: pl.LazyFrame = register_io_source(source, schema=schema)
    return made


def _allowed(predicate: pl.Expr | None, latents: Array) -> Array:
    """Return which latents a predicate may hold for, ``bool[L]``."""
    import polars as pl

    allowed = np.ones(len(latents), bool)
    frame = pl.DataFrame({"latent": latents}, schema={"latent": pl.UInt32})
    for condition in [] if predicate is None else _conjuncts(predicate):
        if condition.meta.root_names() == ["latent"]:
            met = frame.select(condition.alias("met"))["met"]
            allowed &= met.fill_null(value=False).to_numpy()
    return allowed


def _conjuncts(predicate: pl.Expr) -> list[pl.Expr]:
    """Return conditions that all hold where a predicate does: its two sides where it is nothing but their AND."""
    sides = predicate.meta.pop()
    if len(sides) == 2:
        for one, other in (sides, sides[::-1]):
            if predicate.meta.eq(one & other):
                return [*_conjuncts(one), *_conjuncts(other)]
    return [predicate]
