"""A store in somebody else's hands: whatever it holds, reading it ends in a value or an error of ours, and in bounds."""

import io
import json
import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import store
from store import CorruptError, InvalidInputError, StoreError, layout, tables
from store.memory import MemoryStorage
from store.opening import open_in
from store.parquet_bounds import check_file
from store.pins import pin_id
from store.records import MAX_RECORD_BYTES, make_record, sha256
from store.testing.faults import harvest
from store.testing.hostile import ROWS, full_store, odd_records, resigned, said, said_at_length
from store.testing.small import tokens_store
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
def test_a_thousand_odd_values(objects):
    check_odd(objects, 1000)


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
    with pytest.raises(CorruptError, match="does not list what its name says"):
        open_in(holding(objects, changes), "0" * 64)


# -- tables ----------------------------------------------------------------------------------------------------


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
    return written(pa.table({"text": text}), row_group_size=1 << 16), 1 << 16


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
    "lists": long_lists,
    "lying-page": lying_page,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_table_that_would_become_far_more_than_its_rows_take_is_refused(bomb):
    data, rows = bomb()
    assert len(data) < 1 << 20
    with pytest.raises(CorruptError, match="table-damaged"):
        tables.check_bytes(data, "here", rows)
    with pytest.raises(CorruptError, match="table-damaged"):
        tables.decode(data, "here", rows)


def test_bombs_are_refused_without_the_memory_they_ask_for():
    """In a process that may have half a gigabyte more than it needs to start."""
    code = textwrap.dedent(
        f"""
        import resource, sys
        sys.path.insert(0, {str(os.path.dirname(__file__))!r})
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
                print(error.kind)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stdout.split() == ["table-damaged"] * len(BOMBS), done.stderr[-2000:]


def test_what_the_writer_makes_is_in_bounds(objects):
    for key, data in objects.items():
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


@pytest.mark.parametrize("path", ["tokens.parquet", "scalars.parquet", "codes.parquet"])
@pytest.mark.parametrize("change", TABLES.values(), ids=TABLES)
def test_a_table_of_another_form_with_all_hashes_right_is_refused(memory_url, path, change):
    made = full_store(memory_url())
    storage = made.view.storage
    group = {"scalars.parquet": "labels", "codes.parquet": "codes"}.get(path, "tokens")
    commit = made.view.stored_commit(group, 0)
    key = commit.prefix + path
    changed = tables.encode(change(tables.decode(storage.get(key))))
    storage._objects[key] = changed
    where = layout.commit_key(group, 0, commit.n)
    record = json.loads(storage.get(where))
    (entry,) = (entry for entry in record["objects"] if entry["path"] == path)
    entry["size"], entry["crc32c"] = len(changed), f"{store.checksum.crc32c(changed):08x}"
    storage._objects[where] = resigned(record)
    opened = open_in(storage)
    with pytest.raises(StoreError) as caught:
        opened.view.objects.stored_table(opened.view.group(group) and _commit(opened, group), path)
    assert caught.value.kind in {"table-invalid", "table-damaged", "rows-differ"}


def _commit(opened, group):
    return store.commits.load_commit(
        opened.view.storage, opened.id, group, 0, opened.view.parts(group)[0]
    )


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
