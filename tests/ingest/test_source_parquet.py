"""Parquet rows as documents: every string type, row groups of any size, and files that are no such thing."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.errors import SourceError
from ingest.sources.parquet import Parquet


def write(path, table, **options):
    pq.write_table(table, path, **options)
    return str(path)


def read(*paths, **options):
    return [(d.name, d.text) for d in Parquet(paths=paths, **options).documents()]


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())],
    ids=["string", "large_string", "dictionary"],
)
def test_every_row_is_a_document(tmp_path, kind):
    texts = ["a\r\n", "日本 👩‍👧", "nul \x00", "a\r\n"]
    path = write(tmp_path / "c.parquet", pa.table({"text": pa.array(texts).cast(kind)}))
    assert read(path) == [(f"c.parquet:{n}", text) for n, text in enumerate(texts, start=1)]


def test_rows_are_counted_across_row_groups_and_batches(tmp_path):
    texts = [f"text {n}" for n in range(2500)]
    path = write(tmp_path / "c.parquet", pa.table({"text": texts}), row_group_size=700)
    found = read(path)
    assert found == [(f"c.parquet:{n}", f"text {n - 1}") for n in range(1, 2501)]


def test_null_and_empty_texts_are_no_documents_but_count(tmp_path):
    path = write(tmp_path / "c.parquet", pa.table({"text": ["", None, "x"]}))
    assert read(path) == [("c.parquet:3", "x")]


def test_fields_may_have_other_names(tmp_path):
    table = pa.table({"the.body": ["a", "b", "c"], "id": [7, None, 9], "more": [1, 2, 3]})
    path = write(tmp_path / "c.parquet", table)
    found = read(path, text_field="the.body", name_field="id")
    assert found == [("7", "a"), ("c.parquet:2", "b"), ("9", "c")]


def test_a_folder_gives_its_files_in_order(tmp_path):
    for name in ("b", "a"):
        write(tmp_path / f"{name}.parquet", pa.table({"text": [name]}))
    assert read(str(tmp_path)) == [("a.parquet:1", "a"), ("b.parquet:1", "b")]


def not_utf8():
    data = pa.py_buffer(b"caf\xe9")
    offsets = pa.py_buffer(bytes([0, 0, 0, 0, 4, 0, 0, 0]))
    return pa.table({"text": pa.Array.from_buffers(pa.string(), 1, [None, offsets, data])})


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (pa.table({"body": ["a"]}), "no column text; its columns are body"),
        (pa.table({"text": [1]}), "row 1 holds int, not text"),
        (pa.table({"text": [b"a"]}), "row 1 holds bytes, not text"),
        (pa.table({"text": [["a"]]}), "row 1 holds list, not text"),
        (not_utf8(), "a text is not UTF-8"),
    ],
    ids=["no such column", "numbers", "bytes", "lists", "latin-1"],
)
def test_a_column_that_holds_no_text_is_refused(tmp_path, table, says):
    path = write(tmp_path / "c.parquet", table)
    with pytest.raises(
        SourceError, match=rf"corpus-unreadable: the corpus file c\.parquet.*{says}"
    ):
        read(path)


def test_damage_is_a_source_error(tmp_path):
    path = write(
        tmp_path / "c.parquet", pa.table({"text": ["some text"] * 2000}), write_page_checksum=True
    )
    data = bytearray((tmp_path / "c.parquet").read_bytes())
    whole = bytes(data)
    data[30] ^= 0xFF
    for broken in (bytes(data), whole[: len(whole) // 2], b"PAR1", b""):
        (tmp_path / "c.parquet").write_bytes(broken)
        with pytest.raises(SourceError, match=r"corpus-unreadable: the corpus file c\.parquet"):
            read(path)


def test_a_table_without_text_is_refused(tmp_path):
    path = write(tmp_path / "c.parquet", pa.table({"text": pa.array([], pa.string())}))
    with pytest.raises(SourceError, match="corpus-empty"):
        read(path)
