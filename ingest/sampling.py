"""A sample of rows: which of them a group keeps, by their ids alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ingest.contract import Array
from ingest.errors import IngestError

_ODD = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Every row with a chance of its own, whatever parts, batches and workers it goes through.

    A row is kept where a number drawn from (seed, row id) is below the share; of a part where none is, the row with the smallest.
    Numbers are those of SplitMix64 (Steele, Lea, Flood 2014), the id its counter.
    """

    share: float
    """Of the rows, above 0 and at most 1."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise IngestError(
                f"--sample is {self.share}; it is a share of the rows, above 0 and at most 1. Nothing was written.",
                kind="bad-number",
            )

    @classmethod
    def of_recipe(cls, recipe: Mapping[str, Any]) -> Self | None:
        """Return what a recipe says; None where a group keeps every row."""
        told = recipe.get("mask")
        return None if told is None else cls(share=float(told["share"]), seed=int(told["seed"]))

    def to_json(self) -> dict[str, Any]:
        """Return what a recipe keeps of it."""
        return {"share": repr(float(self.share)), "seed": self.seed}

    def kept(self, row_ids: Array) -> Array:
        """Return which rows of a part are kept, ``bool[R]``; at least one.

        Parameters
        ----------
        row_ids
            All of the part's.
        """
        drawn = draws(row_ids, self.seed)
        kept = drawn < self.share
        if len(kept) and not kept.any():
            kept[int(drawn.argmin())] = True
        return kept


def draws(row_ids: Array, seed: int) -> Array:
    """Return a number in [0, 1) for each row, ``float64[R]``."""
    with np.errstate(over="ignore"):
        state = np.asarray(row_ids, np.uint64) + np.uint64(seed % (1 << 64)) * np.uint64(_ODD[1])
        state = (state + np.uint64(1)) * np.uint64(_ODD[0])
        state = (state ^ (state >> np.uint64(30))) * np.uint64(_ODD[1])
        state = (state ^ (state >> np.uint64(27))) * np.uint64(_ODD[2])
        state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)).astype(np.float64) / float(1 << 53)
