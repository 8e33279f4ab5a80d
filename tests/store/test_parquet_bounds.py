"""Parquet files whose footers and page headers lie, one lie at a time: each is refused before Arrow sees it."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from store import CorruptError, tables
from store.parquet_bounds import MAX_TEXT_BYTES, _header, _parsed, check_file

ROWS = 300
I32, I64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12
ROW, TEXT = 0, 1  # the columns


def varint(number):
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def zigzag(number):
    return varint((number << 1) ^ (number >> 63))


def packed(kind, value):
    """Return a value in Thrift's compact protocol."""
    if kind == BINARY:
        return varint(len(value)) + value
    if kind == STRUCT:
        return struct(value)
    if kind == LIST:
        of, some = value
        return bytes([0xF0 | of]) + varint(len(some)) + b"".join(packed(of, one) for one in some)
    return bytes([value]) if kind == 3 else zigzag(value)


def struct(fields):
    """Return a struct of fields by number, each a type and a value."""
    found, last = bytearray(), 0
    for number, (kind, value) in sorted(fields.items()):
        found.append((number - last) << 4 | kind)
        last = number
        if kind > 2:  # a boolean is its type
            found += packed(kind, value)
    return bytes(found) + b"\x00"


def written():
    """Return a file of one row group: numbers, and texts."""
    sink = io.BytesIO()
    data = pa.table({"row": np.arange(ROWS), "text": [f"text {n % 7}" for n in range(ROWS)]})
    pq.write_table(data, sink, compression="zstd", use_dictionary=["text"], store_schema=False)
    return sink.getvalue()


def with_footer(data, change):
    """Return a file whose footer was changed."""
    length = int.from_bytes(data[-8:-4], "little")
    footer, end = _parsed(data[-8 - length : -8], "it")
    assert end == length
    assert _parsed(struct(footer), "it")[0] == footer
    change(footer)
    packed = struct(footer)
    return data[: -8 - length] + packed + len(packed).to_bytes(4, "little") + b"PAR1"


def with_page(data, column, change):
    """Return a file of which the header of a column's first page was changed; what lies behind it moves."""
    held = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(column)
    at = held.dictionary_page_offset if held.has_dictionary_page else held.data_page_offset
    fields, length = _header(memoryview(data)[at:])
    change(fields)
    header = struct(fields)
    more = len(header) - length

    def moved(footer):
        for other in (ROW, TEXT):
            for place in (9, 11):
                if place in meta(footer, other) and meta(footer, other)[place][1] > at:
                    put(meta(footer, other), place, meta(footer, other)[place][1] + more)
        put(meta(footer, column), 7, meta(footer, column)[7][1] + more)

    return with_footer(data[:at] + header + data[at + length :], moved)


def group(footer):
    return footer[4][1][1][0]


def meta(footer, column=ROW):
    return group(footer)[1][1][1][column][3][1]


def leaf(footer):
    """What the file's schema says of the first column; the root comes before it."""
    return footer[2][1][1][1]


def put(fields, number, value, kind=None):
    fields[number] = (fields[number][0] if kind is None else kind, value)


