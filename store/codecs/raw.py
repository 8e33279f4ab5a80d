"""``raw``: the values as they stand, little-endian. Lossless; ratio 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from store.codecs.contract import CODECS, Array, ZarrForm, plain_form
from store.schema import Column


@CODECS.register("raw")
@dataclass(frozen=True, kw_only=True, slots=True)
class Raw:
    """Copies bytes; every bit pattern survives, NaN payloads included."""

    @property
    def lossy(self) -> bool:
        """Never."""
        return False

    @property
    def plain(self) -> bool:
        """Always."""
        return True

    def refuses(self, column: Column) -> str | None:
        """Return None: every dense column fits."""

    def row_bytes(self, column: Column) -> int | None:
        """Return the bytes of the row itself."""
        return column.row_bytes

    def encode(self, chunk: Array, column: Column) -> Any:
        """Return the chunk's own memory as bytes."""
        return chunk.reshape(-1).view(np.uint8)

    def decode(self, coded: Any, out: Array, column: Column) -> None:
        """Copy ``coded`` into ``out``."""
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(coded, np.uint8)

    def zarr_form(self, column: Column) -> ZarrForm:
        """Return the stored values and Zarr's ``bytes`` codec."""
        return plain_form(column)
