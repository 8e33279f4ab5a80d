"""Damage of every kind, on both storages: an error of the right kind or unchanged rows, never a wrong row."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import store
from store import StoreError
from store.layout import ShardLayout
from store.storage import Storage
from store.testing.faults import flip, overwrite, plant
from store.testing.small import fill, tokens_store, values_of
from store.urls import open_storage

SHARD = ShardLayout(row_bytes=32, rows=440, stride_rows=1024)  # acts:h of part 0


def find(objects, *pieces):
    """The one key that contains all pieces."""
    (key,) = (key for key in objects if all(piece in key for piece in pieces))
    return key


def everything(opened):
    """Every value a reader can get at, as bytes, by name."""
    found = {"ids": opened.row_ids().tobytes()}
    for group in opened.groups.values():
        for column in group.columns.values():
            name = f"{group.name}:{column.name}"
            if column.kind == "partial":
                states = [opened.partial(name, part) for part in opened.view.parts(group.name)]
                found[name] = b"".join(
                    f"{key} {array.dtype} {array.shape}\n".encode() + array.tobytes()
                    for state in states
                    for key, array in state.items()
                )
            elif column.kind != "codes":
                found[name] = opened.read(name, raw=True).tobytes()
    for name in ("tokens", "sequences", "documents", "labels", "codes", "sample"):
        found[name] = str(opened.arrow(name).to_pydict()).encode()
    found["by_latent"] = str(opened.table("codes_by_latent").collect().rows()).encode()
    found["state"] = str(opened.partial("stat:state", 0)).encode()
    found["sequence"] = b"".join(a.tobytes() for a in opened.sequences("acts:h", [0]))
    windows = opened.windows(["acts:h", "sample:y"], seed=1, where=[("pos", "<", 90)])
    found["windows"] = b"".join(
        w.row_ids.tobytes() + w.columns["acts:h"].tobytes() for w in windows
    )
    return found


@pytest.fixture(scope="module")
def truth(memory_url, small_objects):
    return everything(store.open(plant(memory_url(), small_objects)))


REGIONS = {
    "shard-magic": (("acts/parts/00000000/", "/h/c/0/0"), 3, "foreign-shard"),
    "shard-slot": (("acts/parts/00000000/", "/h/c/0/0"), 40, "foreign-shard"),
    "shard-slot-zeros": (("acts/parts/00000000/", "/h/c/0/0"), 2000, "foreign-shard"),
    "shard-chunk": (("acts/parts/00000000/", "/h/c/0/0"), SHARD.offset(1) + 99, "chunk-damaged"),
    "shard-chunk-crc": (
        ("acts/parts/00000000/", "/h/c/0/0"),
        SHARD.offset(0) + SHARD.chunk_bytes + 1,
        "chunk-damaged",
    ),
    "shard-index": (("acts/parts/00000000/", "/h/c/0/0"), SHARD.index_offset + 9, "index-damaged"),
    "shard-index-crc": (("acts/parts/00000000/", "/h/c/0/0"), -2, "index-damaged"),
    "tokens-table": (("tokens.parquet", "00000001"), 500, "object-damaged"),
    "scalars": (("labels/", "00000000/", "scalars.parquet"), 50, "object-damaged"),
    "codes": (("codes.parquet", "00000002"), 20, "object-damaged"),
    "by-latent": (("by_latent.parquet", "00000002"), 20, "object-damaged"),
    "rows": (("rows.parquet", "00000000"), 9, "object-damaged"),
    "partial": (("state.partial.safetensors", "00000001"), -9, "object-damaged"),
    "partial-head": (("state.partial.safetensors", "00000000"), 3, "object-damaged"),
    "commit": (("acts/commits", "00000001.0.json"), 100, "record-damaged"),
    "tokens-commit": (("tokens/commits", "00000001.0.json"), 100, "record-damaged"),
    "group": (("acts/group.json",), 60, "record-damaged"),
    "store": (("store.json",), 20, "record-damaged"),
    "sealed": (("tokens/sealed.json",), 30, "record-damaged"),
}


@pytest.mark.parametrize(("where", "at", "kind"), REGIONS.values(), ids=REGIONS)
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_is_an_error_of_its_kind(small_url, small_objects, where, at, kind, bit):
    key = find(small_objects, *where)
    overwrite(open_storage(small_url), key, flip(small_objects[key], at, bit))

    def look():
        opened = store.open(small_url)
        everything(opened)

    with pytest.raises(StoreError) as caught:
        look()
    assert caught.value.kind == kind
    if "store.json" not in where:
        report = store.verify(store.open(small_url))
        assert kind in {problem["kind"] for problem in report.problems}
        assert report.digest is None


@given(st.data())
@settings(max_examples=60)
def test_any_flipped_bit_anywhere_is_an_error_or_changes_nothing(
    memory_url, small_objects, truth, data
):
    key = data.draw(st.sampled_from(sorted(small_objects)))
    at = data.draw(st.integers(0, max(0, len(small_objects[key]) - 1)))
    if not small_objects[key]:
        return
    bad = flip(small_objects[key], at, data.draw(st.integers(0, 7)))
    url = plant(memory_url(), {**small_objects, key: bad})
    try:
        opened = store.open(url)
        found = everything(opened)
    except StoreError:
        return
    assert found == truth
    assert not store.verify(opened).ok  # a file nobody read, or padding: verify sees it


@given(st.data())
@settings(max_examples=40)
def test_any_object_truncated_or_deleted_is_an_error_or_changes_nothing(
    memory_url, small_objects, truth, data
):
    key = data.draw(st.sampled_from(sorted(k for k, v in small_objects.items() if v)))
    length = data.draw(st.none() | st.integers(0, len(small_objects[key]) - 1))
    objects = dict(small_objects)
    if length is None:
        del objects[key]
    else:
        objects[key] = small_objects[key][:length]
    url = plant(memory_url(), objects)
    try:
        opened = store.open(url)
        found = everything(opened)
    except StoreError:
        return
    assert found == truth
    assert length is None or not store.verify(opened).ok


def test_padding_is_not_read_and_verify_tells(small_url, small_objects, truth):
    key = find(small_objects, "acts/parts/00000000/", "/h/c/0/0")
    at = SHARD.offset(0) + SHARD.coded_bytes + 7
    overwrite(open_storage(small_url), key, flip(small_objects[key], at))
    opened = store.open(small_url)
    assert everything(opened) == truth
    (problem,) = store.verify(opened).problems
    assert problem["kind"] == "object-damaged"
    assert problem["where"] == {"group": "acts", "part": 0, "column": "h"}
    assert "values are intact" in problem["message"]


def test_verify_names_every_bad_chunk(small_url, small_objects):
    storage = open_storage(small_url)
    for part, column, chunk in [(0, "h", 1), (0, "h", 0), (1, "i", 1)]:
        key = find(small_objects, f"acts/parts/{part:08d}/", f"/{column}/c/0/0")
        at = SHARD.offset(chunk) + 5
        overwrite(storage, key, flip(storage.get(key), at))
    report = store.verify(store.open(small_url))
    places = [p["where"] for p in report.problems]
    assert all(p["kind"] == "chunk-damaged" for p in report.problems)
    assert sorted((w["part"], w["column"], w["chunk"]) for w in places) == [
        (0, "h", 0),
        (0, "h", 1),
        (1, "i", 1),
    ]
    assert {w["group"] for w in places} == {"acts"}
    json.dumps(report.to_json())


def test_a_damaged_chunk_leaves_the_others_readable(small_url, small_objects):
    key = find(small_objects, "acts/parts/00000000/", "/h/c/0/0")
    overwrite(open_storage(small_url), key, flip(small_objects[key], SHARD.offset(1) + 5))
    opened = store.open(small_url)
    ids = np.concatenate([np.arange(256), np.arange(1024, 1300)])
    assert np.array_equal(opened.gather("acts:h", ids), values_of(ids, opened.column("acts:h")))
    with pytest.raises(StoreError, match="part 0, column 'h', chunk 1"):
        opened.gather("acts:h", [300])


def copy_over(storage: Storage, source: str, target: str) -> None:
    overwrite(storage, target, storage.get(source))


SWAPS = {
    "another-part": (("acts/parts/00000001", "/h/"), ("acts/parts/00000000", "/h/")),
    "another-group": (("sample/parts/00000000", "/h/"), ("acts/parts/00000000", "/h/")),
    "another-column": (("acts/parts/00000000", "/i/"), ("acts/parts/00000000", "/h/")),
}


@pytest.mark.parametrize(("source", "target"), SWAPS.values(), ids=SWAPS)
def test_a_shard_copied_over_another_is_refused(small_url, small_objects, source, target):
    storage = open_storage(small_url)
    copy_over(
        storage, find(small_objects, *source, "/c/0/0"), find(small_objects, *target, "/c/0/0")
    )
    opened = store.open(small_url)
    with pytest.raises(StoreError) as caught:
        opened.read("acts:h")
    assert caught.value.kind in {"foreign-shard", "object-size"}
    assert caught.value.where["part"] == 0
    assert not store.verify(opened).ok


def test_equal_sized_shards_are_told_apart_by_their_slots_alone(small_url, small_objects):
    """Parts 1 and 2 have the same rows, so size, index and every checksum fit; only the slot does not."""
    one, two = (find(small_objects, f"acts/parts/0000000{p}", "/f/c/0/0/0") for p in (1, 2))
    assert len(small_objects[one]) == len(small_objects[two])
    copy_over(open_storage(small_url), one, two)
    with pytest.raises(StoreError, match="belongs to another shard") as caught:
        store.open(small_url).read("acts:f")
    assert caught.value.kind == "foreign-shard"


def test_a_shard_of_another_store_or_attempt_is_refused(url, memory_url, small_objects):
    from store.testing.small import small_store

    other = small_store(memory_url())  # the same rows, recipes, sizes; other ids
    theirs = {
        key: other.view.storage.get(key) for key in other.view.storage.keys("groups/acts/parts")
    }
    mine = find(small_objects, "acts/parts/00000001", "/h/c/0/0")
    (shard,) = (d for k, d in theirs.items() if "/00000001/" in k and k.endswith("/h/c/0/0"))
    plant(url, {**small_objects, mine: shard})
    with pytest.raises(StoreError, match="another shard") as caught:
        store.open(url).read("acts:h")
    assert caught.value.kind == "foreign-shard"


def test_a_commit_of_another_part_copied_over_is_refused(small_url, small_objects):
    one, two = (find(small_objects, "acts/commits", f"0000000{p}.0") for p in (1, 2))
    copy_over(open_storage(small_url), one, two)
    with pytest.raises(StoreError) as caught:
        store.open(small_url).read("acts:h")
    assert caught.value.kind == "foreign-record"


def test_a_stores_record_copied_into_another_is_refused(url, memory_url, small_objects):
    from store.testing.small import tokens_store

    other = tokens_store(memory_url())
    key = "groups/tokens/commits/000000/00000000.0.json"
    plant(url, {**small_objects, key: other.view.storage.get(key)})
    with pytest.raises(StoreError) as caught:
        store.open(url).row_ids()
    assert caught.value.kind == "foreign-record"


def test_orphans_are_listed_and_never_read(small_url, small_objects, truth):
    storage = open_storage(small_url)
    shard = small_objects[find(small_objects, "acts/parts/00000000", "/h/c/0/0")]
    strays = {
        "groups/acts/parts/00000000/deadbeefdeadbeef/h/c/0/0": shard,
        "groups/acts/parts/00000077/deadbeefdeadbeef/h/c/0/0": shard,
        "assets/" + "0" * 64 + "/half": b"half",
    }
    for key, data in strays.items():
        overwrite(storage, key, data)
    if storage.local_path("x") is not None:
        (storage.local_path("pins") / ".tmp-0123").write_bytes(b"x")
    opened = store.open(small_url)
    assert everything(opened) == truth
    report = store.verify(opened)
    assert report.ok
    assert [o for o in report.orphans if ".tmp-" not in o] == sorted(
        {"assets/" + "0" * 64}
        | {f"groups/acts/parts/{p}/deadbeefdeadbeef" for p in ("00000000", "00000077")}
    )
    assert len(report.orphans) == 3 + (storage.local_path("x") is not None)


def test_a_damaged_commit_makes_no_orphan_of_its_attempt(small_url, small_objects):
    """Else gc would remove what a restored record needs."""
    key = find(small_objects, "acts/commits", "00000001.0.json")
    overwrite(open_storage(small_url), key, small_objects[key][:-1])
    report = store.verify(store.open(small_url))
    assert not report.ok
    assert report.orphans == []


def test_a_sound_store_is_verified_whole(small_url, small_objects):
    progress = []
    opened = store.open(small_url)
    report = store.verify(opened, progress=lambda name, checked: progress.append((name, checked)))
    assert report.ok
    assert report.digest == opened.digest()
    assert (report.groups, report.rows) == (6, len(opened.row_ids()))
    parts = {key for key in small_objects if "/parts/" in key or key.startswith("assets/")}
    files = {key for key in parts if not key.endswith("manifest.json")}
    assert report.checked_bytes == sum(len(small_objects[key]) for key in files)
    assert progress[-1][1] <= report.checked_bytes
    assert sorted({name for name, _ in progress}) == sorted(opened.groups)
    assert store.verify(opened, groups=["acts"]).digest == opened.digest(["acts"])


def test_an_asset_that_a_recipe_names_and_nobody_has_is_named(url):
    made = tokens_store(url)
    asset = made.put_asset({"dictionary.json": b"{}"})
    made = fill(made, "codes", {"y": "int32"}, dictionary=asset)
    assert store.verify(made).ok
    for key in list(made.view.storage.keys(f"assets/{asset}")):
        overwrite(made.view.storage, key, None)
    (problem,) = store.verify(made).problems
    assert problem["kind"] == "asset-missing"
    assert asset in problem["message"]


@pytest.mark.parametrize("what", ["pins/", "assets/"])
def test_damaged_pins_and_assets_are_named(small_url, small_objects, what):
    for key in small_objects:
        if key.startswith(what) and small_objects[key]:
            overwrite(open_storage(small_url), key, flip(small_objects[key], 5))
            report = store.verify(store.open(small_url))
            assert [p["where"]["path"] for p in report.problems] == [key]
            overwrite(open_storage(small_url), key, small_objects[key])
    assert store.verify(store.open(small_url)).ok