FOOTERS = {
    "more-rows-than-belong": (lambda f: put(f, 3, ROWS + 1), "301 rows"),
    "rows-below-zero": (lambda f: put(f, 3, -1), "-1 rows"),
    "rows-of-another-type": (lambda f: put(f, 3, ROWS, I32), "number 3 .* of another type"),
    "rows-missing": (lambda f: f.pop(3), "number 3 .* missing"),
    "a-group-below-zero": (lambda f: put(group(f), 3, -1), "claims -1 rows"),
    "a-group-of-more": (lambda f: put(group(f), 3, ROWS + 1), "claims 301 rows"),
    "groups-of-fewer": (lambda f: put(group(f), 3, ROWS - 1), "claims 300 values, 299|of 300"),
    "no-groups": (lambda f: put(f, 4, (STRUCT, [])), "hold 0 rows of 300"),
    "groups-of-numbers": (lambda f: put(f, 4, (I32, [1])), "list 4 .* another form"),
    "groups-no-list": (lambda f: put(f, 4, 7, I32), "list 4 .* another form"),
    "a-column-without-metadata": (lambda f: group(f)[1][1][1][0].pop(3), "not in the file"),
    "a-column-elsewhere": (
        lambda f: group(f)[1][1][1][0].update({1: (BINARY, b"/etc/passwd")}),
        "not in the file",
    ),
    "bytes-below-zero": (lambda f: put(meta(f), 7, -1), "larger than it"),
    "bytes-of-more": (lambda f: put(meta(f), 7, 1 << 40), "larger than it"),
    "bytes-behind-the-end": (lambda f: put(meta(f), 9, 1 << 40), "outside the file"),
    "bytes-before-it": (lambda f: put(meta(f), 9, -(1 << 40)), "outside the file"),
    "values-below-zero": (lambda f: put(meta(f), 5, -1), "claims -1 values"),
    "no-values": (lambda f: put(meta(f), 5, 0), "claims 0 values in 300 rows"),
    "values-of-more": (lambda f: put(meta(f), 5, ROWS * 16 + 1), "claims 4801 values"),
    "values-of-fewer": (lambda f: put(meta(f), 5, ROWS - 1), "claims 299 values in 300 rows"),
    "values-of-one-more": (lambda f: put(meta(f), 5, ROWS + 1), "pages of 300 values"),
    "a-type-no-table-has": (lambda f: put(leaf(f), 1, 3), "is of type 3, as no table"),
    "a-length-no-table-has": (
        lambda f: leaf(f).update({1: (I32, 7), 2: (I32, 30_000)}),
        "fixed length that no table has",
    ),
    "a-type-of-its-own": (
        lambda f: put(meta(f, TEXT), 1, 1),
        "is of type 1, where the file says 6",
    ),
    "a-type-missing": (lambda f: meta(f).pop(1), "number 1 .* missing"),
    "columns-of-fewer": (lambda f: group(f)[1][1][1].pop(), "has 1 columns, the file 2"),
    "a-dictionary-behind": (
        lambda f: put(meta(f, TEXT), 11, meta(f, TEXT)[9][1] + 1),
        "dictionary behind its values",
    ),
    "a-dictionary-at-zero": (lambda f: put(meta(f, TEXT), 11, 0), "dictionary behind its values"),
}


@pytest.mark.parametrize(("change", "said"), FOOTERS.values(), ids=FOOTERS)
def test_a_footer_that_lies_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        check_file(with_footer(written(), change), ROWS)


PAGES = {
    "a-kind-there-is-not": (ROW, lambda h: put(h, 1, 9), "of kind 9"),
    "bytes-below-zero": (ROW, lambda h: put(h, 2, -5), "-5 bytes"),
    "stored-below-zero": (ROW, lambda h: put(h, 3, -5), "stored as -5"),
    "no-values": (ROW, lambda h: put(h[5][1], 1, 0), "has 0 values"),
    "values-below-zero": (ROW, lambda h: put(h[5][1], 1, -1), "has -1 values"),
    "values-of-fewer": (ROW, lambda h: put(h[5][1], 1, ROWS - 1), "pages of 299 values"),
    "another-encoding": (ROW, lambda h: put(h[5][1], 2, 5), "coded as no table's"),
    "no-header-of-its-kind": (ROW, lambda h: put(h, 5, 1, I32), "coded as no table's"),
    "becomes-too-much": (ROW, lambda h: put(h, 2, 1 << 20), "would take 1048576 bytes"),
    "texts-become-too-much": (TEXT, lambda h: put(h, 2, (1 << 31) - 1), "would take 2147483"),
}


@pytest.mark.parametrize(("column", "change", "said"), PAGES.values(), ids=PAGES)
def test_a_page_that_lies_is_refused(column, change, said):
    with pytest.raises(ValueError, match=said):
        check_file(with_page(written(), column, change), ROWS)


