"""What a Parquet file would become, found before any of it is expanded: bombs are refused by what their pages say.

A footer may lie, and so may a page; a reader allocates what the page says. So the header of every page is read and held
against what so many values of the column's type can take. Footer and headers are Thrift structs in the compact protocol
(parquet.thrift: ``FileMetaData``, ``PageHeader``). They are read strictly, as no other reader could read them otherwise:
fields ascend, none comes twice, and those that count are of the type they are declared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

MAX_TEXT_BYTES = (1 << 31) - 1
"""Text of a file: Arrow counts that of a column in 31 bits."""
MAX_FOOTER_BYTES = 2 << 20
"""Of a table of a thousand columns, or of a thousand row groups, it is a few hundred kilobytes."""
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
_BITS = {4: 16, _I32: 32, _I64: 64}
Fields = dict[int, tuple[int, Any]]
"""Fields of a struct by number: their type and value; of a list the type of what is in it, too."""


class Text(NamedTuple):
    """What a file's columns of text may still become."""

    suspects: list[tuple[int, int]]
    """Row group and column of chunks whose dictionaries may repeat: how much they become, their values say alone."""
    left: int
    """Bytes they may become together."""


def check_file(data: Any, rows: int) -> Text:
    """Raise unless the bytes of a Parquet file hold at most so many rows, and become no more than these can take.

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
    leaves = _leaves(footer)
    # Of every chunk of text: the bytes of its pages, and those if its dictionary's longest came in every row.
    texts = dict[tuple[int, int], tuple[int, int]]()
    left, seen = len(memoryview(data)), 0
    for number, group in enumerate(_structs(footer, 4)):
        mine = _number(group, 3, _I64)
        seen += mine
        if mine < 0 or seen > held:
            msg = f"row group {number} claims {mine} rows"
            raise ValueError(msg)
        columns = list(_columns(group, number))
        if len(columns) != len(leaves):
            msg = f"row group {number} has {len(columns)} columns, the file {len(leaves)}"
            raise ValueError(msg)
        for at, (meta, kind) in enumerate(zip(columns, leaves, strict=True)):
            left -= _number(meta, 7, _I64)
            if left < 0 or _number(meta, 7, _I64) < 0:
                msg = "its columns are larger than it"
                raise ValueError(msg)
            place = f"column {at} of row group {number}"
            if _number(meta, 1, _I32) != kind:
                msg = f"{place} is of type {_number(meta, 1, _I32)}, where the file says {kind}"
                raise ValueError(msg)
            sizes = _checked(data, meta, kind, mine, place)
            if kind == _TEXT:
                texts[number, at] = sizes
    if seen != held:
        msg = f"its row groups hold {seen} rows of {held}"
        raise ValueError(msg)
    return _text(texts)


def _text(texts: dict[tuple[int, int], tuple[int, int]]) -> Text:
    """Return what is still to be counted of columns of text; nothing where even the most of it is little."""
    if sum(max(sizes) for sizes in texts.values()) <= MAX_TEXT_BYTES:
        return Text([], MAX_TEXT_BYTES)
    suspects = [where for where, (total, most) in texts.items() if most > total]
    left = MAX_TEXT_BYTES - sum(
        total for where, (total, _) in texts.items() if where not in set(suspects)
    )
    if left < 0:
        msg = f"its text takes {MAX_TEXT_BYTES - left} bytes, {MAX_TEXT_BYTES} at most"
        raise ValueError(msg)
    return Text(suspects, left)


def _leaves(footer: Fields) -> list[int]:
    """Return the types of the columns, in the order of each row group's."""
    found = []
    for leaf in _structs(footer, 2):
        if 1 not in leaf:
            continue  # a group of others
        kind = _number(leaf, 1, _I32)
        if kind != _TEXT and kind not in _VALUE_BYTES:
            msg = f"a column of it is of type {kind}, as no table's"
            raise ValueError(msg)
        if kind == _FIXED and _number(leaf, 2, _I32) != _VALUE_BYTES[_FIXED]:
            msg = "it has values of a fixed length that no table has"
            raise ValueError(msg)
        found.append(kind)
    return found


def _columns(group: Fields, number: int) -> Iterator[Fields]:
    for chunk in _structs(group, 1):
        if 3 not in chunk or chunk[3][0] != _STRUCT or 1 in chunk:  # or in another file
            msg = f"a column of row group {number} is not in the file"
            raise ValueError(msg)
        yield chunk[3][1]


def _checked(data: Any, meta: Fields, kind: int, rows: int, place: str) -> tuple[int, int]:
    """Return the bytes that a column chunk's pages become, and those that its dictionary may, coming again and again."""
    values = _number(meta, 5, _I64)
    if not rows <= values <= VALUES_A_ROW * rows:
        msg = f"{place} claims {values} values in {rows} rows"
        raise ValueError(msg)
    # Values, or a dictionary of them and places in it; and two levels.
    most = (
        MAX_TEXT_BYTES if kind == _TEXT else values * (2 * _VALUE_BYTES[kind] + 12) + _SLACK_BYTES
    )
    total = longest = counted = 0
    for page, count, size in _pages(data, meta, place) if values else ():
        total += size
        if page == _DICTIONARY_PAGE:
            longest = size
        else:
            counted += count
    if total > most:
        msg = f"{place} would take {total} bytes, {most} at most"
        raise ValueError(msg)
    if counted != values:
        msg = f"{place} has pages of {counted} values where it claims {values}"
        raise ValueError(msg)
    return total, longest * values


def _pages(data: Any, meta: Fields, place: str) -> Iterator[tuple[int, int, int]]:
    """Yield each page of a column chunk: its kind, its values, and the bytes it says it becomes."""
    view = memoryview(data)
    first = _number(meta, 9, _I64)
    at = _number(meta, 11, _I64) if 11 in meta else first
    if 11 in meta and not 0 < at < first:  # readers differ in where they begin
        msg = f"{place} has its dictionary behind its values"
        raise ValueError(msg)
    begin = at
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
        if kind == _DICTIONARY_PAGE and at != begin:
            msg = f"{place} has a dictionary behind its first page"
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
        if not kind:  # some readers stop here, and some do not
            msg = "a struct of its metadata ends as none does"
            raise ValueError(msg)
        if head > 15:
            field += head >> 4
            at += 1
        else:
            last = field
            field, at = _zigzag(data, at + 1, 16)
            if field <= last:
                msg = "fields of its metadata do not ascend"
                raise ValueError(msg)
        if 4 <= kind <= 6 and (byte := data[at]) < 0x80:  # most of all values
            fields[field] = kind, (byte >> 1) ^ -(byte & 1)
            at += 1
        elif kind == _BINARY and (byte := data[at]) < 0x80:
            at += 1 + byte  # where that is behind the end, nothing follows: an IndexError
            fields[field] = kind, data[at - byte : at]
        elif kind in {1, 2}:  # a boolean is its type
            fields[field] = kind, kind == 1
        else:
            value, at = _value(data, at, kind)
            fields[field] = kind, value
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in _BITS:
        return _zigzag(data, at, _BITS[kind])
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


def _zigzag(data: bytes, at: int, bits: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    if value >> bits:  # what another reader keeps of it may be anything
        msg = f"its metadata has a number of more than {bits} bits"
        raise ValueError(msg)
    return (value >> 1) ^ -(value & 1), at
