"""Laws over every codec: round trip or stated bound, any pieces, damage refused, other Zarr readers agree."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import store
from store import CorruptError, InvalidInputError
from store.checksum import crc32c
from store.codecs import CODECS
from store.codecs.dynamic8 import code_values
from store.memory import MemoryStorage
from store.schema import DTYPES, Column
from store.shard_reader import ShardReader
from store.shards import ShardWriter, identity
from store.summary import bfloat16_bits, widened
from store.testing.faults import flip, harvest, overwrite, plant
from store.testing.small import tokens_store, values_of

WHO = identity("s" * 32, "g", 3, "x", "0" * 16)
STRIDE = 1024
LOSSY = [name for name in CODECS.names() if CODECS.get(name)().lossy]
EXACT = [name for name in CODECS.names() if name not in LOSSY]
SHAPES = [(16,), (70,), (4, 33), (3, 2, 11)]
each_codec = pytest.mark.parametrize("codec", CODECS.names())
each_lossy = pytest.mark.parametrize("codec", LOSSY)


def column_of(codec, dtype="bfloat16", shape=(70,)):
    return dataclasses.replace(
        Column.parse("x", f"{dtype}[{','.join(map(str, shape))}]"), codec=codec
    )


def fits(column):
    return CODECS.get(column.codec)().refuses(column) is None


def numbers(column, rows, seed=0, spread=3.0):
    """Values of very different sizes, zeros and whole rows of zeros among them, as they are stored."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, *column.shape)) * 10.0 ** rng.uniform(
        -spread, spread, (rows, *[1] * len(column.shape))
    )
    x[rng.random(x.shape) < 0.1] = 0
    x[rng.random(rows) < 0.1] = 0
    if column.stored.kind in "iu" and not column.bits:
        return x.astype(np.int64).astype(column.stored)
    return bfloat16_bits(x.astype(np.float32)) if column.bits else x.astype(column.stored)


def write(column, values, pieces=None):
    storage = MemoryStorage()
    key = f"a/x/c/{'/'.join('0' * (1 + len(column.shape)))}"
    writer = ShardWriter(storage.stream(key), column, WHO, STRIDE)
    for low, high in pieces or [(0, len(values))]:
        writer.append(values[low:high])
    size = writer.finish().size
    shard = ShardReader(storage, "a/", column, WHO, rows=len(values), stride_rows=STRIDE, size=size)
    return storage, key, shard, writer


def read(column, shard, low, high):
    out = np.empty((high - low, *column.shape), column.stored)
    shard.read(low, high, out)
    return out


@each_codec
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_come_back_exactly_or_within_the_stated_bound(codec, dtype, shape):
    column = column_of(codec, dtype, shape)
    if not fits(column):
        with pytest.raises(InvalidInputError, match="not-codable"):
            tokens_store(f"memory://codec-{codec}-{dtype}-{shape}").writer(
                "g", columns={"x": column.spec}, recipe={}, codec=codec
            )
        return
    values = numbers(column, 600)
    _, _, shard, writer = write(column, values)
    found = read(column, shard, 0, 600)
    if codec in EXACT:
        assert found.tobytes() == values.tobytes()
        assert writer.loss is None
        return
    plain, decoded = (widened(v, column.bits).astype(np.float64) for v in (values, found))
    error = np.abs(decoded - plain)
    assert (error <= CODECS.get(codec)().bound(values, column)).all()
    assert writer.loss.max_error == error.max()
    assert writer.loss.to_json()["relative_squared_error"] == pytest.approx(
        (error**2).sum() / (plain**2).sum()
    )
    assert 0 < writer.loss.to_json()["relative_squared_error"] < 2e-4


@each_lossy
def test_the_bound_is_reached_within_a_factor_of_three(codec):
    """A bound that nothing comes near would be no statement."""
    column = column_of(codec, "float32", (64,))
    values = np.random.default_rng(1).uniform(-1, 1, (1024, 64)).astype(np.float32)
    error = np.abs(read(column, write(column, values)[2], 0, 1024).astype(np.float64) - values)
    assert (error / CODECS.get(codec)().bound(values, column)).max() > 1 / 3


@each_lossy
def test_one_outlier_costs_its_own_block_only(codec):
    column = column_of(codec, "float32", (192,))
    values = np.random.default_rng(2).uniform(-1, 1, (256, 192)).astype(np.float32)
    values[:, 5] = 1e4
    found = read(column, write(column, values)[2], 0, 256)
    assert np.abs(found - values)[:, 64:].max() < 0.02
    assert found[:, 5] == pytest.approx(values[:, 5], rel=0.01)


