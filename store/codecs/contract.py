"""What a codec promises: chunk values to bytes and back, and the Zarr array those bytes are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from store.registry import Registry
from store.schema import DTYPES, Column

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ZarrForm:
    """The Zarr array a coded column is by itself."""

    data_type: str
    row_shape: tuple[int, ...]
    """Shape of a row; as many dimensions as the column's own."""
    fill_value: Any
    chain: tuple[dict[str, Any], ...]
    """Codecs of an inner chunk, without the closing crc32c."""
    attributes: dict[str, Any] = field(default_factory=dict)


class Codec(Protocol):
    """Turns the 256 rows of a chunk into bytes and back; the crc32c behind them is the shard's affair."""

    @property
    def lossy(self) -> bool:
        """Whether decoded values may differ; then commits record by how much."""

    @property
    def plain(self) -> bool:
        """Whether a coded chunk is its stored values, so that it can be read into place."""

    def refuses(self, column: Column) -> str | None:
        """Return why a column cannot be coded, or None."""

    def row_bytes(self, column: Column) -> int | None:
        """Return the coded bytes of a row where that is fixed, so that offsets are arithmetic."""

    def encode(self, chunk: Array, column: Column) -> Any:
        """Return a buffer of the coded chunk (``[256, *shape]``, C-contiguous, stored dtype)."""

    def decode(self, coded: Any, out: Array, column: Column) -> None:
        """Fill ``out`` (C-contiguous, stored dtype) with the decoded chunk.

        Raises
        ------
        ValueError
            The bytes are no such chunk; nothing larger than ``out`` is ever made of them.
        """

    def zarr_form(self, column: Column) -> ZarrForm:
        """Return what a Zarr reader sees."""


CODECS = Registry("codec", "store.codecs")
LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def plain_form(column: Column, *chain: dict[str, Any]) -> ZarrForm:
    """Return the form of a column whose values a Zarr reader sees as they are stored."""
    logical = {"logical_dtype": column.dtype} if column.dtype == "bfloat16" else {}
    return ZarrForm(
        data_type=DTYPES[column.dtype].stored.name,
        row_shape=column.shape,
        fill_value=DTYPES[column.dtype].fill,
        chain=(LITTLE, *chain),
        attributes=logical,
    )
