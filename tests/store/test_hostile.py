"""A store in somebody else's hands: whatever it holds, reading it ends in a value or an error of ours, and in bounds."""

import json
import os
import random
import subprocess
import sys
import time

import pyarrow as pa
import pytest

import store
from store import CorruptError, InvalidInputError, NotFoundError, StoreError, layout, tables
from store.memory import MemoryStorage
from store.opening import open_in
from store.pins import pin_id
from store.records import MAX_RECORD_BYTES, _shallow, make_record, read_record, sha256
from store.testing.faults import harvest
from store.testing.hostile import ROWS, full_store, odd_records, resigned, said, said_at_length
from store.testing.small import tokens_store
from store.tombstones import load_tombstone, tombstone_key
from store.urls import open_storage

URLS = [
    "http://example.org/store",
    "s3://bucket/a::zip://b",
    "zip://a.zip",
    "reference://x",
    "simplecache::file:///x",
    "github://a:b@c/d",
    "ftp://host/x",
    "hdfs:///x",
    "S3://bucket/x",
]


@pytest.mark.parametrize("url", URLS)
def test_only_listed_urls_are_opened(url):
    with pytest.raises(InvalidInputError, match="unsupported-url"):
        store.open(url)


# -- records ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def objects():
    """Key → bytes of a store that holds every kind of record and file."""
    full_store("memory://hostile-full")
    return harvest("memory://hostile-full")


def holding(objects, changes):
    """Return a storage of some objects, with changes."""
    storage = MemoryStorage("memory://hostile")
    storage._objects = {**objects, **changes}
    storage._times = dict.fromkeys(storage._objects, 0.0)
    return storage


def records_of(objects):
    """One record of each kind, group by group."""
    found = {}
    for key, data in sorted(objects.items()):
        if key.endswith(".json") and not key.endswith("zarr.json"):
            place = key.split("/")[1] if key.startswith("groups") else ""
            found.setdefault((json.loads(data)["kind"], place), key)
    return sorted(found.values())


def odd(objects, count):
    rng = random.Random(count)
    every = [
        (key, what, data) for key in records_of(objects) for what, data in odd_records(objects[key])
    ]
    return every if count is None else rng.sample(every, count)


def check_odd(objects, count):
    for key, what, data in odd(objects, count):
        try:
            said_at_length(holding(objects, {key: data}))
        except Exception as error:
            msg = f"{key} with {what}: {type(error).__name__}: {error}"
            raise AssertionError(msg) from error


def test_every_kind_of_record_is_there(objects):
    kinds = {json.loads(objects[key])["kind"] for key in records_of(objects)}
    assert kinds == {
        "store", "group", "commit", "sealed", "dropped", "retired", "failed", "pin", "asset", "index"
    }  # fmt: skip
    assert not [v for v in said(holding(objects, {}), ROWS).values() if isinstance(v, str)]


def test_odd_values_in_records_that_are_signed_end_in_an_error_of_ours(objects):
    check_odd(objects, 60)


@pytest.mark.slow
def test_three_hundred_odd_values(objects):
    check_odd(objects, 300)


@pytest.mark.loops
@pytest.mark.timeout(7200)
def test_every_odd_value_in_every_place(objects):
    check_odd(objects, None)


JSONS = {
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep-object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "long-number": b'{"kind":"store","self":"' + b"0" * 64 + b'","v":' + b"9" * 100_000 + b"}",
    "float": b'{"kind":"store","self":"x","v":1e999}',
    "nan": b'{"kind":"store","self":"x","v":NaN}',
    "no-object": b"[1,2]",
    "twice": b'{"kind":"store","kind":"store","v":1}',
    "surrogate": b'{"kind":"\\ud800","v":1}',
    "not-utf-8": b'{"kind":"\xff"}',
    "empty": b"",
    "null": b"null",
}


@pytest.mark.parametrize("data", JSONS.values(), ids=JSONS)
def test_json_that_is_no_record_is_refused(objects, data):
    with pytest.raises(CorruptError, match="record-damaged"):
        open_in(holding(objects, {"store.json": data}))


def test_text_that_never_ends_is_refused_at_once():
    """And brackets in text are text: they make nothing shallow."""
    began = time.monotonic()
    for data in (b"[" * 200 + b'"' + b'\\"' * (1 << 20), b"[" * 200 + b'"' * (1 << 20)):
        with pytest.raises(CorruptError, match="record-damaged"):
            read_record(data, "store", None, "here")
    assert time.monotonic() - began < 10  # was quadratic: days
    deep = b'{"a":"' + b"]" * 700 + b'","b":' + b"[" * 600 + b"]" * 600 + b"}"
    assert not _shallow(deep)
    assert _shallow(b'{"a":"' + b"[" * 700 + b'\\"[","b":' + b"[]" * 100 + b"}")


