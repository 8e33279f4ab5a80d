"""Whole columns in zarr-python straight from a store: right rows, no fill for what is not there, nothing written."""

import pickle

import numpy as np
import pytest
import zarr

import store
from jobs.errors import JobError
from jobs.export.zarr_store import ActlakeStore
from store import CorruptError, InvalidInputError, NotFoundError
from store.codecs import CODECS
from store.maintenance import retire
from store.testing.faults import flip, overwrite
from store.testing.small import fill, small_store, tokens_store

LENGTHS = [200, 150, 256, 31, 300, 400, 90]
COLUMNS = {"h": "bfloat16[16]", "f": "float32[4,5]", "i": "int8[32]"}


@pytest.fixture(params=["memory", "posix"])
def made(request, tmp_path):
    place = f"memory://zarr-store-{tmp_path}" if request.param == "memory" else tmp_path / "s"
    return fill(tokens_store(place, LENGTHS), "acts", COLUMNS)


def tree_of(opened, **more):
    return zarr.open_group(ActlakeStore(opened, **more), mode="r")


def shard_key(opened, part, column="h"):
    dimensions = len(opened.column(f"acts:{column}").shape)
    return opened.view.commit("acts", part).prefix + f"{column}/c/0" + "/0" * dimensions


def test_every_row_is_at_its_id_and_valid_says_which_are_rows(made):
    tree, ids = tree_of(made), made.row_ids()
    assert np.array_equal(np.flatnonzero(tree["acts/valid"][:]), ids)
    for name in COLUMNS:
        array = tree[f"acts/{name}"]
        wanted = made.read(f"acts:{name}", raw=True)
        assert array.shape == (1024 * len(made.view.parts("acts")), *wanted.shape[1:])
        assert array.shards == (1024, *wanted.shape[1:])
        assert array.chunks == (256, *wanted.shape[1:])
        assert array[:][ids].tobytes() == wanted.tobytes()
        some = np.sort(np.random.default_rng(0).choice(ids, 20, replace=False))
        assert array.oindex[some].tobytes() == made.gather(f"acts:{name}", some, raw=True).tobytes()
        first = int(ids[ids >= 1024][0])
        assert np.array_equal(array[first : first + 5], wanted[np.searchsorted(ids, first) :][:5])


def test_the_hierarchy_says_whose_it_is_and_what_it_leaves_out(tmp_path):
    opened = small_store(tmp_path / "s")
    pinned = store.open(opened.url, pin=opened.pin())
    tree = tree_of(pinned)
    assert {path for path, _ in tree.members(max_depth=None)} == {
        "acts",
        *(f"acts/{name}" for name in ("h", "f", "i", "valid")),
    }
    assert tree.attrs["store"] == opened.id
    assert tree.attrs["pin"] == pinned.view.pin
    assert set(tree.attrs["left_out"]) == {"tokens", "labels", "codes", "sample", "stat"}
    assert "sample" in tree.attrs["left_out"]["sample"]
    assert tree["acts"].attrs["valid"] == "valid"
    assert tree["acts/h"].attrs["logical_dtype"] == "bfloat16"


def test_a_chunk_is_read_without_the_rest_of_its_shard(made, monkeypatch):
    array = tree_of(made)["acts/h"]
    storage, asked = made.view.storage, []
    inner = storage.read_into
    array[0:1]  # the shard is checked once
    monkeypatch.setattr(
        storage,
        "read_into",
        lambda key, ranges: (asked.extend(len(buffer) for _, buffer in ranges), inner(key, ranges)),
    )
    array[300:310]
    assert asked == [16 * 4 + 4, 256 * 32 + 4]


# -- nothing is filled ---------------------------------------------------------------------------------------


def test_a_part_that_is_not_committed_is_an_error_not_a_fill_value(tmp_path):
    opened = tokens_store(tmp_path / "s", LENGTHS)
    with opened.writer("acts", columns={"i": "int8[32]"}, recipe={}) as writer:
        for part in (0, 2):
            ids = part * opened.part_stride + np.arange(opened.view.commit("tokens", part).rows)
            writer.put(ids, {"i": np.full((len(ids), 32), part + 1, np.int8)})
    opened = opened.refresh()
    tree = tree_of(opened)
    array = tree["acts/i"]
    assert array.shape == (3 * 1024, 32)
    assert (array[2048:2050] == 3).all()
    for rows in (slice(1024, 1025), slice(0, 3072), slice(1023, 1026)):
        with pytest.raises(NotFoundError, match=r"part 1 of group 'acts'.*not committed") as caught:
            array[rows]
        assert caught.value.kind == "part-missing"
    assert not tree["acts/valid"][1024:2048].any()


def test_a_retired_part_is_an_error_and_its_rows_are_not_valid(made):
    retire(made, [0], "a test")
    tree = tree_of(made.refresh())
    with pytest.raises(NotFoundError, match="is retired"):
        tree["acts/f"][:10]
    assert not tree["acts/valid"][:1024].any()
    assert tree["acts/valid"][1024:2048].any()
    assert len(tree["acts/f"][1024:1034]) == 10


