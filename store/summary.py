"""Mergeable part summaries of dense columns: rows, mean norm, largest magnitude, non-finite values.

They stand in every commit, so that a harvest of NaNs is refused at once and scales are known without reading.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

BLOCK_ITEMS = 1 << 16
"""As float64 half a MiB: of 2^13 to 2^18 the fastest, measured on a server core."""
Array = np.ndarray[Any, np.dtype[Any]]


def blocks(rows: int, row_items: int) -> Iterator[slice]:
    """Yield slices of rows that are worked on together: so few that they stay in the processor's cache."""
    step = max(1, BLOCK_ITEMS // max(1, row_items))
    for low in range(0, rows, step):
        yield slice(low, min(low + step, rows))


def _like(block: Array, dtype: type[Any], held: dict[str, Array]) -> Array:
    """Return memory of a block's shape that was used for an earlier, larger one."""
    found = held.get(dtype.__name__)
    if found is None:
        found = held[dtype.__name__] = np.empty(block.shape, dtype)
    return found[: len(block)]


def bfloat16_bits(values: Array) -> Array:
    """Round float32 to bfloat16 bits (``uint16``), to nearest even; NaN stays NaN."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    out = np.empty(flat.shape, np.uint16)
    held = np.empty(min(len(flat), BLOCK_ITEMS), np.uint32)
    for some in blocks(len(flat), 1):
        bits, rounded = flat[some].view(np.uint32), held[: some.stop - some.start]
        np.right_shift(bits, np.uint32(16), out=rounded)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += bits
        np.right_shift(rounded, np.uint32(16), out=rounded)
        nan = np.isnan(flat[some])
        if nan.any():
            rounded[nan] = (bits[nan] >> np.uint32(16)) | np.uint32(0x40)
        out[some] = rounded
    return out.reshape(np.shape(values))


def float32_of_bits(bits: Array, out: Array | None = None) -> Array:
    """Widen bfloat16 bits (``uint16``) to float32, exactly."""
    wide = np.empty(bits.shape, np.float32) if out is None else out
    np.left_shift(bits, np.uint32(16), out=wide.view(np.uint32), dtype=np.uint32)
    return wide


def widened(stored: Array, bits: bool) -> Array:  # noqa: FBT001 - a property of the column
    """Return stored values as the numbers they stand for."""
    return float32_of_bits(stored) if bits else stored


@dataclass(kw_only=True, slots=True)
class Loss:
    """What a lossy codec cost so far: largest absolute error, and squared error over squared values."""

    max_error: float = 0.0
    squared_error: float = 0.0
    squares: float = 0.0

    def update(self, values: Array, decoded: Array) -> None:
        """Add values and what they are decoded to."""
        wide = values.astype(np.float64).reshape(-1)
        error = decoded.astype(np.float64).reshape(-1) - wide
        self.max_error = max(self.max_error, float(np.abs(error).max(initial=0.0)))
        self.squared_error += float(error @ error)
        self.squares += float(wide @ wide)

    def to_json(self) -> dict[str, Any]:
        """Return the form that stands in a commit."""
        relative = self.squared_error / self.squares if self.squares else 0.0
        return {"max_error": self.max_error, "relative_squared_error": relative}


@dataclass(kw_only=True, slots=True)
class Summary:
    """Running summary of one dense column of one part."""

    rows: int = 0
    norm_sum: float = 0.0
    max_abs: float = 0.0
    nonfinite: int = 0
    first_bad_row: int = -1

    def update(self, values: Array, *, bits: bool = False) -> None:
        """Add rows ``[R, *shape]``; of bfloat16 as bits where ``bits``."""
        flat = values.reshape(len(values), math.prod(values.shape[1:]))
        held: dict[str, Array] = {}  # used again for every block: fresh memory costs page faults
        for some in blocks(*flat.shape):
            block = flat[some]
            if bits:
                block = float32_of_bits(block, _like(block, np.float32, held))
            wide = _like(block, np.float64, held)
            with np.errstate(invalid="ignore", over="ignore"):
                np.copyto(wide, block)
                squares = np.einsum("rd,rd->r", wide, wide)
            if not np.isfinite(squares).all():
                block, squares = self._leave_out(block, squares)
            self.norm_sum += float(np.sqrt(squares).sum())
            if block.size:
                self.max_abs = max(self.max_abs, float(block.max()), -float(block.min()))
            self.rows += some.stop - some.start

    def _leave_out(self, block: Array, squares: Array) -> tuple[Array, Array]:
        """Count values that are not finite; return the rows without any, and their squares."""
        finite = np.isfinite(block)
        good = finite.all(axis=1)
        if not good.all() and self.first_bad_row < 0:
            self.first_bad_row = self.rows + int(np.argmin(good))
        self.nonfinite += int((~finite).sum())
        return block[good], squares[good]

    def merge(self, other: Summary) -> Summary:
        """Return the summary of both sets of rows."""
        return Summary(
            rows=self.rows + other.rows,
            norm_sum=self.norm_sum + other.norm_sum,
            max_abs=max(self.max_abs, other.max_abs),
            nonfinite=self.nonfinite + other.nonfinite,
            first_bad_row=self.first_bad_row
            if self.first_bad_row >= 0 or other.first_bad_row < 0
            else self.rows + other.first_bad_row,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the form that stands in a commit."""
        mean = self.norm_sum / self.rows if self.rows else 0.0
        return {"mean_norm": mean, "max_abs": self.max_abs, "nonfinite": self.nonfinite}