def test_a_dictionary_that_may_come_too_often_is_told():
    """Each of its texts is short enough; whether so many are, only their lengths say."""
    data = with_page(written(), TEXT, lambda header: put(header, 2, 1 << 24))
    found = check_file(data, ROWS)
    assert found.suspects == [(0, TEXT)]
    assert found.left == MAX_TEXT_BYTES
    assert check_file(written(), ROWS).suspects == []


def test_text_is_counted_over_all_of_a_file(monkeypatch):
    """Not by row group, and not by column: one is as good as another to whoever fills them."""
    sink = io.BytesIO()
    texts = {name: [f"{n % 50:05d}" for n in range(3000)] for name in "abc"}
    pq.write_table(pa.table(texts), sink, compression="zstd", row_group_size=500)
    data = sink.getvalue()
    tables.check_bytes(data, "here", 3000)
    monkeypatch.setattr("store.parquet_bounds.MAX_TEXT_BYTES", 3 * 3000 * 5)
    assert len(check_file(data, 3000).suspects) == 18
    tables.check_bytes(data, "here", 3000)
    monkeypatch.setattr("store.parquet_bounds.MAX_TEXT_BYTES", 3 * 3000 * 5 - 1)
    with pytest.raises(CorruptError, match="its texts would take 45000 bytes, 44999 at most"):
        tables.check_bytes(data, "here", 3000)


def test_plain_text_beside_a_dictionary_counts_too(monkeypatch):
    sink = io.BytesIO()
    texts = {"a": ["x" * 90] * 400, "b": [f"{n:09d}" * 10 for n in range(400)]}
    pq.write_table(pa.table(texts), sink, use_dictionary=["a"])
    data = sink.getvalue()
    monkeypatch.setattr("store.parquet_bounds.MAX_TEXT_BYTES", 60_000)
    with pytest.raises(CorruptError, match="would take"):
        tables.check_bytes(data, "here", 400)
    monkeypatch.setattr("store.parquet_bounds.MAX_TEXT_BYTES", 30_000)
    with pytest.raises(CorruptError, match="at most"):
        tables.check_bytes(data, "here", 400)


def test_plain_text_of_several_columns_counts_together(monkeypatch):
    sink = io.BytesIO()
    texts = {name: [f"{n:09d}" * 10 for n in range(400)] for name in "ab"}
    pq.write_table(pa.table(texts), sink, use_dictionary=False)
    monkeypatch.setattr("store.parquet_bounds.MAX_TEXT_BYTES", 50_000)  # each takes 37 600
    with pytest.raises(CorruptError, match="its text takes"):
        tables.check_bytes(sink.getvalue(), "here", 400)


def test_columns_of_one_name_are_refused_where_they_would_be_counted_by_it(monkeypatch):
    sink = io.BytesIO()
    data = pa.table([["x" * 50] * 400, ["y"] * 400], names=["a", "a"])
    pq.write_table(data, sink)
    monkeypatch.setattr("store.parquet_bounds.MAX_TEXT_BYTES", 10_000)
    with pytest.raises(CorruptError, match="have one name"):
        tables.check_bytes(sink.getvalue(), "here", 400)


def test_what_a_column_s_metadata_calls_it_does_not_matter():
    """Arrow goes by the file's schema; so does what is counted."""
    bomb = texts_of(1, 4000, 600_000)
    renamed = with_footer(bomb, lambda footer: put(meta(footer), 3, (BINARY, [b"name"])))
    for data in (bomb, renamed):
        with pytest.raises(CorruptError, match="would take 2400000000 bytes"):
            tables.check_bytes(data, "here", 4000)


def texts_of(distinct, rows, length):
    some = pa.array([f"{n:0{length}d}" for n in range(distinct)])
    data = pa.DictionaryArray.from_arrays(
        pa.array(np.arange(rows, dtype=np.int32) % distinct), some
    )
    sink = io.BytesIO()
    options = {"dictionary_pagesize_limit": 1 << 30, "compression": "zstd", "store_schema": False}
    pq.write_table(pa.table({"text": data}), sink, **options)
    return sink.getvalue()


