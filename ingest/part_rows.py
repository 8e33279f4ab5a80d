"""The rows of a part, its sequences as a model takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ingest.contract import Array
from ingest.plan import Batch, Padded, padded
from store import Store
from store.tables import column


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PartRows:
    """A part's tables of tokens and sequences."""

    part: int
    columns: Mapping[str, Array]
    """The whole tokens table."""
    sequences: Any
    """The whole table of sequences."""
    bounds: Array
    """``int64[S + 1]``: where sequences begin among the part's rows, and the end."""

    @classmethod
    def of(cls, store: Store, part: int) -> Self:
        """Read them."""
        commit = store.view.commit("tokens", part)
        tokens, sequences = (
            store.view.table(commit, f"{name}.parquet") for name in ("tokens", "sequences")
        )
        lengths = column(sequences, "rows").astype(np.int64)
        return cls(
            part=part,
            columns={name: column(tokens, name) for name in tokens.column_names},
            sequences=sequences,
            bounds=np.concatenate([[0], np.cumsum(lengths)]),
        )

    @property
    def lengths(self) -> Array:
        """Rows of each sequence."""
        return np.diff(self.bounds)

    def laid(
        self, batch: Batch, pad_id: int, chosen: Sequence[int] | Array | None = None
    ) -> Padded:
        """Return a batch as a model takes it; of sequences that were chosen instead of its own, where some were.

        Parameters
        ----------
        chosen
            ``[S']``: which sequence of the part stands for each that the batch counts.
        """
        at = np.arange(len(self.lengths)) if chosen is None else np.asarray(chosen)
        return padded(
            self.columns["token_id"], self.bounds[:-1][at], self.lengths[at], batch, pad_id
        )

    def rows_of(self, chosen: Sequence[int] | Array) -> Array:
        """Return where the rows of some sequences are among the part's, ``int64[R]``, sequence by sequence."""
        ends = zip(self.bounds[:-1][chosen], self.bounds[1:][chosen], strict=True)
        return np.concatenate([np.arange(low, high) for low, high in ends])

    def grids(self, chosen: Sequence[int] | Array) -> list[str]:
        """Return the grids of those among some sequences that have one."""
        told = self.sequences.column("grid").to_pylist()
        return [told[at] for at in chosen if told[at]]