@each_lossy
def test_the_largest_and_smallest_floats_come_back_finite(codec):
    for dtype in ("float16", "float32", "bfloat16"):
        column = column_of(codec, dtype, (16,))
        tiny = {"float16": 6e-8, "float32": 1e-45, "bfloat16": 1e-40}[dtype]
        huge = {"float16": 65504.0, "float32": 3.38e38, "bfloat16": 3.38e38}[dtype]
        x = np.zeros((256, 16), np.float32)
        x[0], x[1], x[2] = huge, -huge, tiny
        values = bfloat16_bits(x) if column.bits else x.astype(column.stored)
        found = widened(read(column, write(column, values)[2], 0, 256), column.bits)
        assert np.isfinite(found).all()
        bound = CODECS.get(codec)().bound(values, column)
        plain = widened(values, column.bits).astype(np.float64)
        assert (np.abs(found.astype(np.float64) - plain) <= bound).all()


@each_lossy
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3.4e38])
def test_values_without_an_8_bit_form_are_refused_and_the_part_is_dropped(codec, bad, memory_url):
    made = tokens_store(memory_url())
    ids = made.row_ids()
    x = np.ones((len(ids), 16), np.float32)
    x[7, 3] = bad
    with (
        made.writer(
            "g", columns={"x": "float32[16]"}, recipe={}, codec=codec, allow_nonfinite=True
        ) as writer,
        pytest.raises(InvalidInputError, match="not-codable"),
    ):
        writer.put(ids, {"x": x})
    assert store.verify(made.refresh()).ok
    assert not made.refresh().view.parts("g")


@each_codec
@given(st.data())
def test_written_and_read_in_any_pieces_is_the_same(codec, data):
    column = column_of(codec)
    rows = data.draw(st.sampled_from([1, 255, 257, 600, 1024]))
    values = numbers(column, rows, seed=rows)
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=4)))
    pieces = list(zip([0, *cuts], [*cuts, rows], strict=True))
    storage, key, shard, _ = write(column, values, pieces)
    whole = write(column, values)
    assert storage.get(key) == whole[0].get(key)  # the same bytes whoever put them how
    everything = read(column, whole[2], 0, rows)
    for low, high in pieces:
        assert np.array_equal(read(column, shard, low, high), everything[low:high])
    slots = np.sort(data.draw(st.lists(st.integers(0, rows - 1), max_size=20).map(np.array)))
    slots = slots.astype(np.int64)
    out = np.empty((len(slots), *column.shape), column.stored)
    shard.scatter(slots, np.arange(len(slots)), out)
    assert np.array_equal(out, everything[slots])


@each_codec
@given(st.data())
def test_no_flipped_bit_ever_changes_a_row(codec, data):
    column = column_of(codec)
    values = numbers(column, 600)
    storage, key, shard, _ = write(column, values)
    wanted, good = read(column, shard, 0, 600), storage.get(key)
    at = data.draw(st.integers(0, len(good) - 1))
    overwrite(storage, key, flip(good, at, data.draw(st.integers(0, 7))))
    try:
        again = ShardReader(
            storage, "a/", column, WHO, rows=600, stride_rows=STRIDE, size=len(good)
        )
        assert np.array_equal(read(column, again, 0, 600), wanted)  # it was padding
    except CorruptError:
        pass


@each_codec
def test_bytes_of_another_size_are_refused_before_they_are_expanded(codec):
    """What a crc32c vouches for may still have been made by somebody hostile."""
    column = column_of(codec, "float32", (64,))
    wider = column_of(codec, "float32", (640,))
    coded = CODECS.get(codec)().encode(np.zeros((256, 640), np.float32), wider)
    out = np.full((256, 64), 7, np.float32)
    for bad in (coded, b"", bytes(20), bytes(memoryview(coded))[:-1]):
        with pytest.raises(ValueError):  # noqa: PT011 - each codec says it in its own words
            CODECS.get(codec)().decode(bad, out, column)
    assert (out == 7).all()


