"""What a Parquet file would become, found before any of it is expanded: bombs are refused by what their pages say.

A footer may lie, and so may a page; a reader allocates what the page says. So the header of every page is read (Thrift's
compact protocol; parquet.thrift, ``PageHeader``) and held against what so many values of the column's type can take.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MAX_TEXT_BYTES = (1 << 31) - 1
"""Text of one column in a row group: Arrow counts it in 31 bits."""
VALUES_A_ROW = 16
"""Values a row has in one column at most: wider ones lie in shards (format 1, §3)."""
_SLACK_BYTES = 1 << 16  # levels and headers of a column chunk with few values
_VALUE_BYTES = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "FLOAT": 4, "DOUBLE": 8}
_MAX_HEADER_BYTES = 1 << 16  # a header holds two statistics at most, each of a value
_TRUE, _FALSE, _I32, _BINARY, _STRUCT = 1, 2, 5, 8, 12
_INTEGERS = {4, 5, 6}
_DICTIONARY_PAGE = 2


def check_file(meta: Any, data: Any, rows: int) -> None:
    """Raise unless a Parquet file holds at most so many rows, and no more bytes than they can take.

    Parameters
    ----------
    meta
        Its ``pyarrow.parquet.FileMetaData``.
    data
        Its bytes.

    Raises
    ------
    ValueError
        What it claims, or what its pages would become, is more.
    """
    if meta.num_rows > rows:
        msg = f"it holds {meta.num_rows} rows, {rows} at most belong there"
        raise ValueError(msg)
    for number in range(meta.num_row_groups):
        check_row_group(meta, data, number, rows)


def check_row_group(meta: Any, data: Any, number: int, rows: int) -> None:
    """Do the same for one row group."""
    group = meta.row_group(number)
    if not 0 <= group.num_rows <= rows:
        msg = f"row group {number} claims {group.num_rows} rows"
        raise ValueError(msg)
    for at in range(group.num_columns):
        chunk = group.column(at)
        place = f"{chunk.path_in_schema} of row group {number}"
        if chunk.num_values == 0:
            continue  # no page of it is read
        if chunk.num_values > VALUES_A_ROW * group.num_rows:
            msg = f"{place} claims {chunk.num_values} values in {group.num_rows} rows"
            raise ValueError(msg)
        width = _VALUE_BYTES.get(chunk.physical_type)
        # Values, or a dictionary of them and places in it; and two levels.
        most = (
            MAX_TEXT_BYTES if width is None else chunk.num_values * (2 * width + 12) + _SLACK_BYTES
        )
        total = longest = 0
        for kind, size in _pages(data, chunk):
            total += size
            longest = size if kind == _DICTIONARY_PAGE else longest
        if total > most:
            msg = f"{place} would take {total} bytes, {most} at most"
            raise ValueError(msg)
        if width is None and longest * chunk.num_values > MAX_TEXT_BYTES:
            _check_text(data, number, chunk.path_in_schema)


def _check_text(data: Any, number: int, name: str) -> None:
    """Raise where the texts of a dictionary, each as often as it is named, are too long together."""
    with pq.ParquetFile(pa.BufferReader(data), read_dictionary=[name]) as again:
        column = again.read_row_group(number, columns=[name], use_threads=False).column(0)
    total = 0
    for piece in column.chunks:
        lengths = pc.binary_length(piece.dictionary)
        total += pc.sum(pc.take(lengths, piece.indices)).as_py() or 0
    if total > MAX_TEXT_BYTES:
        msg = f"{name} of row group {number} would take {total} bytes, {MAX_TEXT_BYTES} at most"
        raise ValueError(msg)


def _pages(data: Any, chunk: Any) -> Iterator[tuple[int, int]]:
    """Yield the kind of each page of a column chunk, and the bytes it says it becomes."""
    view = memoryview(data)
    first = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < first:
        first = chunk.dictionary_page_offset
    at, end = first, first + chunk.total_compressed_size
    if not 0 <= at <= end <= len(view):
        msg = f"{chunk.path_in_schema} lies outside the file"
        raise ValueError(msg)
    while at < end:
        try:
            (kind, size, packed), length = _page_header(
                bytes(view[at : min(at + _MAX_HEADER_BYTES, end)])
            )
        except (IndexError, RecursionError):
            size = packed = -1
        if packed < 0 or size < 0:
            msg = f"a page of {chunk.path_in_schema} has no header"
            raise ValueError(msg)
        yield kind, size
        at += length + packed


def _page_header(data: bytes) -> tuple[tuple[int, ...], int]:
    """Return a page's kind, its size expanded and as it is stored; and the length of the header itself."""
    found = [-1, -1, -1]
    at = field = 0
    while (head := data[at]) != 0:
        field, at = (field + (head >> 4), at + 1) if head >> 4 else _zigzag(data, at + 1)
        if head & 15 == _I32 and 1 <= field <= 3:
            found[field - 1], at = _zigzag(data, at)
        else:
            at = _behind(data, at, head & 15)
    return tuple(found), at + 1


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    """Return an integer, and where it ends."""
    value = shift = 0
    while (byte := data[at]) >= 0x80:
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
    value |= byte << shift
    return (value >> 1) ^ -(value & 1), at + 1


def _behind(data: bytes, at: int, kind: int) -> int:
    """Return where a field of a type ends."""
    if kind in {_TRUE, _FALSE}:  # a boolean is its type
        return at
    if kind in _INTEGERS:
        while data[at] >= 0x80:
            at += 1
        return at + 1
    if kind == _BINARY:
        length = shift = 0
        while (byte := data[at]) >= 0x80:
            length |= (byte & 0x7F) << shift
            shift += 7
            at += 1
        return at + 1 + (length | byte << shift)
    if kind == _STRUCT:
        while (head := data[at]) != 0:
            at = at + 1 if head >> 4 else _zigzag(data, at + 1)[1]
            at = _behind(data, at, head & 15)
        return at + 1
    return len(data)  # no field of a page's header is of another type