def test_a_second_dictionary_is_refused_and_pages_that_hold_nothing():
    """They cost no values, so there is no end to them."""
    data = written()
    held = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(TEXT)
    first, second = held.dictionary_page_offset, held.data_page_offset
    page = data[first:second]

    def longer(footer):
        put(meta(footer, TEXT), 7, meta(footer, TEXT)[7][1] + len(page))
        put(meta(footer, TEXT), 9, meta(footer, TEXT)[9][1] + len(page))

    twice = with_footer(data[:first] + page + data[first:], longer)
    with pytest.raises(ValueError, match="dictionary behind its first page"):
        check_file(twice, ROWS)


ENDS = {
    "nothing": b"",
    "short": b"PAR1PAR1",
    "no-magic": b"PAR2" + bytes(20) + b"PAR1",
    "no-end": b"PAR1" + bytes(20) + b"PARE",
    "longer-than-it": b"PAR1\x00" + (99).to_bytes(4, "little") + b"PAR1",
    "larger-than-any": b"PAR1" + bytes(1 << 25) + ((16 << 20) + 1).to_bytes(4, "little") + b"PAR1",
}


@pytest.mark.parametrize("data", ENDS.values(), ids=ENDS)
def test_what_does_not_end_as_a_file_is_refused(data):
    with pytest.raises(ValueError, match="does not begin and end"):
        check_file(data, ROWS)


THRIFT = {
    "empty": (b"", "does not end"),
    "text-behind-the-end": (b"\x18\x05ab", "does not end"),
    "long-text-behind-the-end": (b"\x18\x85\x01ab", "does not end"),
    "text-in-a-list-behind-the-end": (b"\x19\x18\x05ab", "does not end"),
    "half-a-double": (b"\x17\x00\x00", "does not end"),
    "a-number-of-80-bits": (b"\x16" + b"\xff" * 11 + b"\x00", "more than 64 bits"),
    "a-number-of-65-bits": (b"\x16" + b"\xff" * 9 + b"\x03\x00", "more than 64 bits"),
    "a-number-of-33-bits": (b"\x15" + b"\xff" * 4 + b"\x1f\x00", "more than 32 bits"),
    "ends-as-none": (b"\x15\x02\x10", "ends as none does"),
    "a-number-that-goes-on": (b"\x16\xff", "does not end"),
    "an-unknown-type": (b"\x1e\x00", "type 14"),
    "a-map": (b"\x1b\x00", "type 11"),
    "descending": (b"\x35\x00\x05\x02\x00", "ascend"),
    "twice": (b"\x35\x00\x05\x06\x00", "ascend"),
    "far": (b"\x05\x80\x80\x04\x00", "more than 16 bits"),
    "deep": (b"\x1c" * 5000, "does not end"),
}


@pytest.mark.parametrize(("data", "said"), THRIFT.values(), ids=THRIFT)
def test_a_struct_of_another_form_is_refused(data, said):
    with pytest.raises(ValueError, match=said):
        _parsed(data, "it")


def test_every_type_of_value_is_read():
    fields = {
        1: (1, True),
        2: (2, False),
        3: (3, 7),
        4: (4, -2),
        5: (I32, 1 << 20),
        6: (I64, -(1 << 40)),
        8: (BINARY, b"x" * 300),
        9: (LIST, (BINARY, [b"a", b"b"])),
        10: (LIST, (3, [1, 0])),
        12: (STRUCT, {1: (I32, 5), 15: (I32, 6)}),
    }
    data = struct(fields)
    assert _parsed(data, "it") == (fields, len(data))
    assert _parsed(b"\x17" + bytes(8) + b"\x00", "it") == ({1: (7, bytes(8))}, 10)
    assert _parsed(b"\x05\x28\x0e\x00", "it") == ({20: (I32, 7)}, 4)  # a field by its number


def test_a_header_longer_than_most_is_read_whole():
    fields = {1: (I32, 0), 5: (STRUCT, {5: (BINARY, b"s" * 2000)})}
    data = struct(fields)
    assert _header(memoryview(data + bytes(100))) == (fields, len(data))
