"""What other tools write: refused as foreign where it pretends to be a shard, brought in through the public writer."""

import numpy as np
import pytest
import zarr

import store
from store import CorruptError
from store.checksum import crc32c
from store.codecs import CODECS
from store.layout import CHUNK_ROWS, MISSING, shard_path
from store.posix import PosixStorage
from store.schema import DTYPES, Column
from store.shard_reader import ShardReader
from store.shards import ShardWriter, identity, zarr_json
from store.summary import bfloat16_bits
from store.testing.faults import overwrite
from store.testing.small import fill, tokens_store, values_of

STRIDE, ROWS = 1024, 700
WHO = identity("s" * 32, "g", 0, "x", "0" * 16)
EXACT = [name for name in CODECS.names() if not CODECS.get(name)().lossy]


def by_zarr_python(folder, values):
    zarr.open_array(str(folder), mode="r+")[:] = values


def by_zarrs(folder, values):
    pytest.importorskip("zarrs")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        array = zarr.open_array(str(folder), mode="r+")
        assert "zarrs" in type(array.async_array.codec_pipeline).__module__
        array[:] = values


def by_tensorstore(folder, values):
    tensorstore = pytest.importorskip("tensorstore")
    driver = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
    tensorstore.open(driver, open=True).result().write(values).result()


WRITERS = {"zarr-python": by_zarr_python, "zarrs": by_zarrs, "tensorstore": by_tensorstore}
each_writer = pytest.mark.parametrize("writer", WRITERS)


def theirs(tmp_path, column, writer, rows=ROWS):
    """Let another tool write what we would, after our own metadata; return its bytes and the values."""
    made = PosixStorage(tmp_path / writer)
    made.put("a/x/zarr.json", zarr_json(column, rows, STRIDE))
    values = values_of(np.arange(rows), column)
    values = bfloat16_bits(values) if column.bits else values
    WRITERS[writer](tmp_path / writer / "a/x", values)
    return made, made.get("a/" + shard_path("x", 1 + len(column.shape))), values


@each_writer
@pytest.mark.parametrize("codec", EXACT)
@pytest.mark.parametrize("spec", ["bfloat16[24]", "float32[4,5]", "int64[16]"])
def test_their_shards_have_our_index_and_our_codecs_read_their_chunks(
    tmp_path, spec, codec, writer
):
    column = Column.parse("x", spec, codec=codec)
    _, data, values = theirs(tmp_path, column, writer)
    slots = STRIDE // CHUNK_ROWS
    tail = data[-(16 * slots + 4) :]
    assert crc32c(tail[:-4]) == int.from_bytes(tail[-4:], "little")
    index = np.frombuffer(tail[:-4], "<u8").reshape(slots, 2)
    assert (index[3] == MISSING).all()
    for chunk in range(3):
        offset, size = (int(n) for n in index[chunk])
        coded = data[offset : offset + size]
        assert crc32c(coded[:-4]) == int.from_bytes(coded[-4:], "little")
        out = np.empty((CHUNK_ROWS, *column.shape), column.stored)
        CODECS.get(codec)().decode(coded[:-4], out, column)
        rows = values[chunk * CHUNK_ROWS : (chunk + 1) * CHUNK_ROWS]
        assert out[: len(rows)].tobytes() == rows.tobytes()


@each_writer
def test_a_shard_without_an_identity_slot_is_foreign_and_the_error_says_what_to_do(
    tmp_path, writer
):
    column = Column.parse("x", "float32[64]")
    made, data, _ = theirs(tmp_path, column, writer)
    with pytest.raises(CorruptError, match=r"no identity slot.*put it through a writer") as caught:
        ShardReader(made, "a/", column, WHO, rows=ROWS, stride_rows=STRIDE, size=len(data))
    assert caught.value.kind == "foreign-shard"


@each_writer
def test_a_shard_put_in_ours_place_is_refused_though_its_values_are_right(tmp_path, writer):
    opened = fill(tokens_store(tmp_path / "s", [512]), "acts", {"x": "float32[64]"})
    commit = opened.view.commit("acts", 0)
    _, data, _ = theirs(tmp_path, opened.column("acts:x"), writer, rows=512)
    key = commit.prefix + "x/c/0/0"
    overwrite(opened.view.storage, key, data)
    with pytest.raises(CorruptError, match="object-size"):
        opened.refresh().read("acts:x")
    size = commit.objects["x/c/0/0"].size
    index = data[-68:]
    overwrite(opened.view.storage, key, data[:-68].ljust(size - 68, b"\0") + index)
    with pytest.raises(CorruptError, match="foreign-shard"):
        opened.refresh().read("acts:x")
    assert not store.verify(opened.refresh()).ok


