"""Codes as a Polars lazy frame that reads what a query's conditions on ``latent`` allow, and nothing else.

The second door to Polars. Conditions are split where they are joined by AND, and those on ``latent`` alone are tried out on
every latent there is: whatever Polars can say of a latent is understood, and nothing else is guessed at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from store import tables

if TYPE_CHECKING:
    import polars as pl

Array = np.ndarray[Any, np.dtype[Any]]
Reader = Callable[[Array], Iterator[Any]]
"""Takes which latents may be wanted, ``bool[L]``; yields Arrow tables of all their codes, and maybe of others."""


def lazy_by_latent(latents: Array, read: Reader) -> pl.LazyFrame:
    """Return codes (``row, latent, value``) as a lazy frame; ``latents`` are those that ``read`` may leave out."""
    tables.polars()  # says so where it is not installed
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
