"""Rows in memory as a feed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jobs.batches import Batch, Widths
from jobs.dictionaries.contract import derive_seed, require


@dataclass(frozen=True)
class ArrayFeed:
    """Rows in memory as a feed: every epoch is a fresh permutation, batches run over epoch ends.

    Parameters
    ----------
    x
        float32 [R, D]; kept, not copied.
    batch_rows
        Rows of every batch, at most R.
    seed
        Decides the permutations.
    y, g
        Targets float32 [R, E] and gradients [R, D], where there are any.
    columns
        Which columns the rows are made of; None: one that is read, and one that is rebuilt.
    """

    x: Tensor
    batch_rows: int
    seed: int = 0
    y: Tensor | None = None
    g: Tensor | None = None
    columns: Widths | None = None
    rows: int = field(init=False)
    widths: Widths = field(init=False)

    def __post_init__(self) -> None:
        rows, width = self.x.shape
        object.__setattr__(self, "rows", rows)
        out_width = width if self.y is None else self.y.shape[1]
        widths = self.columns or Widths((width,), (out_width,))
        object.__setattr__(self, "widths", widths)
        fits = 0 < self.batch_rows <= rows
        require("batch_rows", self.batch_rows, f"in [1, {rows}], the rows given", holds=fits)

    def _order(self, epoch: int) -> Tensor:
        seed = derive_seed(self.seed, "feed/epoch", epoch)
        return torch.randperm(self.rows, generator=torch.Generator().manual_seed(seed))

    def batches(self, start: int) -> Iterator[Batch]:
        """Yield batches from batch ``start`` on, without an end."""
        epoch, offset = divmod(start * self.batch_rows, self.rows)
        order = self._order(epoch)[offset:]
        while True:
            while len(order) < self.batch_rows:
                epoch += 1
                order = torch.cat([order, self._order(epoch)])
            row_ids, order = order[: self.batch_rows], order[self.batch_rows :]
            rows = (
                t if t is None else t.index_select(0, row_ids) for t in (self.x, self.y, self.g)
            )
            yield Batch(row_ids, *rows)  # type: ignore[arg-type]

    def state(self) -> dict[str, Any]:
        """Return the seed and a digest of the rows."""
        digest = hashlib.sha256()
        for values in (self.x, self.y, self.g):
            if values is not None:
                digest.update(values.contiguous().numpy().tobytes())
        found = {"seed": self.seed, "batch_rows": self.batch_rows, "sha256": digest.hexdigest()}
        if self.widths != Widths.of(self.x.shape[1]):
            found["widths"] = [list(self.widths.inputs), list(self.widths.outputs)]
        return found