HUGE = {
    "store": "store.json",
    "group": "groups/acts/group.json",
    "sealed": "groups/acts/sealed.json",
    "commit": layout.commit_key("acts", 1, 1),
}


@pytest.mark.parametrize("key", HUGE.values(), ids=HUGE)
def test_of_a_record_that_is_too_large_little_is_read(tmp_path, objects, key):
    """Sparse files of 64 GiB cost whoever lays them down nothing."""
    root = tmp_path / "store"
    for name, data in objects.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    os.truncate(root / key, 64 << 30)
    with pytest.raises(StoreError, match=str(MAX_RECORD_BYTES)):
        store.open(root).read("acts:h")


def test_of_an_object_that_is_larger_than_its_commit_says_little_is_read(tmp_path, objects):
    root = tmp_path / "store"
    for name, data in objects.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    for path in root.glob("groups/*/parts/00000000/*/*.parquet"):
        os.truncate(path, 64 << 30)
    for path in root.glob("assets/*/notes.txt"):
        os.truncate(path, 64 << 30)
    opened = store.open(root)
    with pytest.raises(CorruptError, match="object-size"):
        opened.read("token_id")
    (asset,) = (path.parent.name for path in root.glob("assets/*/notes.txt"))
    with pytest.raises(CorruptError, match="asset-damaged"):
        opened.asset(asset)


def test_what_a_store_says_never_steers_the_terminal(objects):
    key = "groups/acts/group.json"
    record = json.loads(objects[key])
    record["columns"]["\x1b[2J\x9b"] = {"spec": "\x1b]0;x\x07", "codec": "raw"}
    with pytest.raises(StoreError) as caught:
        open_in(holding(objects, {key: resigned(record)})).groups  # noqa: B018
    assert caught.value.message.isprintable()
    assert "\\x1b" in str(caught.value)


def test_pins_with_names_from_elsewhere_are_refused(objects):
    made = open_in(holding(objects, {}))
    entries = [("../../etc", 0, 0, "0" * 64)]
    pin = pin_id(entries)
    body = {"pin": pin, "entries": [list(e) for e in entries], "segments": []}
    data, _ = make_record("pin", made.id, body)
    with pytest.raises(StoreError):
        open_in(holding(objects, {f"pins/{pin}.json": data}), pin).groups  # noqa: B018


def test_segments_of_other_columns_are_refused(objects):
    made = open_in(holding(objects, {}))
    segment = tables.write_parquet({"group": ["a"], "part": ["b"]})
    body = {"pin": "0" * 64, "entries": [], "segments": [sha256(segment)]}
    data, _ = make_record("pin", made.id, body)
    changes = {f"pins/{'0' * 64}.json": data, f"segments/{sha256(segment)}.parquet": segment}
    with pytest.raises(CorruptError, match=r"table-damaged.*its columns are"):
        open_in(holding(objects, changes), "0" * 64)


def test_a_recipe_as_deep_as_json_can_say_it_is_refused(objects):
    deep = "x"
    for _ in range(600):
        deep = [deep]
    key = "groups/acts/group.json"
    record = {**json.loads(objects[key]), "recipe": {"a": deep}}
    del record["self"]
    plain = {"sort_keys": True, "separators": (",", ":")}
    record["self"] = sha256(json.dumps(record, **plain).encode())
    data = json.dumps(record, **plain).encode()
    with pytest.raises(CorruptError, match="record-damaged"):
        open_in(holding(objects, {key: data})).read("acts:h")


def test_a_column_of_very_many_dimensions_is_refused_at_once(objects):
    key = "groups/acts/group.json"
    columns = {"h": {"spec": f"float32[{','.join('9' * 200_000)}]", "codec": "raw"}}
    data = resigned({**json.loads(objects[key]), "columns": columns})
    with pytest.raises(StoreError, match="unsupported-version"):
        open_in(holding(objects, {key: data})).read("acts:h")


@pytest.mark.parametrize("part", [-1, 10**8, 10**15, True, "1"])
def test_parts_beyond_all_numbers_are_refused(objects, part):
    made = open_in(holding(objects, {}))
    entries = [("acts", part, 0, "0" * 64)]
    body = {"pin": pin_id(entries), "entries": [list(e) for e in entries], "segments": []}
    data, _ = make_record("pin", made.id, body)
    with pytest.raises(CorruptError):
        open_in(holding(objects, {f"pins/{pin_id(entries)}.json": data}), pin_id(entries))


def test_a_segment_named_very_often_is_read_never(objects, monkeypatch):
    made = open_in(holding(objects, {}))
    body = {"pin": "0" * 64, "entries": [], "segments": ["1" * 64] * 1000}
    storage = holding(objects, {f"pins/{'0' * 64}.json": make_record("pin", made.id, body)[0]})
    monkeypatch.setattr("store.pins._segment", lambda *_: pytest.fail("it was read"))
    with pytest.raises(CorruptError, match="does not list"):
        open_in(storage, "0" * 64)


