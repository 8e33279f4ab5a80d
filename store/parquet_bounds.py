"""What a Parquet file would become, found before any of it is expanded: bombs are refused by what their pages say.

A footer may lie, and so may a page; a reader allocates what the page says. So the header of every page is read and held
against what so many values of the column's type can take. Footer and headers are Thrift structs in the compact protocol
(parquet.thrift: ``FileMetaData``, ``PageHeader``); they are read here, because Arrow ends the process over some of
them (26.0: histograms of another length than the levels have).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MAX_TEXT_BYTES = (1 << 31) - 1
"""Text of one column in a row group: Arrow counts it in 31 bits."""
VALUES_A_ROW = 16
"""Values a row has in one column at most: wider ones lie in shards (format 1, §3)."""
_SLACK_BYTES = 1 << 16  # levels and headers of a column chunk with few values
_VALUE_BYTES = {0: 1, 1: 4, 2: 8, 4: 4, 5: 8, 7: 2}  # boolean, int32, int64, float, double, float16
_TEXT = 6
_MAX_HEADER_BYTES = 1 << 16  # a header holds two statistics at most, each of a value
_DICTIONARY_PAGE = 2
_MAGIC = b"PAR1"
Fields = dict[int, Any]


def check_file(data: Any, rows: int, values_a_row: int = VALUES_A_ROW) -> list[tuple[int, str]]:
    """Raise unless the bytes of a Parquet file hold at most so many rows, and become no more than these can take.

    Parameters
    ----------
    values_a_row
        Values a row may have in one column.

    Returns
    -------
    Row group and name of columns of text that may still become too much, because a dictionary's may repeat.

    Raises
    ------
    ValueError
        They claim more, their pages would become more, or they are no such file.
    """
    footer = _footer(data)
    if not 0 <= (held := _number(footer, 3)) <= rows:
        msg = f"it holds {held} rows, {rows} at most belong there"
        raise ValueError(msg)
    groups = enumerate(_structs(footer, 4))
    return [
        (number, name)
        for number, group in groups
        for name in _check_row_group(data, group, number, held, values_a_row)
    ]


def _check_row_group(
    data: Any, group: Fields, number: int, rows: int, values_a_row: int
) -> Iterator[str]:
    """Check one row group; yield its columns of text that may repeat."""
    held = _number(group, 3)
    if not 0 <= held <= rows:
        msg = f"row group {number} claims {held} rows"
        raise ValueError(msg)
    for chunk in _structs(group, 1):
        meta = chunk.get(3)
        if not isinstance(meta, dict) or 1 in chunk:  # in another file
            msg = f"a column of row group {number} is not in the file"
            raise ValueError(msg)
        yield from _check_column(data, meta, number, values_a_row * held)


def _check_column(data: Any, meta: Fields, number: int, most_values: int) -> Iterator[str]:
    values, kind = _number(meta, 5), meta.get(1)
    path = meta.get(3)
    name = ".".join(map(_text, path)) if isinstance(path, list) else ""
    place = f"column {name!r} of row group {number}"
    if not 0 <= values <= most_values:
        msg = f"{place} claims {values} values, {most_values} at most"
        raise ValueError(msg)
    if values == 0:
        return  # no page of it is read
    width = _VALUE_BYTES.get(kind if isinstance(kind, int) else -1)
    if width is None and kind != _TEXT:
        msg = f"{place} is of type {kind}, as no table's"
        raise ValueError(msg)
    # Values, or a dictionary of them and places in it; and two levels.
    most = MAX_TEXT_BYTES if width is None else values * (2 * width + 12) + _SLACK_BYTES
    total = longest = 0
    for page, size in _pages(data, meta, place):
        total += size
        longest = size if page == _DICTIONARY_PAGE else longest
    if total > most:
        msg = f"{place} would take {total} bytes, {most} at most"
        raise ValueError(msg)
    if width is None and longest * values > MAX_TEXT_BYTES:
        yield name


def _pages(data: Any, meta: Fields, place: str) -> Iterator[tuple[int, int]]:
    """Yield the kind of each page of a column chunk, and the bytes it says it becomes."""
    view = memoryview(data)
    first, dictionary = _number(meta, 9), _number(meta, 11, 0)
    at = dictionary if 0 < dictionary < first else first
    end = at + _number(meta, 7)
    if not 0 <= at <= end <= len(view):
        msg = f"{place} lies outside the file"
        raise ValueError(msg)
    while at < end:
        header, length = _parsed(bytes(view[at : min(at + _MAX_HEADER_BYTES, end)]), "a page")
        size, packed = _number(header, 2), _number(header, 3)
        if packed < 0 or size < 0:
            msg = f"a page of {place} is of {size} bytes, stored as {packed}"
            raise ValueError(msg)
        yield _number(header, 1), size
        at += length + packed


def _footer(data: Any) -> Fields:
    view = memoryview(data)
    length = int.from_bytes(view[-8:-4], "little")
    if len(view) < 12 or view[:4] != _MAGIC or view[-4:] != _MAGIC or length > len(view) - 12:
        msg = "it does not begin and end as one"
        raise ValueError(msg)
    return _parsed(bytes(view[-8 - length : -8]), "its footer")[0]


# -- Thrift's compact protocol ---------------------------------------------------------------------------------


def _number(fields: Mapping[int, Any], field: int, default: int | None = None) -> int:
    value = fields.get(field, default)
    if type(value) is not int:
        msg = f"a number ({field}) is missing in its metadata"
        raise ValueError(msg)
    return value


def _structs(fields: Mapping[int, Any], field: int) -> list[Fields]:
    found = fields.get(field, [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        msg = f"a list ({field}) of its metadata is of another form"
        raise ValueError(msg)
    return found


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else ""


def _parsed(data: bytes, what: str) -> tuple[Fields, int]:
    """Return the fields of a struct by number, and its length."""
    try:
        return _struct(data, 0)
    except (IndexError, RecursionError) as error:
        msg = f"{what} has no header that ends"
        raise ValueError(msg) from error


def _struct(data: bytes, at: int) -> tuple[Fields, int]:
    fields: Fields = {}
    field = 0
    while (head := data[at]) != 0:
        kind = head & 15
        if head > 15:
            field += head >> 4
            at += 1
        else:
            field, at = _zigzag(data, at + 1)
        if 4 <= kind <= 6 and (byte := data[at]) < 0x80:  # most of all values
            fields[field] = (byte >> 1) ^ -(byte & 1)
            at += 1
        elif kind == 8 and (byte := data[at]) < 0x80:
            at += 1 + byte  # where that is behind the end, nothing follows: an IndexError
            fields[field] = data[at - byte : at]
        elif kind <= 2:  # a boolean is its type
            fields[field] = kind == 1
        else:
            fields[field], at = _value(data, at, kind)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in {4, 5, 6}:
        return _zigzag(data, at)
    if kind == 8:
        length, at = _varint(data, at)
        if at + length > len(data):
            raise IndexError
        return data[at : at + length], at + length
    if kind == 12:
        return _struct(data, at)
    if kind in {9, 10}:
        return _list(data, at)
    if kind == 7:
        if at + 8 > len(data):
            raise IndexError
        return data[at : at + 8], at + 8
    if kind in {1, 2, 3}:  # in a list, a boolean is a byte
        return data[at], at + 1
    msg = f"its metadata has a value of type {kind}"
    raise ValueError(msg)


def _list(data: bytes, at: int) -> tuple[list[Any], int]:
    head = data[at]
    count, at = (head >> 4, at + 1) if head >> 4 != 15 else _varint(data, at + 1)
    found = []
    for _ in range(count):
        value, at = _value(data, at, head & 15)
        found.append(value)
    return found, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number, and where it ends."""
    value = shift = 0
    while (byte := data[at]) >= 0x80:
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
        if shift > 63:
            msg = "its metadata has a number of more than 64 bits"
            raise ValueError(msg)
    return value | byte << shift, at + 1


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at
