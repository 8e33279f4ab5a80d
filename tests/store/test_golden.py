"""Stores of released formats read as they did; the NumPy reader reads them, and fresh ones, alike."""

import json
import shutil
from pathlib import Path

import numcodecs.blosc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import store
from store import StoreError
from store.codecs import CODECS
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


def blosc(data):
    return numcodecs.blosc.Blosc().decode(data)


def test_there_are_golden_stores_and_they_are_small():
    assert STORES
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 600_000


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


def compare(oracle, path, *, function=True):
    reader = oracle("numpy_reader").NumpyReader(path, read_parquet, blosc)
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
            if function and name not in {"tokens", "sample"}:
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


@pytest.mark.parametrize(
    "path",
    sorted(p for name in ("codecs", "removed") for p in GOLDEN.glob(f"format-*/{name}")),
    ids=lambda p: f"{p.parent.name}-{p.name}",
)
def test_coded_columns_and_stores_that_lost_documents_read_as_they_did(oracle, path):
    wanted, opened = expected(path), store.open(path)
    assert (opened.id, opened.digest()) == (wanted["id"], wanted["digest"])
    assert len(opened.row_ids()) == wanted["rows"]
    for name, digest in wanted["columns"].items():
        assert sha256(np.ascontiguousarray(opened.read(name)).tobytes()) == digest, name
    compare(oracle, path, function=path.name == "removed")
    report = store.verify(opened)
    assert (report.ok, report.orphans) == (True, [])
    assert report.digest == wanted["digest"]


def test_the_golden_store_of_codecs_has_every_codec():
    for path in GOLDEN.glob("format-*/codecs"):
        columns = [c for g in store.open(path).groups.values() for c in g.columns.values()]
        assert {c.codec for c in columns} == set(CODECS.names())


# -- known bad ---------------------------------------------------------------------------------------------


BAD = json.loads((GOLDEN / "bad.json").read_text())


def spoilt(case, folder):
    """Lay down a golden store with the damage a case describes."""
    root = shutil.copytree(GOLDEN / case["store"], folder / "s")

    def one(pattern):
        return sorted(root.glob(pattern))[0]

    path = one(case["path"])
    match case["damage"]:
        case "delete":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "truncate":
            path.write_bytes(path.read_bytes()[: case["at"]])
        case "flip":
            path.write_bytes(flip(path.read_bytes(), case["at"]))
        case "swap":
            other = one(case["other"])
            mine, theirs = path.read_bytes(), other.read_bytes()
            path.write_bytes(theirs)
            other.write_bytes(mine)
    return root


def verified(root):
    """The kinds of what ``verify`` finds; of a store that cannot be opened, that of the error."""
    try:
        return [problem["kind"] for problem in store.verify(store.open(root)).problems]
    except StoreError as error:
        return [error.kind]


@pytest.mark.parametrize("case", BAD, ids=lambda case: case["name"])
def test_what_is_known_bad_is_refused_by_name(oracle, case, tmp_path):
    root = spoilt(case, tmp_path)
    with pytest.raises(StoreError) as caught:
        store.open(root).read(case["read"])
    assert caught.value.kind == case["kind"]
    assert case["kind"] in verified(root)
    module = oracle("numpy_reader")
    with pytest.raises(module.RefusedError):
        module.NumpyReader(root, read_parquet, blosc).read(*case["read"].split(":"))


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
