"""Which keys a query may see by position alone, and what that makes of tiles.

Every position rule here (causal, window) leaves each query one interval of keys; all counts follow
from the intervals in closed form, and no ``[T, S]`` array is made unless one is asked for.

Dimensions: T queries, S keys, I query tiles, J key tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """The shape of one attention problem, without its values."""

    queries: int
    """Queries T."""
    keys: int
    """Keys S."""
    causal: bool
    """Whether a query sees no key behind its own position."""
    window: int | None = None
    """Where set, position i sees only positions j with ``|i - j| < window``."""
    query_start: int = 0
    """Position of the first query; keys start at position 0."""

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return the first key each query may see and the one after the last, ``int64[T]`` each."""
        position = torch.arange(self.query_start, self.query_start + self.queries)
        first, last = torch.zeros_like(position), torch.full_like(position, self.keys)
        if self.window is not None:
            first = (position - self.window + 1).clamp(min=0)
            last = (position + self.window).clamp(max=self.keys)
        if self.causal:
            last = torch.minimum(last, position + 1)
        return torch.minimum(first, last), last

    def visible(self, queries: slice = slice(None)) -> Tensor:
        """Return ``bool[t, S]``, true where one of some queries may see a key."""
        first, last = (bound[queries, None] for bound in self.bounds())
        key = torch.arange(self.keys)
        return (key >= first) & (key < last)

    def pairs(self) -> int:
        """Return the number of (query, key) pairs dense attention multiplies."""
        first, last = self.bounds()
        return int((last - first).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """What tiles of ``bq`` queries and ``bk`` keys make of a geometry."""

    seen: Tensor
    """int32[T, J]: keys of the tile that the query may see."""
    pairs: Tensor
    """int64[I, J]: visible pairs in the tile."""
    visible: Tensor
    """bool[I, J]: whether the tile has a visible pair: dense attention must multiply it."""
    full: Tensor
    """bool[I, J]: whether every pair of the tile is visible, so that it needs no mask."""
    covering: Tensor
    """bool[I, J]: whether every query of the tile that sees any key sees one in it."""
    rows: Tensor
    """int64[I]: queries in the tile, ``bq`` but in the last."""

    @property
    def tiles(self) -> int:
        """Tiles that dense attention must multiply."""
        return int(self.visible.sum())


@lru_cache(maxsize=32)
def layout(geometry: Geometry, bq: int, bk: int) -> Layout:
    """Return the tile layout of a geometry. Pure, and kept: it belongs to the shape, not to a plan."""
    first_T, last_T = geometry.bounds()
    low_J = torch.arange(0, geometry.keys, bk)
    high_J = (low_J + bk).clamp(max=geometry.keys)
    high_TJ = torch.minimum(last_T[:, None], high_J)
    seen_TJ = (high_TJ - torch.maximum(first_T[:, None], low_J)).clamp(min=0)
    rows_I = _by_tile((torch.ones_like(first_T))[:, None], bq)[:, 0]
    pairs_IJ = _by_tile(seen_TJ, bq)
    blind_TJ = (seen_TJ == 0) & (last_T > first_T)[:, None]
    return Layout(
        seen_TJ.int(),
        pairs_IJ,
        pairs_IJ > 0,
        pairs_IJ == rows_I[:, None] * bk,
        (pairs_IJ > 0) & (_by_tile(blind_TJ.long(), bq) == 0),
        rows_I,
    )


def _by_tile(values_TJ: Tensor, bq: int) -> Tensor:
    """Return sums over tiles of ``bq`` rows."""
    padded = torch.nn.functional.pad(values_TJ, (0, 0, 0, -len(values_TJ) % bq))
    return padded.view(-1, bq, values_TJ.shape[1]).sum(1)
