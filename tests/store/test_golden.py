"""Stores of released formats read as they did; the NumPy reader reads them, and fresh ones, alike."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import store
from store import StoreError
from store.records import sha256
from store.testing.faults import flip
from store.testing.small import codes_of, state_of, values_of

GOLDEN = Path(__file__).parents[1] / "golden"
STORES = sorted(GOLDEN.glob("format-*/good"))


def expected(path):
    return json.loads(path.with_suffix(".json").read_text())


def read_parquet(data):
    table = pq.read_table(pa.BufferReader(data))
    return {name: table.column(name).to_pylist() for name in table.column_names}


def test_there_are_golden_stores_and_they_are_small():
    assert STORES
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 300_000


@pytest.mark.parametrize("path", STORES, ids=lambda path: path.parent.name)
def test_a_golden_store_reads_as_it_did(path):
    wanted = expected(path)
    opened = store.open(path, pin=wanted["pin"])
    assert opened.id == wanted["id"]
    assert opened.digest() == wanted["digest"]
    for name, digest in wanted["columns"].items():
        assert sha256(np.ascontiguousarray(opened.read(name)).tobytes()) == digest, name
    order = [window.row_ids for window in opened.windows(["acts:h"], **wanted["windows"])]
    assert sha256(np.concatenate(order).astype("<i8").tobytes()) == wanted["order"]
    assert opened.asset(wanted["asset"]) == {"notes.txt": b"a golden asset"}
    codes = codes_of(opened.row_ids())
    assert sorted(opened.arrow("codes").column("latent").to_pylist()) == sorted(
        codes.latent.tolist()
    )
    report = store.verify(store.open(path))
    assert report.ok
    assert report.digest == wanted["digest"]
    assert report.orphans == []


@pytest.mark.parametrize("path", STORES, ids=lambda path: path.parent.name)
def test_the_numpy_reader_reads_a_golden_store_alike(oracle, path):
    compare(oracle, path)


def test_the_numpy_reader_reads_a_fresh_store_alike(oracle, small_path):
    compare(oracle, small_path)


def compare(oracle, path):
    reader = oracle("numpy_reader").NumpyReader(path, read_parquet)
    opened = store.open(path)
    assert sorted(reader.groups()) == sorted(opened.groups)
    for name, group in opened.groups.items():
        ids = opened.row_ids(group=name)
        assert np.array_equal(reader.row_ids(name), ids)
        assert list(reader.parts(name)) == list(opened.view.parts(name))
        for column in group.columns.values():
            if column.kind == "codes":
                continue
            if column.kind == "partial":
                compare_states(reader, opened, name, column.name)
                continue
            ours, theirs = opened.read(f"{name}:{column.name}"), reader.read(name, column.name)
            assert np.array_equal(ours, theirs.astype(ours.dtype))
            if name not in {"tokens", "sample"}:
                assert np.array_equal(ours, values_of(ids, column))


@pytest.mark.parametrize(
    "path", sorted(GOLDEN.glob("format-*/states")), ids=lambda p: p.parent.name
)
def test_golden_states_read_as_they_did(oracle, path):
    wanted, opened = expected(path), store.open(path)
    assert (opened.id, opened.digest()) == (wanted["id"], wanted["digest"])
    for part in opened.view.parts("stat"):
        state = opened.partial("stat:state", part)
        assert {k: v.tobytes() for k, v in state.items()} == {
            k: v.tobytes() for k, v in state_of(part).items()
        }
        assert opened.partial("stat:none", part) == {}
    compare(oracle, path)
    assert store.verify(opened).ok


def compare_states(reader, opened, name, column):
    for part, commit in reader.parts(name).items():
        ours, theirs = opened.partial(f"{name}:{column}", part), reader.partial(commit, column)
        assert list(ours) == sorted(theirs)
        for key, array in ours.items():
            assert (array.dtype, array.shape) == (theirs[key].dtype, theirs[key].shape)
            assert array.tobytes() == theirs[key].tobytes()


@pytest.mark.parametrize("at", [20, 4096 + 5, 4096 + 8192 + 1, 4096 + 8192 + 40, -1])
def test_the_numpy_reader_refuses_damage_too(oracle, small_path, at):
    module = oracle("numpy_reader")
    shard = next(small_path.glob("groups/acts/parts/00000000/*/h/c/0/0"))
    shard.write_bytes(flip(shard.read_bytes(), at))
    with pytest.raises(module.RefusedError):
        module.NumpyReader(small_path, read_parquet).read("acts", "h")


def test_the_numpy_reader_is_short_and_shares_no_code():
    text = (GOLDEN.parent / "oracles/numpy_reader.py").read_text()
    assert len(text.splitlines()) <= 200
    imports = [line for line in text.splitlines() if line.startswith(("import", "from"))]
    allowed = {"hashlib", "json", "math", "re", "struct", "pathlib", "numpy"}
    assert {line.split()[1] for line in imports} <= allowed


@pytest.mark.parametrize(
    "path", sorted(GOLDEN.glob("format-*/flipped")), ids=lambda p: p.parent.name
)
def test_a_known_bad_store_is_still_refused(path):
    wanted = expected(path)
    opened = store.open(path)
    assert len(opened.row_ids()) == 100
    with pytest.raises(StoreError) as caught:
        opened.read("acts:h")
    assert caught.value.kind == wanted["kind"]
    (problem,) = store.verify(opened).problems
    assert problem["kind"] == wanted["kind"]
    assert {k: v for k, v in problem["where"].items() if k != "path"} == wanted["where"]


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("format-*/newer")), ids=lambda p: p.parent.name)
def test_a_newer_store_is_refused_as_newer(path, tmp_path):
    copy = shutil.copytree(path, tmp_path / "s")
    before = (copy / "store.json").read_bytes()
    for call in (lambda: store.open(copy), lambda: store.create(copy)):
        with pytest.raises(store.UnsupportedVersionError, match="Upgrade") as caught:
            call()
        assert caught.value.kind == expected(path)["kind"]
    assert [p.name for p in copy.iterdir()] == ["store.json"]
    assert (copy / "store.json").read_bytes() == before
