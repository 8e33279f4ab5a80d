"""Mergeable part summaries of dense columns: rows, mean norm, largest magnitude, non-finite values.

They stand in every commit, so that a harvest of NaNs is refused at once and scales are known without reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def bfloat16_bits(values: Array) -> Array:
    """Round float32 to bfloat16 bits (``uint16``), to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    nan = np.isnan(values)
    if nan.any():
        rounded = np.where(nan, (bits >> np.uint32(16)) | np.uint32(0x40), rounded)
    return rounded.astype(np.uint16)


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

    def update(self, values: Array) -> None:
        """Add rows ``[R, *shape]`` of a float dtype (bfloat16 already widened)."""
        if not len(values):
            return
        if values.dtype.kind != "f":
            values = values.astype(np.float64)
        flat = values.reshape(len(values), -1)
        if flat.dtype == np.float16:
            flat = flat.astype(np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            squares = np.einsum("rd,rd->r", flat, flat, dtype=np.float64, casting="same_kind")
            bad = ~(np.isfinite(flat.max(axis=1)) & np.isfinite(flat.min(axis=1)))
        if bad.any():
            if self.first_bad_row < 0:
                self.first_bad_row = self.rows + int(np.argmax(bad))
            self.nonfinite += int((~np.isfinite(flat[bad])).sum())
            squares, flat = squares[~bad], flat[~bad]
        self.norm_sum += float(np.sqrt(squares).sum())
        if flat.size:
            self.max_abs = max(self.max_abs, float(flat.max()), -float(flat.min()))
        self.rows += len(values)

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