def test_a_foreign_shard_with_our_slot_before_it_is_only_read_where_the_index_is_ours(tmp_path):
    """Chunks at other places than the format says are refused for codecs of fixed size."""
    column = Column.parse("x", "float32[64]")
    made = PosixStorage(tmp_path / "m")
    shard = ShardWriter(made.stream("a/x/c/0/0"), column, WHO, STRIDE)
    shard.append(values_of(np.arange(ROWS), column))
    shard.finish()
    ours = made.get("a/x/c/0/0")
    _, data, _ = theirs(tmp_path, column, "zarr-python")
    mixed = ours[:4096] + data[4096:]
    overwrite(made, "a/x/c/0/0", mixed)
    with pytest.raises(CorruptError, match="index-damaged"):
        ShardReader(made, "a/", column, WHO, rows=ROWS, stride_rows=STRIDE, size=len(mixed))


# -- bringing data in --------------------------------------------------------------------------------------------


def bring_in(opened, group, array, *, spec, raw=False):
    """The documented way: read pieces with the tool that knows the array, put them through the writer."""
    with opened.writer(group, columns={"x": spec}, recipe={"from": group}) as writer:
        for low in range(0, array.shape[0], 300):
            high = min(low + 300, array.shape[0])
            ids = opened.row_ids(slice(low, high))
            writer.put(ids, {"x": np.asarray(array[low:high])}, raw=raw)
    return opened.refresh()


@pytest.fixture
def opened(memory_url):
    return tokens_store(memory_url(), [200, 256, 300])


@pytest.mark.parametrize(
    "pipeline", ["zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs.ZarrsCodecPipeline"]
)
@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "bfloat16"])
def test_zarr_arrays_of_every_dtype_become_columns(opened, tmp_path, dtype, pipeline):
    if pipeline.startswith("zarrs"):
        pytest.importorskip("zarrs")
    column = Column.parse("x", f"{dtype}[4,5]")
    values = values_of(opened.row_ids(), column)
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        array = zarr.create_array(
            str(tmp_path / "a"),
            shape=values.shape,
            dtype=dtype,
            chunks=(100, 4, 5),
            shards=(400, 4, 5),
        )
        array[:] = values
        found = bring_in(opened, "theirs", array, spec=column.spec)
    assert found.read("theirs:x").tobytes() == values.tobytes()
    assert store.verify(found).ok


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "uint8"])
def test_tensorstore_arrays_become_columns(opened, tmp_path, dtype):
    tensorstore = pytest.importorskip("tensorstore")
    column = Column.parse("x", f"{dtype}[24]")
    values = values_of(opened.row_ids(), column)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "a")}}
    kind = tensorstore.dtype(dtype)
    array = tensorstore.open(spec, create=True, dtype=kind, shape=values.shape).result()
    array.write(values.astype(kind.numpy_dtype)).result()
    pieces = Pieces(array)
    found = bring_in(opened, "theirs", pieces, spec=column.spec)
    assert found.read("theirs:x").tobytes() == values.tobytes()
    if dtype == "bfloat16":
        bits = bring_in(opened, "bits", Pieces(array, np.uint16), spec=column.spec, raw=True)
        assert bits.read("bits:x").tobytes() == values.tobytes()


class Pieces:
    """A tensorstore array that reads what is sliced."""

    def __init__(self, array, view=None):
        self._array, self._view, self.shape = array, view, array.shape

    def __getitem__(self, rows):
        found = self._array[rows].read().result()
        return found if self._view is None else found.view(self._view)


def test_a_store_is_copied_through_its_own_zarr_view(opened, memory_url):
    """What the view shows and the writer takes are the same rows."""
    from jobs.export.zarr_store import ActlakeStore

    source = fill(opened, "acts", {"x": "bfloat16[24]"})
    tree = zarr.open_group(ActlakeStore(source), mode="r")
    other = tokens_store(memory_url(), [200, 256, 300])
    rows = tree["acts/x"][:][tree["acts/valid"][:]]
    found = bring_in(other, "acts", rows, spec="bfloat16[24]", raw=True)
    assert np.array_equal(found.read("acts:x"), source.read("acts:x"))
