"""What a codec promises: chunk values to bytes and back, and how Zarr names the chain."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from store.registry import Registry

Array = np.ndarray[Any, np.dtype[Any]]


class Codec(Protocol):
    """Turns the 256 rows of a chunk into bytes and back; the crc32c behind them is the shard's affair."""

    @property
    def fixed_size(self) -> bool:
        """Whether coded chunks are as large as decoded ones, so that offsets are arithmetic."""

    def encode(self, chunk: Array) -> Any:
        """Return a buffer of the coded chunk (C-contiguous stored dtype in)."""

    def decode(self, coded: Any, out: Array) -> None:
        """Fill ``out`` with the decoded chunk."""

    def zarr_codecs(self) -> list[dict[str, Any]]:
        """Return the codec chain of an inner chunk, without the closing crc32c."""


CODECS = Registry("codec", "store.codecs")
