"""``int8``: every value a signed byte times the scale of its block of 64. Lossy; ratio about 1.94 over bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from store.codecs import blocks
from store.codecs.contract import CODECS, Array, ZarrForm
from store.schema import Column

STEPS = 127


@CODECS.register("int8")
@dataclass(frozen=True, kw_only=True, slots=True)
class Int8Rows:
    """Rounds to one of 255 equal steps of each block of 64 values of a row.

    ``|decoded − value| ≤ s / 254`` before the result is rounded to the column's own dtype, where s is the block's
    largest magnitude rounded up to bfloat16 (at most 1/128 more).
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
        x_RBK *= STEPS
        return blocks.packed(np.rint(x_RBK, out=x_RBK).astype(np.int8), scale_bits, column)

    def decode(self, coded: Any, out: Array, column: Column) -> None:
        """Return steps times scales."""
        code_RD, scale_RD = blocks.unpacked(coded, out, column)
        values_RD = code_RD.view(np.int8).astype(np.float32)
        values_RD /= STEPS
        values_RD *= scale_RD
        blocks.store_decoded(values_RD, out, column)

    def bound(self, chunk: Array, column: Column) -> Array:
        """Return the largest error each value may have, ``float64`` of the chunk's shape."""
        return blocks.bound(np.array(0.5 / STEPS), chunk, column)

    def zarr_form(self, column: Column) -> ZarrForm:
        """Return coded rows."""
        return blocks.zarr_form(column, self.kind)
