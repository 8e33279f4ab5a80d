"""``dynamic8``: the dynamic map of 8-bit optimisers over blocks of 64. Lossy; ratio about 1.94 over bfloat16.

Small values keep their relative precision where ``int8`` loses them, large ones are coarser: for columns of heavy
tails, gradients above all.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from store.codecs import blocks
from store.codecs.contract import CODECS, Array, ZarrForm
from store.schema import Column
from store.summary import bfloat16_bits, float32_of_bits

_DECADES = 7


@functools.cache
def code_values() -> Array:
    """Return the 256 values a byte stands for, ascending, ``float32``.

    Decade d (0 to 6) holds 2^d values of each sign: the middles of 2^d equal steps from 0.1 to 1, times
    10^(d − 6). Then 0 and 1.
    """
    found = [0.0, 1.0]
    for decade in range(_DECADES):
        edges = np.linspace(0.1, 1.0, 2**decade + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - _DECADES + 1)
        found += [*middles, *-middles]
    return np.sort(np.array(found, np.float32))


@functools.cache
def _nearest() -> Array:
    """Return the code of every bfloat16 within [-1, 1], by its bits; of two equally near the lower."""
    values = float32_of_bits(np.arange(1 << 16, dtype=np.uint16))
    table = code_values().astype(np.float64)
    inside = np.where(np.abs(values) <= 1, values, 0).astype(np.float64)
    return np.searchsorted((table[:-1] + table[1:]) / 2, inside).astype(np.uint8)


@CODECS.register("dynamic8")
@dataclass(frozen=True, kw_only=True, slots=True)
class Dynamic8:
    """Rounds to one of 256 values of the dynamic map of each block of 64 values of a row.

    The error is at most half the gap between the two values of the map around ``value / s``, times s, where s is the
    block's largest magnitude rounded up to bfloat16, plus ``|value| / 256`` (the map is looked up by bfloat16), before
    the result is rounded to the column's own dtype.

    Source: Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (arXiv 2110.02861), dynamic tree
    quantisation; blocks of 64 within a row instead of 2048 across rows, so that any row decodes alone.
    """

    kind: ClassVar[str]

    @property
    def lossy(self) -> bool:
        """Always."""
        return True

    @property
    def plain(self) -> bool:
        """Never."""
        return False

    def refuses(self, column: Column) -> str | None:
        """Refuse integers and float64."""
        return blocks.refuses(column)

    def row_bytes(self, column: Column) -> int | None:
        """Return D + 2·ceil(D / 64)."""
        return blocks.row_bytes(column)

    def encode(self, chunk: Array, column: Column) -> Any:
        """Return coded rows; raises ``ValueError`` for values that are not finite."""
        x_RBK, scale_bits = blocks.normalised(chunk, column)
        return blocks.packed(_nearest()[bfloat16_bits(x_RBK)], scale_bits, column)

    def decode(self, coded: Any, out: Array, column: Column) -> None:
        """Return the map's values times scales."""
        code_RD, scale_RD = blocks.unpacked(coded, out, column)
        values_RD = code_values()[code_RD]
        values_RD *= scale_RD
        blocks.store_decoded(values_RD, out, column)

    def bound(self, chunk: Array, column: Column) -> Array:
        """Return the largest error each value may have, ``float64`` of the chunk's shape."""
        x_RBK = np.abs(blocks.normalised(chunk, column)[0].astype(np.float64))
        table = code_values().astype(np.float64)
        above = np.clip(np.searchsorted(table, x_RBK), 1, len(table) - 1)
        # A value beside an edge may be looked up on its other side.
        gap = np.maximum(table[above], x_RBK) - table[above - 1]
        beside = np.minimum(above + 1, len(table) - 1)
        gap = np.maximum(gap, table[beside] - table[beside - 1])
        return blocks.bound(gap / 2 + 2.0**-8 * x_RBK, chunk, column)

    def zarr_form(self, column: Column) -> ZarrForm:
        """Return coded rows."""
        return blocks.zarr_form(column, self.kind)
