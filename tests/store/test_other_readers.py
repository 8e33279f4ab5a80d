"""Zarr-python, zarrs, tensorstore, DuckDB and pyarrow read what we wrote, bit for bit."""

import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest

import store
from store.codecs import CODECS
from store.layout import shard_path
from store.posix import PosixStorage
from store.schema import DTYPES, Column
from store.shard_reader import ShardReader
from store.shards import ShardWriter, identity, zarr_json
from store.summary import bfloat16_bits
from store.testing.small import fill, tokens_store, values_of

COLUMNS = {"h": "bfloat16[16]", "f": "float32[4,5]", "i": "int8[32]"}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    path = tmp_path_factory.mktemp("peers") / "s"
    return fill(tokens_store(path, [200, 150, 256, 31]), "acts", COLUMNS)


@pytest.fixture(scope="module")
def zarr():
    """Zarr-python, with the pipeline it had."""
    module = pytest.importorskip("zarr")
    with module.config.set({"async.concurrency": 1}):
        yield module


def folders(opened):
    """(column, folder, stored values) of every shard."""
    at = 0
    for part in opened.view.parts("acts"):
        commit = opened.view.commit("acts", part)
        for name in COLUMNS:
            folder = opened.view.storage.root / commit.prefix / name
            yield name, folder, opened.read(f"acts:{name}", slice(at, at + commit.rows), raw=True)
        at += commit.rows


def check(array, wanted):
    assert array.shape == wanted.shape
    for rows in (slice(None), slice(0, 1), slice(250, 260), slice(len(wanted) - 3, None)):
        found = np.asarray(array[rows])
        assert found.dtype == wanted.dtype
        assert found.tobytes() == wanted[rows].tobytes()


def test_the_cases_include_partial_last_chunks_and_unused_index_entries(opened):
    rows = [opened.view.commit("acts", part).rows for part in opened.view.parts("acts")]
    assert any(count % 256 for count in rows)
    assert any(count > 256 for count in rows)
    assert all(count < opened.part_stride for count in rows)


def test_zarr_python_reads_every_column_of_an_attempt(opened, zarr):
    for _, folder, wanted in folders(opened):
        array = zarr.open(str(folder), mode="r")
        assert array.metadata.zarr_format == 3
        check(array, wanted)


def test_bfloat16_says_what_its_bits_are(opened, zarr):
    folder = next(path for name, path, _ in folders(opened) if name == "h")
    array = zarr.open(str(folder), mode="r")
    assert array.attrs["logical_dtype"] == "bfloat16"
    assert array.dtype == np.uint16
    assert array.fill_value == 0x7FC0


def test_zarrs_reads_every_column_of_an_attempt(opened, zarr):
    pytest.importorskip("zarrs")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        for _, folder, wanted in folders(opened):
            array = zarr.open(str(folder), mode="r")
            assert "zarrs" in type(array.async_array.codec_pipeline).__module__
            check(array, wanted)


def test_tensorstore_reads_every_column_of_an_attempt(opened):
    tensorstore = pytest.importorskip("tensorstore")
    for _, folder, wanted in folders(opened):
        kvstore = {"driver": "file", "path": str(folder)}
        array = tensorstore.open(
            {"driver": "zarr3", "kvstore": kvstore}, open=True, read=True
        ).result()
        assert array.dtype.numpy_dtype == wanted.dtype
        check(array, wanted)


def test_zarr_python_notices_a_damaged_chunk_as_we_do(opened, zarr, tmp_path):
    import shutil

    _, folder, _ = next(folders(opened))
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shard = copy / "c/0/0"
    data = bytearray(shard.read_bytes())
    data[4096 + 77] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open(str(copy), mode="r")[:10]


# -- every codec and dtype ---------------------------------------------------------------------------------------


STRIDE = 1024
ROWS = (1, 255, 256, 600, 1024)
WHO = identity("s" * 32, "g", 0, "x", "0" * 16)
CASES = [
    (codec, dtype, shape)
    for codec in CODECS.names()
    for dtype in DTYPES
    for shape in ((17,), (3, 2, 11))
    if CODECS.get(codec)().refuses(Column.parse("x", f"{dtype}[17]")) is None
]


def with_zarr_python(folder, zarr):
    return np.asarray(zarr.open_array(str(folder), mode="r")[:])


def with_zarrs(folder, zarr):
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        array = zarr.open_array(str(folder), mode="r")
        assert "zarrs" in type(array.async_array.codec_pipeline).__module__
        return np.asarray(array[:])


def with_tensorstore(folder, _zarr):
    tensorstore = pytest.importorskip("tensorstore")
    kvstore = {"driver": "file", "path": str(folder)}
    driver = {"driver": "zarr3", "kvstore": kvstore}
    return np.asarray(tensorstore.open(driver, open=True, read=True).result().read().result())


