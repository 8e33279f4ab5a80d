"""Tables in somebody else's store: bombs, other columns, rows of elsewhere; all hashes right."""

import io
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import store
from store import CorruptError, StoreError, parquet_bounds, tables
from store.parquet_bounds import check_file
from store.testing.faults import harvest
from store.testing.hostile import exchange, full_store
from store.testing.small import fill, tokens_store


def written(data, **options):
    sink = io.BytesIO()
    pq.write_table(data, sink, compression="zstd", **options)
    return sink.getvalue()


def many_nulls():
    nulls = pa.array([None], pa.int64()).take(pa.array(np.zeros(1 << 22, np.int64)))
    return written(pa.table({"row": nulls})), 1 << 10


def one_long_text():
    text = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(1 << 16, np.int32)), pa.array(["x" * 900_000])
    )
    # Without Arrow's schema it is read as plain text: 59 GB of it.
    return written(pa.table({"text": text}), row_group_size=1 << 16, store_schema=False), 1 << 16


def one_prefix():
    text = pa.table({"text": ["x" * 100_000] * 4000})
    coded = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}
    return written(text, **coded), 4000


def long_fixed():
    one = pa.array([b"x" * 30_000], pa.binary(30_000))
    return written(pa.table({"x": one.take(pa.array(np.zeros(1 << 14, np.int64)))})), 1 << 14


def group_that_comes_again():
    """A footer that lists its row group ten times, though it counts its rows once."""
    data = written(pa.table({"row": np.arange(1000)}))
    length = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - length : -8]
    groups = footer.index(b"\x19\x1c\x19\x1c")  # a list of one struct, which begins with one
    _, end = parquet_bounds._struct(footer, groups + 2)
    changed = footer[:groups] + b"\x19\xac" + footer[groups + 2 : end] * 10 + footer[end:]
    return data[: -8 - length] + changed + len(changed).to_bytes(4, "little") + b"PAR1", 1000


def long_lists():
    values = pa.array(np.zeros(1 << 22, np.float32))
    lists = pa.ListArray.from_arrays(pa.array([0, 1 << 22], pa.int32()), values)
    return written(pa.table({"x": lists})), 16


def lying_page():
    """A page that says it becomes 2 GiB, behind a footer that says little."""
    data = written(pa.table({"row": np.arange(100)}), use_dictionary=False)
    meta = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(0)
    at = meta.data_page_offset
    assert data[at : at + 3] == b"\x15\x00\x15"  # type 0, then the size expanded
    size, end = 0, at + 3
    while data[end] >= 0x80:
        end += 1
    size = (1 << 31) - 1
    number, packed = size << 1, b""
    while number >= 0x80:
        packed += bytes([number & 0x7F | 0x80])
        number >>= 7
    packed += bytes([number])
    # As long as what was there or longer: the footer keeps its offsets where the page grows.
    grown = data[: at + 3] + packed + data[end + 1 :]
    return grown, 100


