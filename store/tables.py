"""Parquet tables: schemas, and bytes in and out.

The door to pyarrow, with ``store.conditions``. Files are small enough to be read whole, so size and crc32c of all bytes are
checked before any decoder sees them (Polars checks no page checksums).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from store import parquet_bounds
from store.errors import CorruptError, InvalidInputError

ROW_GROUP_ROWS = 65_536
SIDE_ROWS = 1 << 24
"""Rows of a table that no commit counts: tombstones, segments of pins, lists of indexes."""

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
TOMBSTONE = pa.schema(
    [
        ("doc_id", pa.int64()),
        ("part", pa.int32()),
        ("seen_parts", pa.int32()),
        ("reason", pa.string()),
    ]
)

SEGMENT = pa.schema(
    [("group", pa.string()), ("part", pa.int64()), ("n", pa.int64()), ("commit", pa.string())]
)
INDEX_PARTS = pa.schema([("part", pa.int64()), ("commit", pa.string()), ("rows", pa.int64())])
INDEX_LATENTS = pa.schema([("latent", pa.uint32()), ("codes", pa.int64())])

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


def masked(data: Any, keep: np.ndarray[Any, np.dtype[np.bool_]]) -> Any:
    """Return the rows of a table where ``keep`` holds."""
    return data.filter(pa.array(keep))


def column(data: Any, name: str) -> np.ndarray[Any, np.dtype[Any]]:
    """Return a column as an array; fixed-size lists become 2-d."""
    chunked = data.column(name)
    if pa.types.is_fixed_size_list(chunked.type):
        flat = chunked.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return np.asarray(flat).reshape(len(chunked), chunked.type.list_size)
    if chunked.null_count or not (
        pa.types.is_integer(chunked.type) or pa.types.is_floating(chunked.type)
    ):
        return np.asarray(chunked.to_numpy())
    # Arrow's own way imports pandas where it is installed: 0.3 s of a process that reads one small table.
    dtype = np.dtype(chunked.type.to_pandas_dtype())
    pieces = [
        np.frombuffer(chunk.buffers()[1], dtype, len(chunk), chunk.offset * dtype.itemsize)
        for chunk in chunked.chunks
        if len(chunk)
    ]
    return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, dtype), *pieces])


def replaced(data: Any, name: str, values: Any) -> Any:
    """Return an Arrow table with other values in one column, of the type that was there."""
    at = data.schema.get_field_index(name)
    kind = data.schema.field(at)
    return data.set_column(at, kind, pa.array(values, type=kind.type))


def encode(data: Any) -> bytes:
    """Return the Parquet bytes of an Arrow table: zstd, row groups of 65 536 rows, statistics.

    Raises
    ------
    InvalidInputError
        ``table-too-large``: it holds more text than readers take.
    """
    text = sum(column.nbytes for column in data.columns if pa.types.is_string(column.type))
    if text > parquet_bounds.MAX_TEXT_BYTES:
        raise _too_large(f"{text:,} bytes of text")
    sink = io.BytesIO()
    pq.write_table(
        data,
        sink,
        compression="zstd",
        row_group_size=ROW_GROUP_ROWS,
        write_statistics=True,
        write_page_checksum=True,
    )
    found = sink.getvalue()
    try:
        check_bytes(found, "a table", len(data))
    except CorruptError as error:
        raise _too_large(error.message) from error
    return found


def _too_large(found: str) -> InvalidInputError:
    return InvalidInputError(
        f"a table was to be written that readers would refuse: {found} (of text they take "
        f"{parquet_bounds.MAX_TEXT_BYTES:,} bytes). Nothing of it was written; committed parts stand. Make the store with "
        "smaller part_rows.",
        kind="table-too-large",
    )


def check_bytes(data: bytes, where: str, rows: int, schema: Any = None) -> None:
    """Raise ``table-damaged`` unless Parquet bytes are a table of so many rows at most, and become no more than they take.

    Parameters
    ----------
    schema
        Its columns; None where any may be there.
    """
    with _readable(where):
        text = parquet_bounds.check_file(data, rows)
        if schema is not None:
            with pq.ParquetFile(pa.BufferReader(data)) as file:
                if not file.schema_arrow.equals(schema):
                    held = ", ".join(f"{one.name} {one.type}" for one in file.schema_arrow)
                    msg = f"its columns are {held[:200]}"
                    raise ValueError(msg)
        if text.suspects:
            _check_text(data, text)


def _check_text(data: bytes, text: parquet_bounds.Text) -> None:
    """Raise where the texts of dictionaries, each as often as it is named, are too long together."""
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        names = [file.metadata.schema.column(at).path for at in range(len(file.metadata.schema))]
    if len(set(names)) != len(names):
        msg = f"columns of it have one name: {', '.join(names)[:200]}"
        raise ValueError(msg)
    left = text.left
    for group, at in text.suspects:
        with pq.ParquetFile(pa.BufferReader(data), read_dictionary=[names[at]]) as file:
            some = file.read_row_group(group, columns=[names[at]], use_threads=False)
        for piece in some.column(0).chunks:
            if not pa.types.is_dictionary(piece.type):
                msg = f"{names[at]} is no column of text"
                raise ValueError(msg)
            lengths = pc.take(pc.binary_length(piece.dictionary), piece.indices)
            left -= pc.sum(lengths).as_py() or 0
    if left < 0:
        most = parquet_bounds.MAX_TEXT_BYTES
        msg = f"its texts would take {most - left} bytes, {most} at most"
        raise ValueError(msg)


def decode(data: bytes, where: str = "table", rows: int | None = None, schema: Any = None) -> Any:
    """Return the Arrow table of Parquet bytes, or raise ``table-damaged``.

    Parameters
    ----------
    rows, schema
        As in ``check_bytes``; None where they were checked, or where the bytes are our own.
    """
    # read_table goes through Arrow's dataset scanner, whose threads may outlive the interpreter: 11 of 26
    # short processes ended in abort() with it, none of 28 like this (pyarrow 26, two cores).
    if rows is not None:
        check_bytes(data, where, rows, schema)
    with _readable(where), pq.ParquetFile(pa.BufferReader(data)) as file:
        return file.read(use_threads=False)


def fits(data: Any, schema: Any, may_be_null: Collection[str] = ()) -> bool:
    """Return whether a table has just these columns, and a value wherever it must have one."""
    return bool(data.schema.equals(schema)) and not any(
        _nulls(data.column(name)) for name in schema.names if name not in may_be_null
    )


def _nulls(values: Any) -> int:
    """Return how many values are missing, those in lists counted."""
    inside = (
        sum(chunk.flatten().null_count for chunk in values.chunks)
        if pa.types.is_fixed_size_list(values.type)
        else 0
    )
    return int(values.null_count) + inside


_KEPT_GROUPS = 4


class TableFile:
    """A Parquet file whose bytes were checked, read by row groups; the last ones read stay decoded. Threads may share it."""

    def __init__(self, source: Path | bytes, where: str) -> None:
        self._where = where
        self._lock = threading.Lock()
        with _readable(where):
            self._file = (
                pq.ParquetFile(str(source), memory_map=True)
                if isinstance(source, Path)
                else pq.ParquetFile(pa.BufferReader(source))
            )
            meta = self._file.metadata
            sizes = [meta.row_group(number).num_rows for number in range(meta.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._groups: OrderedDict[int, Any] = OrderedDict()

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return int(self._starts[-1])

    @property
    def decoded(self) -> int:
        """Row groups that are held decoded."""
        return len(self._groups)

    def read(self, low: int, high: int) -> Any:
        """Return the rows ``low`` to ``high`` as an Arrow table; only the row groups that hold them are decoded."""
        first, last = np.searchsorted(self._starts, [low, max(high - 1, low)], side="right") - 1
        numbers = range(int(first), min(int(last), len(self._starts) - 2) + 1)
        with self._lock:
            pieces = [self._group(number) for number in numbers]
        if not pieces:
            return self._file.schema_arrow.empty_table()
        return pa.concat_tables(pieces).slice(low - int(self._starts[first]), high - low)

    def _group(self, number: int) -> Any:
        if number not in self._groups:
            with _readable(self._where):
                self._groups[number] = self._file.read_row_group(number, use_threads=False)
            if len(self._groups) > _KEPT_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(number)
        return self._groups[number]


# Arrow's decoder says some damage in C++'s own words.
_UNREADABLE = (pa.ArrowException, OSError, ValueError, RuntimeError, LookupError)


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        raise CorruptError(
            f"{where} is no readable Parquet file ({error}). None of its rows were returned.",
            kind="table-damaged",
            path=where,
        ) from error


def pack(data: bytes) -> bytes:
    """Return bytes compressed (Zstd), for scratch files."""
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


def unpack(data: bytes, size: int) -> bytes:
    """Undo ``pack``; ``size`` is that of the bytes before."""
    return bytes(pa.decompress(data, decompressed_size=size, codec="zstd", asbytes=True))


def write_parquet(columns: Mapping[str, Any]) -> bytes:
    """Return the Parquet bytes of named columns (arrays or lists of equal length)."""
    return encode(table(columns))


def read_parquet(
    data: bytes, where: str = "table", rows: int | None = None, schema: Any = None
) -> dict[str, Any]:
    """Undo ``write_parquet``: numeric columns as arrays, others as lists; see ``decode``."""
    decoded = decode(data, where, rows, schema)
    columns: dict[str, Any] = {}
    for name in decoded.column_names:
        kind = decoded.column(name).type
        plain = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        whole = plain or pa.types.is_fixed_size_list(kind)
        columns[name] = column(decoded, name) if whole else decoded.column(name).to_pylist()
    return columns


def _type_name(kind: Any) -> str:
    """Return the name a type has in digests: NumPy's for numbers, ``string``, ``list[n] of …``."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "string"
    if pa.types.is_fixed_size_list(kind):
        return f"list[{kind.list_size}] of {_type_name(kind.value_type)}"
    return str(np.dtype(kind.to_pandas_dtype()).name)


def same(one: Any, two: Any) -> bool:
    """Return whether two tables hold the same columns, values bit for bit: a NaN is the same as itself."""
    return (
        bool(one.schema.equals(two.schema))
        and len(one) == len(two)
        and all(
            column_hash(one.column(name)) == column_hash(two.column(name))
            for name in one.schema.names
        )
    )


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
