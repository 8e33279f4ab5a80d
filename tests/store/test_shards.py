import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import CorruptError
from store.checksum import crc32c
from store.codecs import CODECS
from store.layout import CHUNK_ROWS, ShardLayout, shard_path
from store.memory import MemoryStorage
from store.schema import DTYPES, Column
from store.shard_reader import ShardReader
from store.shards import ShardWriter, identity
from store.summary import bfloat16_bits, float32_of_bits
from store.testing.faults import flip, overwrite
from store.testing.strategies import columns, cuts, stored_values

WHO = identity("s" * 32, "g", 3, "x", "0" * 16)
STRIDE = 1024


def write(column, values, pieces, *, who=WHO, stride=STRIDE):
    """Write a shard in pieces; return (storage, size)."""
    storage = MemoryStorage()
    key = "a/" + shard_path(column.name, 1 + len(column.shape))
    writer = ShardWriter(storage.stream(key), column, who, stride)
    for low, high in pieces:
        writer.append(values[low:high])
    return storage, writer.finish().size


def reader(storage, column, rows, size, *, who=WHO):
    return ShardReader(storage, "a/", column, who, rows=rows, stride_rows=STRIDE, size=size)


def bits(values):
    return values.view(f"u{values.itemsize}")


@given(st.data())
def test_written_in_any_pieces_reads_in_any_pieces(data):
    column = data.draw(columns(dense=True))
    rows = data.draw(st.sampled_from([1, 255, 256, 257, 600, 1024]))
    sample = data.draw(stored_values(column, 7, finite=False))
    values = sample[np.arange(rows) * 5 % 7].copy()
    values.reshape(rows, -1)[:, 0] = bits(np.arange(rows).astype(column.stored)).view(column.stored)
    storage, size = write(column, values, data.draw(cuts(rows)))
    shard = reader(storage, column, rows, size)
    for low, high in [(0, rows), *data.draw(cuts(rows))]:
        out = np.empty((high - low, *column.shape), column.stored)
        shard.read(low, high, out)
        assert np.array_equal(bits(out), bits(values[low:high]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_pattern_of_every_dtype_survives(dtype, rng):
    column = Column.parse("x", f"{dtype}[3,8]")
    raw = rng.integers(0, 256, (300, 3, 8 * column.stored.itemsize), np.uint8)
    values = raw.view(column.stored)
    storage, size = write(column, values, [(0, 100), (100, 300)])
    out = np.empty_like(values)
    reader(storage, column, 300, size).read(0, 300, out)
    assert out.tobytes() == values.tobytes()


@given(st.data())
def test_scatter_equals_fancy_indexing(data):
    column = Column.parse("x", "int32[16]")
    values = np.arange(700 * 16, dtype=np.int32).reshape(700, 16)
    storage, size = write(column, values, [(0, 700)])
    slots = np.sort(np.array(data.draw(st.lists(st.integers(0, 699), max_size=40)), np.int64))
    place = np.array(data.draw(st.permutations(range(len(slots)))), np.int64)
    out = np.empty((len(slots), 16), np.int32)
    reader(storage, column, 700, size).scatter(slots, place, out)
    assert np.array_equal(out[place], values[slots])


@pytest.mark.parametrize(
    ("call_chunks", "most"), [(0, 1), (3, 2)]
)  # a chunk has its crc32c behind it
def test_a_call_reads_as_much_as_the_storage_wants(monkeypatch, call_chunks, most):
    column = Column.parse("x", "float32[64]")
    values = np.arange(1024 * 64, dtype=np.float32).reshape(1024, 64)
    storage, size = write(column, values, [(0, 1024)])
    shard = reader(storage, column, 1024, size)
    asked = []
    inner = storage.read_into
    storage.call_bytes = call_chunks * 256 * 64 * 4

    def spying(key, ranges):
        asked.append(sum(memoryview(buffer).nbytes for _, buffer in ranges) // (256 * 64 * 4))
        inner(key, ranges)

    monkeypatch.setattr(storage, "read_into", spying)
    out = np.empty_like(values)
    shard.read(0, 1024, out)
    assert np.array_equal(out, values)
    shard.scatter(np.arange(1024), np.arange(1024)[::-1].copy(), out)
    assert np.array_equal(out[::-1], values)
    assert max(asked) == most
    assert sum(asked) == 8


CALL_BYTES = (1, 3_000, 40_000, 1 << 20)


@pytest.mark.parametrize("codec", CODECS.names())
@pytest.mark.parametrize("spec", ["bfloat16[16]", "float32[20]", "float32[64]"])
def test_however_much_a_call_reads_the_rows_are_the_same(codec, spec, rng):
    """In ranges, and in any order with repeats, widened or not."""
    column = Column.parse("x", spec, codec=codec)
    values = rng.standard_normal((1000, *column.shape)).astype(np.float32)
    given = bfloat16_bits(values) if column.bits else values
    storage, size = write(column, given, [(0, 1000)])
    truth = np.empty((1000, *column.shape), column.stored)
    reader(storage, column, 1000, size).read(0, 1000, truth)
    for call_bytes in CALL_BYTES:
        storage.call_bytes = call_bytes
        shard = reader(storage, column, 1000, size)
        for _ in range(20):
            low, high = sorted(rng.integers(0, 1001, 2).tolist())
            out = np.empty((high - low, *column.shape), column.stored)
            shard.read(low, high, out)
            assert np.array_equal(bits(out), bits(truth[low:high]))
            slots = rng.integers(0, 1000, int(rng.integers(0, 900)))
            slots = np.sort(slots) if rng.random() < 0.5 else slots
            slots = np.unique(slots) if rng.random() < 0.3 else slots
            place = rng.permutation(len(slots))
            for wide in {np.dtype(np.float32), column.stored}:
                out = np.empty((len(slots), *column.shape), wide)
                shard.scatter(slots, place, out)
                wanted = float32_of_bits(truth) if column.bits and wide == np.float32 else truth
                assert np.array_equal(bits(out[place]), bits(wanted[slots]))


@pytest.mark.parametrize("codec", ["raw", "bitshuffle-zstd"])
@pytest.mark.parametrize("call_bytes", CALL_BYTES)
@pytest.mark.parametrize("bad", range(4))
def test_the_chunk_that_is_damaged_is_named_whatever_it_was_read_with(codec, call_bytes, bad, rng):
    column = Column.parse("x", "float32[20]", codec=codec)
    values = rng.standard_normal((1000, 20)).astype(np.float32)
    storage, size = write(column, values, [(0, 1000)])
    key = "a/" + shard_path("x", 2)
    data = storage.get(key)
    index = np.frombuffer(
        data[-ShardLayout(row_bytes=80, rows=1000, stride_rows=STRIDE).index_bytes : -4], "<u8"
    )
    overwrite(storage, key, flip(data, int(index[2 * bad]) + 50))
    storage.call_bytes = call_bytes
    shard = reader(storage, column, 1000, size)
    out = np.empty((1000, 20), np.float32)
    for call in (
        lambda: shard.read(0, 1000, out),
        lambda: shard.scatter(np.arange(1000), np.arange(1000), out),
        lambda: shard.read_chunk(bad, np.empty((CHUNK_ROWS, 20), np.float32)),
    ):
        with pytest.raises(CorruptError, match=rf"chunk {bad} \(rows {bad * 256}–") as caught:
            call()
        assert caught.value.where["chunk"] == bad
    for chunk in range(4):
        if chunk != bad:
            found = np.empty((CHUNK_ROWS, 20), np.float32)
            shard.read_chunk(chunk, found)
            rows = values[chunk * 256 : (chunk + 1) * 256]
            assert np.array_equal(found[: len(rows)], rows)


@pytest.mark.parametrize("order", [(0, 0, 1, 2), (2, 1, 0, 3), (1, 1, 1, 1), (3, 0, 2, 1)])
def test_an_index_of_another_order_is_followed_alike_however_much_a_call_reads(order, rng):
    """Whoever made it: its chunks are read where it says, be it twice or backwards."""
    column = Column.parse("x", "float32[20]", codec="bitshuffle-zstd")
    values = rng.standard_normal((1024, 20)).astype(np.float32)
    storage, size = write(column, values, [(0, 1024)])
    key = "a/" + shard_path("x", 2)
    data = bytearray(storage.get(key))
    length = 16 * (STRIDE // CHUNK_ROWS)
    index = np.frombuffer(bytes(data[-4 - length : -4]), "<u8").reshape(-1, 2).copy()
    index[:4] = index[list(order)]
    data[-4 - length : -4] = index.tobytes()
    data[-4:] = crc32c(index.tobytes()).to_bytes(4, "little")
    overwrite(storage, key, bytes(data))
    for call_bytes in CALL_BYTES:
        storage.call_bytes = call_bytes
        out = np.empty((1024, 20), np.float32)
        reader(storage, column, 1024, size).read(0, 1024, out)
        wanted = np.concatenate([values[at * 256 : (at + 1) * 256] for at in order])
        assert np.array_equal(out, wanted)


def test_pieces_do_not_change_a_byte(rng):
    column = Column.parse("x", "float32[16]")
    values = rng.normal(size=(900, 16)).astype(np.float32)
    written = []
    for pieces in (
        [(0, 900)],
        [(n, n + 1) for n in range(900)],
        [(0, 255), (255, 600), (600, 900)],
    ):
        storage, _ = write(column, values, pieces)
        written.append(storage.get("a/x/c/0/0"))
    assert written[0] == written[1] == written[2]


def test_rows_that_are_not_contiguous_are_written_right(rng):
    column = Column.parse("x", "float32[16]")
    values = rng.normal(size=(16, 600)).astype(np.float32).T
    storage, size = write(column, values, [(0, 600)])
    out = np.empty((600, 16), np.float32)
    reader(storage, column, 600, size).read(0, 600, out)
    assert np.array_equal(out, values)


REGIONS = {
    "magic": (0, "foreign-shard"),
    "slot-length": (9, "foreign-shard"),
    "slot-text": (20, "foreign-shard"),
    "slot-zeros": (4000, "foreign-shard"),
    "chunk-0": (4096, "chunk-damaged"),
    "chunk-2": (4096 + 2 * 20480 + 700, "chunk-damaged"),
    "fill-rows": (4096 + 2 * 20480 + 16380, "chunk-damaged"),
    "chunk-crc": (4096 + 16384 + 2, "chunk-damaged"),
    "index": (-40, "index-damaged"),
    "index-unused": (-6, "index-damaged"),
    "index-crc": (-1, "index-damaged"),
}


@pytest.fixture(scope="module")
def sound():
    """(column, values, storage, size) of a shard of 600 rows: three chunks, one index entry unused."""
    column = Column.parse("x", "float32[16]")
    values = np.arange(600 * 16, dtype=np.float32).reshape(600, 16)
    return column, values, *write(column, values, [(0, 600)])


@pytest.mark.parametrize(("at", "kind"), REGIONS.values(), ids=REGIONS)
def test_a_flipped_bit_in_any_region_is_an_error(sound, at, kind):
    column, _, storage, size = sound
    damaged = MemoryStorage()
    damaged.put("a/x/c/0/0", flip(storage.get("a/x/c/0/0"), at, 3))
    with pytest.raises(CorruptError, match="group 'g', part 3, column 'x'") as caught:
        reader(damaged, column, 600, size).read(0, 600, np.empty((600, 16), np.float32))
    assert caught.value.kind == kind
    assert caught.value.where["column"] == "x"


@given(st.data())
def test_no_flipped_bit_ever_changes_a_row(sound, data):
    column, values, storage, size = sound
    good = storage.get("a/x/c/0/0")
    at = data.draw(st.integers(0, len(good) - 1))
    damaged = MemoryStorage()
    damaged.put("a/x/c/0/0", flip(good, at, data.draw(st.integers(0, 7))))
    out = np.empty((600, 16), np.float32)
    layout = ShardLayout(row_bytes=64, rows=600, stride_rows=STRIDE)
    inside = (at - 4096) % layout.spacing
    padding = 4096 <= at < layout.index_offset and inside >= layout.coded_bytes
    if padding:
        reader(damaged, column, 600, size).read(0, 600, out)
        assert np.array_equal(out, values)
    else:
        with pytest.raises(CorruptError):
            reader(damaged, column, 600, size).read(0, 600, out)


@given(st.data())
def test_a_truncated_or_grown_shard_is_an_error(sound, data):
    column, _, storage, size = sound
    length = data.draw(st.integers(0, size - 1))
    good = storage.get("a/x/c/0/0")
    for bad in (good[:length], good + b"\0" * (length + 1)):
        damaged = MemoryStorage()
        damaged.put("a/x/c/0/0", bad)
        with pytest.raises(CorruptError) as caught:
            reader(damaged, column, 600, size)
        assert caught.value.kind == "object-size"
        if len(bad) < size:  # a record that agrees does not help either
            with pytest.raises(CorruptError):
                reader(damaged, column, 600, length).read(0, 600, np.empty((600, 16), np.float32))


@pytest.mark.parametrize("field", ["store", "group", "part", "column", "attempt"])
def test_a_shard_of_somebody_else_is_refused_though_all_its_checksums_fit(sound, field):
    column, values, _, _ = sound
    other = {**WHO, field: 7 if field == "part" else "other"}
    storage, size = write(column, values, [(0, 600)], who=other)
    with pytest.raises(CorruptError, match="belongs to another shard") as caught:
        reader(storage, column, 600, size)
    assert caught.value.kind == "foreign-shard"


def test_an_index_with_right_checksum_and_wrong_entries_is_refused(sound):
    column, _, storage, size = sound
    good = storage.get("a/x/c/0/0")
    index = np.frombuffer(good[-68:-4], "<u8").reshape(4, 2).copy()
    for row, col, value in [(0, 0, 24576), (1, 0, 0), (2, 1, 1 << 40), (3, 0, 4096), (0, 1, 3)]:
        changed = index.copy()
        changed[row, col] = value
        data = changed.tobytes()
        damaged = MemoryStorage()
        damaged.put("a/x/c/0/0", good[:-68] + data + crc32c(data).to_bytes(4, "little"))
        with pytest.raises(CorruptError) as caught:
            reader(damaged, column, 600, size)
        assert caught.value.kind == "index-damaged"


def test_a_chunk_once_verified_is_trusted_and_an_untouched_one_is_not(sound):
    column, values, storage, size = sound
    held = MemoryStorage()
    held.put("a/x/c/0/0", storage.get("a/x/c/0/0"))
    shard = reader(held, column, 600, size)
    out = np.empty((CHUNK_ROWS, 16), np.float32)
    shard.read(0, CHUNK_ROWS, out)
    overwrite(held, "a/x/c/0/0", flip(storage.get("a/x/c/0/0"), 4096 + 20480))
    shard.read(0, CHUNK_ROWS, out)
    assert np.array_equal(out, values[:CHUNK_ROWS])
    with pytest.raises(CorruptError, match=r"chunk 1 \(rows 256–511\)"):
        shard.read(300, 301, out[:1])
