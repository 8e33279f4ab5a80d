"""Parquet tables: schemas, bytes in and out, and lazy frames over explicit committed files, never globs.

The door to pyarrow and Polars. Files are small enough to be read whole, so size and crc32c of all bytes are
checked before any decoder sees them (Polars checks no page checksums).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from store.errors import CorruptError, InvalidInputError

if TYPE_CHECKING:
    import polars as pl

ROW_GROUP_ROWS = 65_536

TOKENS = pa.schema(
    [
        ("row", pa.int64()),
        ("token_id", pa.int32()),
        ("seq_id", pa.int64()),
        ("doc_id", pa.int64()),
        ("pos", pa.int32()),
        ("char_start", pa.int32()),
        ("char_end", pa.int32()),
        ("split", pa.uint8()),
        ("flags", pa.uint16()),
    ]
)
SEQUENCES = pa.schema(
    [
        ("seq_id", pa.int64()),
        ("doc_id", pa.int64()),
        ("first_row", pa.int64()),
        ("rows", pa.int32()),
        ("split", pa.uint8()),
        ("pair_id", pa.int64()),
        ("role", pa.string()),
        ("grid", pa.string()),
    ]
)
DOCUMENTS = pa.schema(
    [
        ("doc_id", pa.int64()),
        ("name", pa.string()),
        ("sha256", pa.string()),
        ("split", pa.uint8()),
        ("first_row", pa.int64()),
        ("rows", pa.int32()),
        ("char_start", pa.int32()),
        ("char_end", pa.int32()),
        ("text", pa.string()),
    ]
)
CODES = pa.schema([("row", pa.int64()), ("latent", pa.uint32()), ("value", pa.float32())])
ROWS = pa.schema([("row", pa.int64())])

Table = pa.Table


def table(columns: Mapping[str, Any], schema: Any = None) -> Any:
    """Return an Arrow table of columns (arrays or lists); 2-d arrays become fixed-size lists."""
    arrays = {}
    for name, values in columns.items():
        kind = schema.field(name).type if schema is not None else None
        if isinstance(values, np.ndarray) and values.ndim > 1:
            width = int(np.prod(values.shape[1:]))
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)
        else:
            arrays[name] = pa.array(values, type=kind)
    return pa.table(arrays, schema=schema)


def concat(tables: Sequence[Any]) -> Any:
    """Return tables of one schema one below the other."""
    return pa.concat_tables(tables)


def column(data: Any, name: str) -> np.ndarray[Any, np.dtype[Any]]:
    """Return a column as an array; fixed-size lists become 2-d."""
    chunked = data.column(name)
    if pa.types.is_fixed_size_list(chunked.type):
        flat = chunked.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return np.asarray(flat).reshape(len(chunked), chunked.type.list_size)
    return np.asarray(chunked.to_numpy())


def encode(data: Any) -> bytes:
    """Return the Parquet bytes of an Arrow table: zstd, row groups of 65 536 rows, statistics."""
    sink = io.BytesIO()
    pq.write_table(
        data,
        sink,
        compression="zstd",
        row_group_size=ROW_GROUP_ROWS,
        write_statistics=True,
        write_page_checksum=True,
    )
    return sink.getvalue()


def decode(data: bytes, where: str = "table", columns: Sequence[str] | None = None) -> Any:
    """Return the Arrow table of Parquet bytes, or raise ``table-damaged``."""
    try:
        return pq.read_table(io.BytesIO(data), columns=columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptError(
            f"{where} is no readable Parquet file ({error}). None of its rows were returned.",
            kind="table-damaged",
            path=where,
        ) from error


def write_parquet(columns: Mapping[str, Any]) -> bytes:
    """Return the Parquet bytes of named columns (arrays or lists of equal length)."""
    return encode(table(columns))


def read_parquet(data: bytes) -> dict[str, Any]:
    """Undo ``write_parquet``: numeric columns as arrays, others as lists."""
    decoded = decode(data)
    columns: dict[str, Any] = {}
    for name in decoded.column_names:
        kind = decoded.column(name).type
        plain = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        whole = plain or pa.types.is_fixed_size_list(kind)
        columns[name] = column(decoded, name) if whole else decoded.column(name).to_pylist()
    return columns


_OPERATORS = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
Condition = tuple[str, str, Any]


def select(data: Any, where: Sequence[Condition]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which rows of an Arrow table meet every ``(column, operator, value)`` of ``where``.

    Operators are ``== != < <= > >= in`` and, for bit flags, ``has`` and ``lacks``.
    """
    keep = np.ones(len(data), bool)
    for name, operator, value in where:
        values = data.column(name)
        if operator in _OPERATORS:
            met = _OPERATORS[operator](values, value)
        elif operator == "in":
            met = pc.is_in(values, value_set=pa.array(list(value), type=values.type))
        elif operator in {"has", "lacks"}:
            bits = pc.bit_wise_and(values, pa.scalar(value, type=values.type))
            met = pc.equal(bits, value) if operator == "has" else pc.equal(bits, 0)
        else:
            raise InvalidInputError(
                f"where has the operator {operator!r}; known: == != < <= > >= in has lacks. "
                "Nothing was read.",
                kind="bad-where",
            )
        keep &= np.asarray(pc.fill_null(met, False))  # noqa: FBT003 - Arrow's own signature
    return keep


def lazy(sources: Sequence[Path | bytes], schema: Any) -> pl.LazyFrame:
    """Return a Polars lazy frame over verified files (or their bytes).

    Raises
    ------
    InvalidInputError
        ``missing-package`` where Polars is not installed.
    """
    try:
        import polars as pl
    except ModuleNotFoundError as error:
        raise InvalidInputError(
            "lazy tables need the package polars, which is not installed. Nothing was read. Install it "
            "(pip install polars), or use .arrow(name).",
            kind="missing-package",
        ) from error
    if not sources:
        empty = pl.from_arrow(schema.empty_table())
        assert isinstance(empty, pl.DataFrame)
        return empty.lazy()
    if all(isinstance(source, Path) for source in sources):
        return pl.scan_parquet([str(source) for source in sources], glob=False)
    return pl.concat([pl.read_parquet(source).lazy() for source in sources])


def from_arrow(data: Any) -> pl.LazyFrame:
    """Return an Arrow table as a Polars lazy frame."""
    import polars as pl

    frame = pl.from_arrow(data)
    assert isinstance(frame, pl.DataFrame)
    return frame.lazy()
