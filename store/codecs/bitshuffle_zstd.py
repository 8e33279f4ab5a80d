"""``bitshuffle-zstd``: bits of equal weight side by side, then Zstandard, in a Blosc frame. Lossless.

Exponents and signs of activations repeat, mantissas do not: side by side the former compress. Every Zarr v3
reader knows the codec (``blosc``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from store.codecs.contract import CODECS, Array, ZarrForm, plain_form
from store.layout import CHUNK_ROWS
from store.schema import Column

LEVEL = 1  # 3 is twice as slow for 0.5 % on the demo's bfloat16 activations
_HEADER_BYTES = 16
_FRAME_BYTES = (1 << 31) - 1 - _HEADER_BYTES  # what one Blosc frame holds


@CODECS.register("bitshuffle-zstd")
@dataclass(frozen=True, kw_only=True, slots=True)
class BitshuffleZstd:
    """Bit-shuffles and compresses (Blosc, Zstandard level 1); every bit pattern survives."""

    @property
    def lossy(self) -> bool:
        """Never."""
        return False

    @property
    def plain(self) -> bool:
        """Never."""
        return False

    def refuses(self, column: Column) -> str | None:
        """Refuse rows whose chunk is larger than a frame."""
        size = column.row_bytes * CHUNK_ROWS
        return (
            f"a chunk of {size} bytes is more than one Blosc frame holds"
            if size > _FRAME_BYTES
            else None
        )

    def row_bytes(self, column: Column) -> int | None:
        """Return None: it depends on the values."""
        return None

    def encode(self, chunk: Array, column: Column) -> Any:
        """Return the Blosc frame."""
        from numcodecs.blosc import BITSHUFFLE, Blosc

        return Blosc(cname="zstd", clevel=LEVEL, shuffle=BITSHUFFLE).encode(
            chunk.reshape(-1).view(f"u{chunk.itemsize}")
        )

    def decode(self, coded: Any, out: Array, column: Column) -> None:
        """Undo ``encode``; sizes in the frame's header are checked before anything is expanded."""
        from numcodecs.blosc import Blosc

        head = bytes(memoryview(coded)[:_HEADER_BYTES])
        size, packed = (int.from_bytes(head[at : at + 4], "little") for at in (4, 12))
        if len(head) < _HEADER_BYTES or size != out.nbytes or packed != memoryview(coded).nbytes:
            msg = f"a frame of {packed} bytes for {size} where {out.nbytes} belong"
            raise ValueError(msg)
        try:
            Blosc().decode(np.frombuffer(coded, np.uint8), out.reshape(-1).view(np.uint8))
        except RuntimeError as error:
            raise ValueError(str(error)) from error

    def zarr_form(self, column: Column) -> ZarrForm:
        """Return the stored values and Zarr's ``blosc`` codec."""
        settings = {
            "cname": "zstd",
            "clevel": LEVEL,
            "shuffle": "bitshuffle",
            "typesize": column.stored.itemsize,
            "blocksize": 0,
        }
        return plain_form(column, {"name": "blosc", "configuration": settings})
