"""Parquet tables: schemas, bytes in and out, and lazy frames over explicit committed files, never globs.

The door to pyarrow and Polars. Files are small enough to be read whole, so size and crc32c of all bytes are
checked before any decoder sees them (Polars checks no page checksums).
"""

from __future__ import annotations

import hashlib
import io
import math
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
    from polars import LazyFrame as LazyFrame

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


def scalars_schema(columns: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> Any:
    """Return the schema of ``scalars.parquet``: ``row``, then each column by name, dtype and shape."""
    fields = [("row", pa.int64())]
    for name, (dtype, shape) in columns.items():
        kind = pa.from_numpy_dtype(dtype)
        fields.append((name, pa.list_(kind, math.prod(shape)) if shape else kind))
    return pa.schema(fields)


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
        # read_table goes through Arrow's dataset scanner, whose threads may outlive the interpreter: 11 of 26
        # short processes ended in abort() with it, none of 28 like this (pyarrow 26, two cores).
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            return file.read(columns=columns, use_threads=False)
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
        try:
            met = _met(data.column(name), operator, value)
        except (pa.ArrowException, TypeError, OverflowError, NotImplementedError) as error:
            raise InvalidInputError(
                f"where has ({name!r}, {operator!r}, {value!r}), which does not fit the column's type "
                f"{data.column(name).type} ({error}). Nothing was read. Mend the filter.",
                kind="bad-where",
            ) from error
        keep &= np.asarray(pc.fill_null(met, False))  # noqa: FBT003 - Arrow's own signature
    return keep


def _met(values: Any, operator: str, value: Any) -> Any:
    if operator in _OPERATORS:
        return _OPERATORS[operator](values, value)
    if operator == "in":
        return pc.is_in(values, value_set=pa.array(sorted(value), type=values.type))
    if operator in {"has", "lacks"}:
        bits = pc.bit_wise_and(values, pa.scalar(value, type=values.type))
        return pc.equal(bits, pa.scalar(value if operator == "has" else 0, type=values.type))
    raise InvalidInputError(
        f"where has the operator {operator!r}; known: == != < <= > >= in has lacks. Nothing was read. "
        "Mend the filter.",
        kind="bad-where",
    )


def _type_name(kind: Any) -> str:
    """Return the name a type has in digests: NumPy's for numbers, ``string``, ``list[n] of …``."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "string"
    if pa.types.is_fixed_size_list(kind):
        return f"list[{kind.list_size}] of {_type_name(kind.value_type)}"
    return str(np.dtype(kind.to_pandas_dtype()).name)


def column_hash(values: Any) -> str:
    """Return the sha256 of a table column: its type and length, which values are null, and the values.

    Strings are hashed as lengths (int64) and contents, numbers as little-endian arrays (nulls as zeros),
    fixed-size lists as their flat elements.
    """
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    hasher = hashlib.sha256(f"{_type_name(array.type)} {len(array)}\n".encode())
    hasher.update(np.packbits(np.asarray(array.is_null())).tobytes())
    _hash_values(hasher, array)
    return hasher.hexdigest()


def _hash_values(hasher: Any, array: Any) -> None:
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        texts = [b"" if text is None else text.encode() for text in array.to_pylist()]
        hasher.update(np.array([len(text) for text in texts], "<i8").tobytes())
        hasher.update(b"".join(texts))
    elif pa.types.is_fixed_size_list(array.type):
        _hash_values(hasher, array.flatten())
    else:
        filled = array.fill_null(0) if array.null_count else array
        hasher.update(np.ascontiguousarray(filled.to_numpy(zero_copy_only=False)))


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
        paths = [str(source) for source in sources]
        # A group may be called a=b; that makes no column of it.
        return pl.scan_parquet(paths, glob=False, hive_partitioning=False)
    return pl.concat([pl.read_parquet(source).lazy() for source in sources])


def from_arrow(data: Any) -> pl.LazyFrame:
    """Return an Arrow table as a Polars lazy frame."""
    import polars as pl

    frame = pl.from_arrow(data)
    assert isinstance(frame, pl.DataFrame)
    return frame.lazy()