def test_what_a_pin_saw_and_is_gone_is_an_error(made):
    pinned = store.open(made.url, pin=made.pin())
    retire(made, [1], "a test")
    tree = tree_of(pinned)
    assert len(tree["acts/f"][:10]) == 10
    for name in ("f", "valid"):
        with pytest.raises(NotFoundError) as caught:
            tree[f"acts/{name}"][1024:1025]
        assert caught.value.kind == "purged"


DAMAGE = {
    "gone": (lambda data: None, "object-missing"),
    "empty": (lambda data: b"", "object-size"),
    "cut": (lambda data: data[:-1], "object-size"),
    "index": (lambda data: flip(data, len(data) - 20), "index-damaged"),
    "slot": (lambda data: flip(data, 40), "foreign-shard"),
}


@pytest.mark.parametrize(("harm", "kind"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_shard_is_an_error_not_a_fill_value(made, harm, kind):
    key = shard_key(made, 0)
    overwrite(made.view.storage, key, harm(made.view.storage.get(key)))
    array = tree_of(made.refresh())["acts/h"]
    for rows in (slice(0, 3), slice(0, 1024)):
        with pytest.raises(CorruptError) as caught:
            array[rows]
        assert caught.value.kind == kind
    assert array[1024:1030].shape == (6, 16)


def test_a_damaged_chunk_is_noticed_by_zarrs_own_checksum(made):
    key = shard_key(made, 0)
    overwrite(made.view.storage, key, flip(made.view.storage.get(key), 4096 + 77))
    array = tree_of(made.refresh())["acts/h"]
    with pytest.raises(ValueError, match="checksum"):
        array[:3]
    assert array[256:259].shape == (3, 16)


def test_a_shard_of_another_part_copied_into_place_is_refused(tmp_path):
    opened = fill(tokens_store(tmp_path / "s", [512, 512]), "acts", COLUMNS)
    storage = opened.view.storage
    overwrite(storage, shard_key(opened, 0), storage.get(shard_key(opened, 1)))
    with pytest.raises(CorruptError, match="foreign-shard"):
        tree_of(opened.refresh())["acts/h"][:3]


def test_an_object_that_shrinks_after_it_was_checked_is_an_error(made):
    array = tree_of(made)["acts/h"]
    assert array[:3].shape == (3, 16)
    key = shard_key(made, 0)
    overwrite(made.view.storage, key, made.view.storage.get(key)[:5000])
    with pytest.raises(CorruptError, match="object-short"):
        array[256:258]


@pytest.mark.parametrize("ranges", [(5, 5), (70, 80), (9, 3)])
def test_ranges_without_bytes_are_refused_for_zarr_fills_what_comes_back_empty(made, ranges):
    from zarr.abc.store import RangeByteRequest

    view = ActlakeStore(made)
    size = made.view.storage.size(shard_key(made, 0))
    low, high = ranges if ranges != (70, 80) else (size, size + 10)
    with pytest.raises(InvalidInputError, match="bad-range"):
        view.get_sync("acts/h/c/0/0", byte_range=RangeByteRequest(low, high))


# -- keys ----------------------------------------------------------------------------------------------------


def test_keys_that_only_look_like_chunks_are_not_there(made):
    view = ActlakeStore(made)
    odd = [
        "acts/h/c/0",
        "acts/h/c/00/0",
        f"acts/h/c/{'9' * 5000}/0",
        "acts/h/c/0/1",
        "acts/h/c/-1/0",
        "acts/h/c/0/0/0",
        "x/y/c/0/0",
    ]
    odd += [
        "acts/valid/c/0/0",
        "acts/h/c/٣/0",
        "acts/h/c//0",
        "acts/h/c/x/0",
        "acts",
        "",
        "/zarr.json",
    ]
    assert [key for key in odd if view.get_sync(key) is not None] == []
    assert view.get_sync("acts/h/c/0/0") is not None
    assert view.get_sync("acts/f/c/0/0/0") is not None
    with pytest.raises(NotFoundError):
        view.get_sync(f"acts/h/c/{10**9}/0")


def test_sizes_and_existence_come_from_the_records(made):
    view, run = ActlakeStore(made), zarr.core.sync.sync
    key = shard_key(made, 1)
    size = made.view.storage.size(key)
    overwrite(made.view.storage, key, None)
    assert run(view.getsize("acts/h/c/1/0")) == size
    assert run(view.exists("acts/h/c/1/0"))
    assert not run(view.exists(f"acts/h/c/{10**6}/0"))
    with pytest.raises(FileNotFoundError):
        run(view.getsize(f"acts/h/c/{10**6}/0"))


def test_bytes_are_those_of_the_store_and_the_listing_is_complete(made):
    view, run = ActlakeStore(made), zarr.core.sync.sync
    keys = run(collected(view.list()))
    assert len(keys) == len(set(keys)) == 6 + (len(COLUMNS) + 1) * len(made.view.parts("acts"))
    assert all(view.get_sync(key) is not None for key in keys)
    assert view.get_sync("acts/h/c/1/0").to_bytes() == made.view.storage.get(shard_key(made, 1))
    for prefix in ("", "a", "acts/h", "acts/h/", "acts/h/c/1", "acts/valid/c/", "b"):
        wanted = [key for key in keys if key.startswith(prefix)]
        assert run(collected(view.list_prefix(prefix))) == wanted


async def collected(keys):
    return [key async for key in keys]


def test_a_column_called_valid_is_not_hidden(tmp_path):
    opened = fill(
        tokens_store(tmp_path / "s", [300]), "acts", {"valid": "float32[16]", "valid_": "int8[16]"}
    )
    tree = tree_of(opened)
    assert tree["acts"].attrs["valid"] == "valid__"
    assert np.array_equal(tree["acts/valid"][:300], opened.read("acts:valid"))
    assert int(tree["acts/valid__"][:].sum()) == 300


@pytest.mark.parametrize("codec", CODECS.names())
def test_coded_columns_are_shown_as_zarr_sees_their_chunks(codec, tmp_path):
    opened = tokens_store(tmp_path / "s", LENGTHS)
    ids = opened.row_ids()
    x = np.random.default_rng(0).standard_normal((len(ids), 70)).astype(np.float32)
    with opened.writer("acts", columns={"h": "float32[70]"}, recipe={}, codec=codec) as writer:
        writer.put(ids, {"h": x})
    opened = opened.refresh()
    array = tree_of(opened)["acts/h"]
    rows, wanted = array[:][ids], opened.read("acts:h")
    if CODECS.get(codec)().lossy:
        assert array.attrs["codec"] == codec
        out = np.empty_like(wanted)
        CODECS.get(codec)().decode(np.ascontiguousarray(rows), out, opened.column("acts:h"))
        rows = out
    assert np.array_equal(rows, wanted)


# -- what it is not --------------------------------------------------------------------------------------------


def test_nothing_can_be_written_through_it(made):
    before = sorted(made.view.storage.keys(""))
    for mode in ("a", "r+", "w"):
        with pytest.raises(ValueError, match="read-only"):
            zarr.open_group(ActlakeStore(made), mode=mode)
    array = tree_of(made)["acts/f"]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        tree_of(made).create_array("mine", shape=(3,), dtype="int8")
    assert sorted(made.view.storage.keys("")) == before


@pytest.mark.parametrize(
    ("groups", "kind"), [(["sample"], "masked-group"), (["codes", "labels"], "no-columns")]
)
def test_groups_without_whole_dense_parts_are_refused_where_they_are_named(groups, kind, tmp_path):
    opened = small_store(tmp_path / "s")
    with pytest.raises(JobError, match=kind):
        ActlakeStore(opened, groups)
    with pytest.raises(KeyError):
        tree_of(opened)["sample/h"]


def test_it_travels_to_other_processes_with_what_it_was_asked_for(tmp_path):
    opened = small_store(tmp_path / "s")
    view = ActlakeStore(store.open(opened.url, pin=opened.pin()), ["acts"])
    again = pickle.loads(pickle.dumps(view))
    assert again == view
    assert hash(again) == hash(view)
    assert again != ActlakeStore(opened)
    rows = zarr.open_group(again, mode="r")["acts/i"][:10]
    assert np.array_equal(rows, opened.read("acts:i", slice(0, 10)))


def test_a_store_that_grows_is_seen_as_it_was(tmp_path):
    opened = tokens_store(tmp_path / "s", LENGTHS)
    first = opened.view.commit("tokens", 0).rows
    with opened.writer("acts", columns={"i": "int8[32]"}, recipe={}) as writer:
        writer.put(np.arange(first), {"i": np.ones((first, 32), np.int8)})
        tree = tree_of(opened.refresh())
        second = 1024 + np.arange(opened.view.commit("tokens", 1).rows)
        writer.put(second, {"i": np.ones((len(second), 32), np.int8)})
    assert tree["acts/i"].shape == (1024, 32)
    assert tree_of(opened.refresh())["acts/i"].shape == (2048, 32)


@pytest.mark.slow
def test_a_store_in_a_bucket_is_read_the_same_way(s3_url, tmp_path):
    there = fill(tokens_store(s3_url, LENGTHS), "acts", COLUMNS)
    tree, ids = tree_of(there), there.row_ids()
    for name in COLUMNS:
        wanted = there.read(f"acts:{name}", raw=True)
        assert tree[f"acts/{name}"][:][ids].tobytes() == wanted.tobytes()
    there.view.storage.delete([shard_key(there, 0)])
    with pytest.raises(CorruptError, match="object-missing"):
        tree_of(there.refresh())["acts/h"][:3]