@pytest.mark.timeout(60)
def test_a_pipe_in_a_store_is_no_object_and_is_not_waited_for(tmp_path):
    made = tokens_store(str(tmp_path / "s"))
    os.mkfifo(tmp_path / "s" / "pipe")
    with pytest.raises(NotFoundError):
        made.view.storage.get("pipe")
    with pytest.raises(NotFoundError):
        made.view.storage.size("pipe")
    (tmp_path / "s" / "store.json").unlink()
    os.mkfifo(tmp_path / "s" / "store.json")
    with pytest.raises(NotFoundError, match="store-missing"):
        store.open(tmp_path / "s")


# -- files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path):
    """A folder beside the store, with a file in it."""
    folder = tmp_path / "outside"
    (folder / "commits" / "000000").mkdir(parents=True)
    (folder / "kept").write_text("mine")
    return folder


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("linked", ["groups", "groups/acts", "groups/acts/commits", "pins"])
def test_no_writer_follows_a_link_out_of_the_store(tmp_path, outside, linked):
    made = tokens_store(str(tmp_path / "store"))
    made.pin()
    place = tmp_path / "store" / linked
    if place.exists():
        place.rename(tmp_path / "moved")
        for path in (tmp_path / "moved").iterdir():
            path.rename(outside / path.name)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(outside, target_is_directory=True)
    before = everything(outside)
    storage = open_storage(str(tmp_path / "store"))
    for attempt in (
        lambda: storage.create(f"{linked}/x/y.json", b"1"),
        lambda: storage.put(f"{linked}/x.parquet", b"1"),
        lambda: storage.delete([f"{linked}/kept"]),
    ):
        with pytest.raises(StoreError, match="not-permitted") as caught:
            attempt()
        assert "link" in str(caught.value)
    assert everything(outside) == before


def test_the_store_itself_may_be_behind_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    made = tokens_store(str(tmp_path / "link" / "store"))
    assert store.verify(made).ok
    assert (tmp_path / "real" / "store" / "store.json").exists()


def test_a_taken_name_that_is_a_link_is_not_written_through(tmp_path, outside):
    storage = open_storage(str(tmp_path / "store"))
    storage.create("a/b", b"1")
    (tmp_path / "store" / "a" / "c").symlink_to(outside / "kept")
    assert not storage.create("a/c", b"2")
    assert (outside / "kept").read_text() == "mine"


def test_a_swapped_library_cannot_run_code_from_a_store(objects):
    """Nothing in a store is unpickled: the reader loads no module that could."""
    code = (
        "import sys, store, store.testing.hostile as h\n"
        "import pickle\n"
        "def no(*a, **k): raise SystemExit('unpickled')\n"
        "pickle.loads = pickle.load = no\n"
        "h.full_store('memory://x'); print(h.said(store.urls.open_storage('memory://x'))['groups'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-1000:]
    assert "acts" in done.stdout


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("tokens.parquet", {"rows": 1 << 40}),
        ("tokens.parquet", {"rows": 1}),
        ("documents.parquet", {"rows": 1 << 40}),
        ("sequences.parquet", {"size": 1 << 40}),
    ],
)
def test_a_commit_that_claims_more_than_its_part_has_is_refused(objects, path, change):
    key = layout.commit_key("tokens", 0)
    record = json.loads(objects[key])
    (entry,) = (entry for entry in record["objects"] if entry["path"] == path)
    entry.update(change)
    with pytest.raises(CorruptError, match=f"record-invalid.*{path}.*claims"):
        open_in(holding(objects, {key: resigned(record)})).view.stored_commit("tokens", 0)


def test_a_segment_that_names_no_group_makes_a_pin_that_does_not_fit(objects):
    made = open_in(holding(objects, {}))
    entry = {"group": ["../x"], "part": [0], "n": [0], "commit": ["0" * 64]}
    segment = tables.encode(pa.table(entry, schema=tables.SEGMENT))
    pin = pin_id([("../x", 0, 0, "0" * 64)])
    body = {"pin": pin, "entries": [], "segments": [sha256(segment)]}
    data, _ = make_record("pin", made.id, body)
    changes = {f"pins/{pin}.json": data, f"segments/{sha256(segment)}.parquet": segment}
    with pytest.raises(CorruptError, match="record-damaged"):
        open_in(holding(objects, changes), pin)


def test_a_tombstone_with_nulls_is_refused(objects):
    key = min(key for key in objects if key.startswith("tombstones/"))
    data = tables.decode(objects[key])
    nulls = pa.array([None] * len(data), pa.int64())
    changed = tables.encode(data.set_column(0, pa.field("doc_id", pa.int64()), nulls))
    storage = holding(objects, {tombstone_key(sha256(changed)): changed})
    with pytest.raises(CorruptError, match="tombstone-damaged"):
        load_tombstone(storage, sha256(changed))