@pytest.mark.parametrize("codec", [name for name in CODECS.names() if name != "raw"])
def test_a_store_with_a_codec_is_read_resumed_and_verified(codec, tmp_path):
    made = tokens_store(tmp_path / "s")
    columns = {"h": "bfloat16[70]", "f": "float32[4,33]"}
    ids = made.row_ids()
    for parts in (made.view.parts("tokens"), ()):  # the second time there is nothing left to do
        with made.writer("acts", columns=columns, recipe={"codec": codec}, codec=codec) as writer:
            for part in parts:
                mine = ids[ids // made.part_stride == part]
                declared = writer.group.columns.values()
                writer.put(mine, {c.name: values_of(mine, c) for c in declared})
        made = made.refresh()
    report = store.verify(made)
    assert report.ok
    commit = made.view.commit("acts", 0)
    assert ("max_error" in commit.summary["h"]) == (codec in LOSSY)
    copied = store.open(plant("memory://codec-copy-" + codec, harvest(str(tmp_path / "s"))))
    assert copied.digest() == report.digest
    for name in columns:
        column = made.column(f"acts:{name}")
        assert column.codec == codec
        found, wanted = made.read(f"acts:{name}"), values_of(ids, column)
        assert np.array_equal(found, wanted) == (codec in EXACT)
        assert np.abs(found - wanted).max() < 0.03


@each_codec
def test_other_zarr_readers_read_what_was_written(codec, tmp_path):
    zarr, tensorstore = pytest.importorskip("zarr"), pytest.importorskip("tensorstore")
    made = tokens_store(tmp_path / "s", [200, 150, 256, 31])
    ids = made.row_ids()
    columns = {"h": "bfloat16[70]", "f": "float32[4,33]"}
    with made.writer("acts", columns=columns, recipe={}, codec=codec) as writer:
        for part in made.view.parts("tokens"):
            mine = ids[ids // made.part_stride == part]
            declared = writer.group.columns.values()
            writer.put(mine, {c.name: values_of(mine, c) for c in declared})
    made = made.refresh()
    for name in columns:
        column = made.column(f"acts:{name}")
        commit = made.view.commit("acts", 0)
        folder = tmp_path / "s" / commit.prefix / name
        wanted = made.read(f"acts:{name}", slice(0, commit.rows), raw=True)
        driver = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
        found = {
            "zarr": np.asarray(zarr.open(str(folder), mode="r")[:]),
            "tensorstore": np.asarray(
                tensorstore.open(driver, open=True, read=True).result().read().result()
            ),
        }
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            found["zarrs"] = np.asarray(zarr.open(str(folder), mode="r")[:])
        for values in found.values():
            if (
                codec in LOSSY
            ):  # they see the coded rows, and their attributes say how to decode them
                assert values.dtype == np.uint8
                out = np.empty_like(wanted)
                CODECS.get(codec)().decode(np.ascontiguousarray(values), out, column)
                assert np.array_equal(out, wanted)
            else:
                assert values.tobytes() == wanted.tobytes()
        attributes = zarr.open(str(folder), mode="r").attrs
        assert attributes.get("codec") == (codec if codec in LOSSY else None)


def test_the_dynamic_map_is_the_published_one():
    table = code_values()
    assert len(table) == len(set(table.tolist())) == 256
    assert table.max() == 1
    assert 0.0 in table
    assert -1.0 not in table
    assert table.min() == pytest.approx(-0.99296875)
    assert sum(0.1 <= v < 1 for v in table) == 64
    assert sum(1e-7 < v <= 1e-6 for v in table) == 1
    positive = sorted(v for v in table.tolist() if 0 < v < 1)
    assert [-v for v in positive][::-1] == [v for v in table.tolist() if v < 0]


def test_activations_of_few_exponents_become_smaller():
    column = column_of("bitshuffle-zstd", "bfloat16", (384,))
    x = np.random.default_rng(0).standard_normal((1024, 384)).astype(np.float32)
    storage, key, _, _ = write(column, bfloat16_bits(x))
    assert storage.size(key) < 1024 * 384 * 2 / 1.25


def test_a_chunk_whose_crc_is_right_and_that_no_codec_made_is_damage():
    column = column_of("bitshuffle-zstd")
    storage, key, shard, _ = write(column, numbers(column, 600))
    data = bytearray(storage.get(key))
    offset, length = shard._index[1].tolist()
    data[offset + 16 : offset + length - 4] = bytes(length - 20)
    right = crc32c(bytes(data[offset : offset + length - 4])).to_bytes(4, "little")
    data[offset + length - 4 : offset + length] = right
    overwrite(storage, key, bytes(data))
    again = ShardReader(storage, "a/", column, WHO, rows=600, stride_rows=STRIDE, size=len(data))
    with pytest.raises(CorruptError, match=r"chunk 1 .*is not coded as 'bitshuffle-zstd'"):
        read(column, again, 0, 600)
    assert read(column, again, 0, 256).tobytes() == read(column, shard, 0, 256).tobytes()
