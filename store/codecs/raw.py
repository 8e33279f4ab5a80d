"""``raw``: the values as they stand, little-endian. Lossless; ratio 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from store.codecs.contract import CODECS, Array


@CODECS.register("raw")
@dataclass(frozen=True, kw_only=True, slots=True)
class Raw:
    """Copies bytes; every bit pattern survives, NaN payloads included."""

    @property
    def fixed_size(self) -> bool:
        """Always: offsets follow from the column's shape."""
        return True

    def encode(self, chunk: Array) -> Any:
        """Return the chunk's own memory as bytes."""
        return chunk.reshape(-1).view(np.uint8)

    def decode(self, coded: Any, out: Array) -> None:
        """Copy ``coded`` into ``out``."""
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(coded, np.uint8)

    def zarr_codecs(self) -> list[dict[str, Any]]:
        """Return Zarr's ``bytes`` codec."""
        return [{"name": "bytes", "configuration": {"endian": "little"}}]
