"""What a Parquet file would become, found before any of it is expanded: bombs are refused by what their pages say.

A footer may lie, and so may a page; a reader allocates what the page says. So the header of every page is read and held
against what so many values of the column's type can take. Footer and headers are Thrift structs in the compact protocol
(parquet.thrift: ``FileMetaData``, ``PageHeader``). They are read strictly, as no other reader could read them otherwise:
fields ascend, none comes twice, and those that count are of the type they are declared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MAX_TEXT_BYTES = (1 << 31) - 1
"""Text of a file: Arrow counts that of a column in 31 bits."""
MAX_FOOTER_BYTES = 16 << 20
VALUES_A_ROW = 16
"""Values a row has in one column at most: wider ones lie in shards (format 1, §3)."""
_SLACK_BYTES = 1 << 12  # levels and headers of a column chunk with few values
_VALUE_BYTES = {0: 1, 1: 4, 2: 8, 4: 4, 5: 8, 7: 2}  # boolean, int32, int64, float, double, float16
_TEXT, _FIXED = 6, 7
_HEADER_BYTES, _MAX_HEADER_BYTES = (
    512,
    1 << 16,
)  # a header holds two statistics at most, each of a value
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_2 = 0, 2, 3
# Where a page's header has the number of values and their encoding.
_COUNTS = {_DATA_PAGE: (5, 1, 2), _DICTIONARY_PAGE: (7, 1, 2), _DATA_PAGE_2: (8, 1, 4)}
_ENCODINGS = {
    0,
    2,
    3,
    8,
}  # plain, dictionary (of old), run lengths, dictionary: bytes that are there, as often as said
_MAGIC = b"PAR1"
_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12
Fields = dict[int, tuple[int, Any]]
"""Fields of a struct by number: their type and value; of a list the type of what is in it, too."""


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
    held = _number(footer, 3, _I64)
    if not 0 <= held <= rows:
        msg = f"it holds {held} rows, {rows} at most belong there"
        raise ValueError(msg)
    if any(
        _number(leaf, 1, _I32) == _FIXED and _number(leaf, 2, _I32) != _VALUE_BYTES[_FIXED]
        for leaf in _structs(footer, 2)
        if 1 in leaf
    ):
        msg = "it has values of a fixed length that no table has"
        raise ValueError(msg)
    found, left, text, seen = list[tuple[int, str]](), len(memoryview(data)), MAX_TEXT_BYTES, 0
    for number, group in enumerate(_structs(footer, 4)):
        mine = _number(group, 3, _I64)
        seen += mine
        if mine < 0 or seen > held:
            msg = f"row group {number} claims {mine} rows"
            raise ValueError(msg)
        for meta in _columns(group, number):
            left -= _number(meta, 7, _I64)
            if left < 0 or _number(meta, 7, _I64) < 0:
                msg = "its columns are larger than it"
                raise ValueError(msg)
            size, suspect = _checked(data, meta, number, values_a_row * mine)
            text -= size
            if suspect:
                found.append((number, _name(meta)))
    if text < 0 or seen != held:
        msg = (
            f"its row groups hold {seen} rows of {held}, and text of {MAX_TEXT_BYTES - text} bytes"
        )
        raise ValueError(msg)
    return found


def _columns(group: Fields, number: int) -> Iterator[Fields]:
    for chunk in _structs(group, 1):
        if 3 not in chunk or chunk[3][0] != _STRUCT or 1 in chunk:  # or in another file
            msg = f"a column of row group {number} is not in the file"
            raise ValueError(msg)
        yield chunk[3][1]


def _name(meta: Fields) -> str:
    kind, path = meta.get(3, (0, []))
    return (
        ".".join(part.decode(errors="replace") for part in path[1])
        if kind == _LIST and path[0] == _BINARY
        else ""
    )


def _checked(data: Any, meta: Fields, number: int, most_values: int) -> tuple[int, bool]:
    """Return the bytes of text in a column chunk, and whether they may repeat too often."""
    values, kind = _number(meta, 5, _I64), _number(meta, 1, _I32)
    place = f"column {_name(meta)!r} of row group {number}"
    if not 0 <= values <= most_values:
        msg = f"{place} claims {values} values, {most_values} at most"
        raise ValueError(msg)
    if values == 0:
        return 0, False  # no page of it is read
    width = _VALUE_BYTES.get(kind)
    if width is None and kind != _TEXT:
        msg = f"{place} is of type {kind}, as no table's"
        raise ValueError(msg)
    # Values, or a dictionary of them and places in it; and two levels.
    most = MAX_TEXT_BYTES if width is None else values * (2 * width + 12) + _SLACK_BYTES
    total = longest = counted = 0
    for page, count, size in _pages(data, meta, place):
        total += size
        if page == _DICTIONARY_PAGE:
            longest += size
        else:
            counted += count
    if total > most:
        msg = f"{place} would take {total} bytes, {most} at most"
        raise ValueError(msg)
    if counted != values:
        msg = f"{place} has pages of {counted} values where it claims {values}"
        raise ValueError(msg)
    text = total if width is None else 0
    return text, width is None and longest * values > MAX_TEXT_BYTES


def _pages(data: Any, meta: Fields, place: str) -> Iterator[tuple[int, int, int]]:
    """Yield each page of a column chunk: its kind, its values, and the bytes it says it becomes."""
    view = memoryview(data)
    first = _number(meta, 9, _I64)
    dictionary = _number(meta, 11, _I64) if 11 in meta else 0
    at = dictionary if 0 < dictionary < first else first
    end = at + _number(meta, 7, _I64)
    if not 0 <= at <= end <= len(view):
        msg = f"{place} lies outside the file"
        raise ValueError(msg)
    while at < end:
        header, length = _header(view[at:end])
        kind, size, packed = (_number(header, field, _I32) for field in (1, 2, 3))
        if kind not in _COUNTS or min(packed, size) < 0:
            msg = f"a page of {place} is of kind {kind} and {size} bytes, stored as {packed}"
            raise ValueError(msg)
        inside, values, encoding = _COUNTS[kind]
        said = header.get(inside, (0, {}))
        if said[0] != _STRUCT or _number(said[1], encoding, _I32) not in _ENCODINGS:
            msg = f"a page of {place} is coded as no table's"
            raise ValueError(msg)
        count = _number(said[1], values, _I32)
        if count < 0 or (count == 0 and kind != _DICTIONARY_PAGE):
            msg = f"a page of {place} has {count} values"
            raise ValueError(msg)
        yield kind, count, size
        at += length + packed


def _header(view: memoryview) -> tuple[Fields, int]:
    try:
        return _struct(bytes(view[:_HEADER_BYTES]), 0)
    except IndexError:
        return _parsed(bytes(view[:_MAX_HEADER_BYTES]), "a page's header")


def _footer(data: Any) -> Fields:
    view = memoryview(data)
    length = int.from_bytes(view[-8:-4], "little")
    ends = len(view) >= 12 and view[:4] == _MAGIC and view[-4:] == _MAGIC
    if not ends or length > min(len(view) - 12, MAX_FOOTER_BYTES):
        msg = "it does not begin and end as one"
        raise ValueError(msg)
    return _parsed(bytes(view[-8 - length : -8]), "its footer")[0]


# -- Thrift's compact protocol ---------------------------------------------------------------------------------


def _number(fields: Fields, field: int, kind: int) -> int:
    found = fields.get(field)
    if found is None or found[0] != kind:
        msg = f"number {field} of its metadata is missing, or of another type"
        raise ValueError(msg)
    value: int = found[1]
    return value


def _structs(fields: Fields, field: int) -> list[Fields]:
    kind, found = fields.get(field, (_LIST, (_STRUCT, [])))
    if kind != _LIST or (found[0] != _STRUCT and found[1]):
        msg = f"list {field} of its metadata is of another form"
        raise ValueError(msg)
    some: list[Fields] = found[1]
    return some


def _parsed(data: bytes, what: str) -> tuple[Fields, int]:
    """Return the fields of a struct, and its length."""
    try:
        return _struct(data, 0)
    except (IndexError, RecursionError) as error:
        msg = f"{what} does not end"
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
            last = field
            field, at = _zigzag(data, at + 1)
            if not last < field < 1 << 15:
                msg = "fields of its metadata do not ascend"
                raise ValueError(msg)
        if 4 <= kind <= 6 and (byte := data[at]) < 0x80:  # most of all values
            fields[field] = kind, (byte >> 1) ^ -(byte & 1)
            at += 1
        elif kind == _BINARY and (byte := data[at]) < 0x80:
            at += 1 + byte  # where that is behind the end, nothing follows: an IndexError
            fields[field] = kind, data[at - byte : at]
        elif kind <= 2:  # a boolean is its type
            fields[field] = kind, kind == 1
        else:
            value, at = _value(data, at, kind)
            fields[field] = kind, value
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in {4, _I32, _I64}:
        return _zigzag(data, at)
    if kind == _BINARY:
        length, at = _varint(data, at)
        if at + length > len(data):
            raise IndexError
        return data[at : at + length], at + length
    if kind == _STRUCT:
        return _struct(data, at)
    if kind in {_LIST, 10}:
        return _list(data, at)
    if kind == 7:  # a double
        if at + 8 > len(data):
            raise IndexError
        return data[at : at + 8], at + 8
    if kind in {1, 2, 3}:  # in a list, a boolean is a byte
        return data[at], at + 1
    msg = f"its metadata has a value of type {kind}"
    raise ValueError(msg)


def _list(data: bytes, at: int) -> tuple[tuple[int, list[Any]], int]:
    head = data[at]
    count, at = (head >> 4, at + 1) if head >> 4 != 15 else _varint(data, at + 1)
    found = []
    for _ in range(count):
        value, at = _value(data, at, head & 15)
        found.append(value)
    return (head & 15, found), at


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
