import datetime
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import store
from store import CorruptError, InvalidInputError, NotFoundError, tables
from store.conditions import select
from store.maintenance import retire
from store.parquet_bounds import check_file
from store.testing.faults import flip


def test_columns_come_back_as_they_were_put():
    columns = {
        "f": np.arange(9, dtype=np.float32),
        "u": np.arange(9, dtype=np.uint64) + (1 << 63),
        "wide": np.arange(18, dtype=np.float16).reshape(9, 2),
        "b": np.arange(9) % 2 == 0,
        "text": [None if n == 3 else f"é{n}" for n in range(9)],
    }
    found = tables.read_parquet(tables.write_parquet(columns))
    assert list(found) == list(columns)
    for name, wanted in columns.items():
        if isinstance(wanted, list):
            assert found[name] == wanted
        else:
            assert found[name].dtype == wanted.dtype
            assert np.array_equal(found[name], wanted)


def test_equal_tables_have_equal_bytes():
    columns = {"row": np.arange(1000), "x": np.linspace(0, 1, 1000)}
    assert tables.write_parquet(columns) == tables.write_parquet(columns)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"x" * 100, b"PAR1" + bytes(50) + b"PAR1"])
def test_what_is_no_parquet_is_damage(data):
    with pytest.raises(CorruptError) as caught:
        tables.decode(data, "here")
    assert caught.value.kind == "table-damaged"
    assert "here" in caught.value.message


def test_a_damaged_footer_is_damage():
    data = tables.write_parquet({"row": np.arange(1000)})
    with pytest.raises(CorruptError):
        tables.decode(flip(data, -6, 4), "here")


TABLE = tables.table(
    {"row": np.arange(8), "flags": np.arange(8, dtype=np.uint16), "y": [0.5, None, 2, np.nan] * 2}
)
CASES = {
    "equal": (("row", "==", 3), [3]),
    "in": (("row", "in", [1, 5, 99]), [1, 5]),
    "in-set": (("row", "in", {7, 0}), [0, 7]),
    "in-nothing": (("row", "in", []), []),
    "has-all": (("flags", "has", 6), [6, 7]),
    "lacks-all": (("flags", "lacks", 5), [0, 2]),
    "has-nothing": (("flags", "has", 0), list(range(8))),
    "null-is-not-met": (("y", "<", 9.0), [0, 2, 4, 6]),
    "null-not-equal": (("y", "!=", 0.5), [2, 3, 6, 7]),
    "against-float": (("row", "<", 1.5), [0, 1]),
    "beyond-the-type": (("flags", "<", 10**6), list(range(8))),
}


@pytest.mark.parametrize(("condition", "rows"), CASES.values(), ids=CASES)
def test_conditions_select_what_they_say(condition, rows):
    assert np.flatnonzero(select(TABLE, [condition])).tolist() == rows


def test_conditions_are_anded():
    where = [("row", ">", 2), ("flags", "has", 1), ("row", "!=", 5)]
    assert np.flatnonzero(select(TABLE, where)).tolist() == [3, 7]
    assert select(TABLE, []).all()


@pytest.mark.parametrize(
    "condition",
    [
        ("row", "~", 1),
        ("row", "<", "x"),
        ("row", "in", 5),
        ("row", "in", ["x", 1]),
        ("row", "==", datetime.date(2020, 1, 1)),
        ("flags", "has", 1 << 20),
        ("y", "has", 1),
    ],
)
def test_conditions_that_make_no_sense_are_refused(condition):
    with pytest.raises(InvalidInputError, match="Nothing was read") as caught:
        select(TABLE, [condition])
    assert caught.value.kind == "bad-where"


def texts(distinct, rows, length):
    """Return a file whose texts come from a dictionary."""
    some = pa.array([f"{n:0{length}d}" for n in range(distinct)])
    data = pa.DictionaryArray.from_arrays(
        pa.array(np.arange(rows, dtype=np.int32) % distinct), some
    )
    sink = io.BytesIO()
    options = {"dictionary_pagesize_limit": 1 << 30, "compression": "zstd", "store_schema": False}
    pq.write_table(pa.table({"text": data}), sink, **options)
    return sink.getvalue()


def test_texts_that_come_often_are_counted_where_their_dictionary_alone_does_not_say():
    sound = texts(200, 4000, 10_000)  # the dictionary as often as there are rows would be 8 GB
    assert check_file(sound, 4000).suspects == [(0, 0)]
    tables.check_bytes(sound, "here", 4000)
    with pytest.raises(CorruptError, match=r"its texts would take 2400000000 bytes"):
        tables.check_bytes(texts(2, 4000, 600_000), "here", 4000)


def test_lists_of_texts_are_no_column_of_text():
    """Whoever has them read has to say of which form; nobody has."""
    data = pa.table({"text": [["x" * 100_000] * 3] * 8_000})
    sink = io.BytesIO()
    pq.write_table(data, sink, compression="zstd")
    with pytest.raises(CorruptError, match=r"no column of text|would take"):
        tables.check_bytes(sink.getvalue(), "here", 8_000)


def test_a_table_that_readers_would_refuse_is_not_written(monkeypatch):
    """Pages hold lengths beside the texts: what Arrow counts may fit where they do not."""
    data = pa.table({"text": [f"{n:08d}" for n in range(1000)]})
    monkeypatch.setattr("store.parquet_bounds.MAX_TEXT_BYTES", data.column("text").nbytes + 10)
    with pytest.raises(InvalidInputError, match=r"table-too-large.*smaller part_rows"):
        tables.encode(data)
    monkeypatch.setattr("store.parquet_bounds.MAX_TEXT_BYTES", 2 * data.column("text").nbytes)
    assert tables.decode(tables.encode(data)).equals(data)


def test_a_file_without_rows_is_read_as_such():
    file = tables.TableFile(tables.encode(tables.CODES.empty_table()), "here")
    assert file.read(0, 0).equals(tables.CODES.empty_table())
    assert (file.rows, file.decoded) == (0, 0)


def test_schemas_of_scalars_are_what_is_written():
    shapes = {"a": (np.dtype("float16"), ()), "b": (np.dtype("uint8"), (2, 3))}
    schema = tables.scalars_schema(shapes)
    written = tables.table(
        {"row": np.arange(2), "a": np.zeros(2, np.float16), "b": np.zeros((2, 2, 3), np.uint8)}
    )
    assert schema.equals(written.schema)
    assert schema.field("b").type == pa.list_(pa.uint8(), 6)


def test_files_are_the_committed_ones_in_part_order_and_verified(small_path, small_memory_url):
    opened = store.open(small_path)
    for name in ("tokens", "sequences", "documents", "labels", "codes", "codes_by_latent"):
        files = opened.files(name)
        assert len(files) == len(opened.view.parts("tokens"))
        assert pa.concat_tables(map(pq.read_table, files)).equals(opened.arrow(name))
    retire(opened, [1], "a test")
    left = store.open(small_path).files("tokens")
    assert left == [file for number, file in enumerate(opened.files("tokens")) if number != 1]
    Path(left[0]).write_bytes(b"PAR1")
    with pytest.raises(CorruptError, match="object-size"):
        store.open(small_path).files("tokens")
    with pytest.raises(NotFoundError, match="table-missing"):
        opened.files("acts")
    with pytest.raises(InvalidInputError, match="no-files"):
        store.open(small_memory_url).files("tokens")