READERS = {
    "zarr-python": with_zarr_python,
    "zarrs": with_zarrs,
    "tensorstore": with_tensorstore,
}


def stored_values(column, rows):
    """Values of many sizes, zeros among them; where every bit pattern survives, those that are not finite too."""
    ids = np.arange(rows)
    values = values_of(ids, column) * (1 + ids % 3).reshape(-1, *[1] * len(column.shape))
    values = values.astype(np.float32 if column.bits else column.stored)
    lossy = CODECS.get(column.codec)().lossy
    if values.dtype.kind == "f" and not lossy:
        values[ids % 7 == 2] = np.nan
        values[ids % 7 == 3] = -np.inf
    return bfloat16_bits(values) if column.bits else values


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("codec", "dtype", "shape"), CASES, ids=str)
def test_every_codec_and_dtype_is_read_bit_for_bit(codec, dtype, shape, reader, zarr, tmp_path):
    column = Column.parse("x", f"{dtype}[{','.join(map(str, shape))}]", codec=codec)
    coder, made = CODECS.get(codec)(), PosixStorage(tmp_path)
    for rows in ROWS:
        wanted = stored_values(column, rows)
        key = f"p{rows}/" + shard_path("x", 1 + len(shape))
        shard = ShardWriter(made.stream(key), column, WHO, STRIDE)
        shard.append(wanted)
        size = shard.finish().size
        made.put(f"p{rows}/x/zarr.json", zarr_json(column, rows, STRIDE))
        ours = np.empty_like(wanted)
        mine = ShardReader(made, f"p{rows}/", column, WHO, rows=rows, stride_rows=STRIDE, size=size)
        mine.read(0, rows, ours)
        found = READERS[reader](tmp_path / f"p{rows}/x", zarr)
        assert len(found) == rows
        if coder.lossy:  # other readers see coded rows
            coded, found = np.ascontiguousarray(found), np.empty_like(wanted)
            coder.decode(coded, found, column)
        else:
            assert found.dtype == wanted.dtype
            assert found.tobytes() == wanted.tobytes()
        assert found.tobytes() == ours.tobytes()


# -- tables ------------------------------------------------------------------------------------------------------


def files(opened, group, path):
    return [
        str(opened.view.storage.root / opened.view.commit(group, part).prefix / path)
        for part in opened.view.parts(group)
    ]


@pytest.fixture(scope="module")
def tabled(small_objects, tmp_path_factory):
    from store.testing.faults import plant

    return store.open(plant(str(tmp_path_factory.mktemp("tables") / "s"), small_objects))


TABLES = {
    "tokens": ("tokens", "tokens.parquet"),
    "sequences": ("tokens", "sequences.parquet"),
    "documents": ("tokens", "documents.parquet"),
    "labels": ("labels", "scalars.parquet"),
    "codes": ("codes", "codes.parquet"),
    "codes_by_latent": ("codes", "by_latent.parquet"),
}


@pytest.mark.parametrize("name", TABLES)
def test_pyarrow_and_polars_read_equal_tables(tabled, name):
    found = pq.ParquetDataset(files(tabled, *TABLES[name])).read()
    polars = tabled.table(name).collect()
    assert found.column_names == polars.columns
    assert found.to_pydict() == polars.to_dict(as_series=False)


def test_duckdb_and_polars_answer_a_query_alike(tabled):
    duckdb = pytest.importorskip("duckdb")
    import polars as pl

    query = """
        select t.split, t.token_id % 7 as k, count(*) as n, sum(c.latent) as latents,
               max(l.count) as top, sum(len(d.text)) as letters
        from tokens t join codes c using (row) join labels l using (row)
        join documents d on d.doc_id = t.doc_id
        where t.pos < 100 and l.loss > 0 group by all order by all
    """
    tables = {name: files(tabled, *TABLES[name]) for name in TABLES}
    with duckdb.connect() as connection:
        for name, paths in tables.items():
            connection.sql(f"create view {name} as select * from read_parquet({paths})")
        theirs = connection.sql(query).fetchall()
    frames = {name: tabled.table(name) for name in TABLES}
    joined = (
        frames["tokens"]
        .join(frames["codes"], on="row")
        .join(frames["labels"], on="row")
        .join(frames["documents"].select("doc_id", "text"), on="doc_id")
        .filter((pl.col("pos") < 100) & (pl.col("loss") > 0))
        .group_by("split", (pl.col("token_id") % 7).alias("k"))
        .agg(
            pl.len(),
            pl.col("latent").cast(pl.Int64).sum(),
            pl.col("count").max(),
            pl.col("text").str.len_chars().cast(pl.Int64).sum(),
        )
        .sort("split", "k")
    )
    with warnings.catch_warnings():
        ours = joined.collect().rows()
    assert len(ours) > 7
    assert [tuple(map(int, row)) for row in theirs] == [tuple(map(int, row)) for row in ours]