BOMBS = {
    "nulls": many_nulls,
    "text": one_long_text,
    "prefix": one_prefix,
    "fixed": long_fixed,
    "group-again": group_that_comes_again,
    "lists": long_lists,
    "lying-page": lying_page,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_table_that_would_become_far_more_than_its_rows_take_is_refused(bomb):
    data, rows = bomb()
    assert len(data) < 1 << 20
    with pytest.raises(CorruptError, match=r"at most|claims|coded as|fixed length|columns are"):
        tables.check_bytes(data, "here", rows)


def test_other_columns_are_refused_before_they_are_expanded():
    wide = written(pa.table({f"c{n}": np.zeros(1 << 16, np.int64) for n in range(100)}))
    with pytest.raises(CorruptError, match="its columns are c0 int64, c1"):
        tables.check_bytes(wide, "here", 1 << 16, tables.CODES)


def test_a_header_that_says_a_size_twice_is_refused():
    """Another reader might take the other one."""
    data, _ = lying_page()
    twice = b"\x15\x00\x15\xfe\xff\xff\xff\x0f" + b"\x06\x04\x80\x01"  # field 2 again, as i64
    with pytest.raises(ValueError, match="ascend"):
        parquet_bounds._parsed(twice + b"\x00", "it")
    with pytest.raises(ValueError, match="at most"):
        check_file(data, 100)


def test_bombs_are_refused_without_the_memory_they_ask_for():
    """In a process that may have half a gigabyte more than it needs to start."""
    code = textwrap.dedent(
        f"""
        import resource
        import importlib.util
        spec = importlib.util.spec_from_file_location("hostile", {__file__!r})
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        from store import CorruptError, tables
        made = [bomb() for bomb in module.BOMBS.values()]
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20),) * 2)
        for data, rows in made:
            try:
                tables.decode(data, "here", rows)
            except CorruptError as error:
                print(error.kind, "memory" in str(error))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stdout.splitlines() == ["table-damaged False"] * len(BOMBS), done.stderr[-2000:]


def test_what_the_writer_makes_is_in_bounds():
    full_store("memory://hostile-tables")
    for key, data in harvest("memory://hostile-tables").items():
        if key.endswith(".parquet"):
            check_file(data, pq.ParquetFile(pa.BufferReader(data)).metadata.num_rows)


TABLES = {
    "other-columns": lambda data: data.rename_columns(["a", *data.column_names[1:]]),
    "other-type": lambda data: data.set_column(0, "row", data.column("row").cast(pa.float64())),
    "nulls": lambda data: data.set_column(
        0, pa.field("row", pa.int64()), pa.array([None] * len(data), pa.int64())
    ),
    "rows-of-elsewhere": lambda data: data.set_column(
        0, pa.field("row", pa.int64()), pa.array(np.arange(len(data)) + (1 << 40))
    ),
    "rows-below-zero": lambda data: data.set_column(
        0, pa.field("row", pa.int64()), pa.array(np.arange(len(data)) - 5)
    ),
    "rows-backwards": lambda data: data.set_column(
        0, pa.field("row", pa.int64()), pa.array(np.arange(len(data))[::-1].copy())
    ),
    "fewer-rows": lambda data: data.slice(1),
}


def table_of(made, group, path):
    """Return a table of the first part as it is stored."""
    return tables.decode(made.view.storage.get(made.view.stored_commit(group, 0).prefix + path))


@pytest.mark.parametrize("path", ["tokens.parquet", "scalars.parquet", "codes.parquet"])
@pytest.mark.parametrize("change", TABLES.values(), ids=TABLES)
def test_a_table_of_another_form_with_all_hashes_right_is_refused(memory_url, path, change):
    made = full_store(memory_url())
    group = {"scalars.parquet": "labels", "codes.parquet": "codes"}.get(path, "tokens")
    opened = exchange(made, group, path, tables.encode(change(table_of(made, group, path))))
    with pytest.raises(StoreError) as caught:
        opened.view.objects.stored_table(opened.view.group(group) and _commit(opened, group), path)
    assert caught.value.kind in {"table-invalid", "table-damaged", "rows-differ"}


@pytest.mark.parametrize("group", ["labels", "sample"])
def test_a_table_shorter_than_its_part_is_refused_though_its_commit_says_so_too(memory_url, group):
    made = full_store(memory_url())
    data = table_of(made, group, "scalars.parquet").slice(1)
    opened = exchange(made, group, "scalars.parquet", tables.encode(data), rows=len(data))
    columns = opened.groups[group].columns.values()
    name = next(column.name for column in columns if column.kind == "scalar")
    site = f"{group}:{name}"
    for read in (
        lambda: opened.read(site),
        lambda: opened.gather(site, opened.row_ids(group=group)[:3]),
        lambda: list(opened.windows([site], seed=0)),
        lambda: opened.arrow(group),
    ):
        with pytest.raises(CorruptError, match="rows that may be read"):
            read()
    assert not store.verify(opened).ok


SEQUENCES = {
    "fewer": lambda data: data.slice(1),
    "of-nothing": lambda data: data.set_column(
        data.schema.get_field_index("rows"), "rows", pa.array(np.zeros(len(data), np.int32))
    ),
    "named-otherwise": lambda data: data.set_column(
        data.schema.get_field_index("seq_id"), "seq_id", pa.array(np.arange(len(data)) + 7)
    ),
}


@pytest.mark.parametrize("change", SEQUENCES.values(), ids=SEQUENCES)
def test_sequences_that_do_not_hold_the_tokens_are_found_by_verify(memory_url, change):
    made = full_store(memory_url())
    data = change(table_of(made, "tokens", "sequences.parquet"))
    path = "sequences.parquet"
    opened = exchange(made, "tokens", path, tables.encode(data), rows=len(data))
    kinds = {problem["kind"] for problem in store.verify(opened).problems}
    assert kinds & {"rows-differ", "table-invalid", "record-invalid"}


def test_a_group_of_fewer_rows_than_the_tokens_is_found_by_verify(memory_url):
    made = fill(tokens_store(memory_url()), "acts", {"y": "int32"})
    rows = made.view.commit("acts", 0).rows - 1
    data = table_of(made, "acts", "scalars.parquet").slice(0, rows)
    says = {"rows": rows, "commit": {"rows": rows}}
    opened = exchange(made, "acts", "scalars.parquet", tables.encode(data), **says)
    problems = store.verify(opened).problems
    assert {problem["kind"] for problem in problems} == {"rows-differ", "seal-broken"}


def _commit(opened, group):
    return store.commits.load_commit(
        opened.view.storage, opened.id, group, 0, opened.view.parts(group)[0]
    )
