"""Whole columns in other Zarr readers: the index is the row id, gaps are said, the bytes are the store's."""

import json

import fsspec
import numpy as np
import pytest
import zarr
from fsspec.implementations.reference import ReferenceNotReachable

import store
from jobs import cli
from jobs.errors import JobError
from jobs.export.zarr import export_zarr
from store import CorruptError, NotFoundError
from store.codecs import CODECS
from store.maintenance import retire
from store.object_store import ObjectStorage
from store.purge import add_tombstone, purge
from store.records import make_record
from store.testing.faults import overwrite
from store.testing.small import fill, sequences_of, small_store, tokens_store, values_of

COLUMNS = {"h": "bfloat16[16]", "f": "float32[4,5]", "i": "int8[32]"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    opened = tokens_store(tmp_path_factory.mktemp("zarr") / "s", [200, 150, 256, 31, 300])
    return fill(opened, "acts", COLUMNS)


def tensorstore_of(path):
    tensorstore = pytest.importorskip("tensorstore")
    driver = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    return tensorstore.open(driver, open=True, read=True).result()


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_zarr_python_reads_any_row_by_its_id(made, tmp_path, mode):
    found = export_zarr(made, tmp_path / "z", mode=mode)
    assert set(found.arrays) == {f"acts/{name}" for name in COLUMNS}
    tree = zarr.open_group(found.path, mode="r")
    ids = made.row_ids()
    valid = tree["acts/valid"][:]
    assert np.array_equal(np.flatnonzero(valid), ids)
    for name in COLUMNS:
        array = tree[f"acts/{name}"]
        assert array.shape[0] == len(valid) == 1024 * len(made.view.parts("acts"))
        raw = made.read(f"acts:{name}", raw=True)
        assert np.asarray(array[:])[ids].tobytes() == raw.tobytes()
        gap = np.asarray(array[made.part_stride - 1])  # its chunk holds no row at all
        assert np.array_equal(gap, np.full_like(gap, array.fill_value), equal_nan=True)
    assert tree.attrs["store"] == made.id


def test_tensorstore_and_zarrs_read_bfloat16_as_what_it_is(made, tmp_path):
    pytest.importorskip("zarrs")
    found = export_zarr(made, tmp_path / "z", dtype="bfloat16")
    ids = made.row_ids()
    array = tensorstore_of(tmp_path / "z/acts/h")
    assert array.dtype.name == "bfloat16"
    values = np.asarray(array.read().result())[ids].astype(np.float32)
    assert np.array_equal(values, made.read("acts:h"))
    plain = export_zarr(made, tmp_path / "plain")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        rows = np.asarray(zarr.open(plain.path + "/acts/h", mode="r")[:])[ids]
    assert np.array_equal(rows, made.read("acts:h", raw=True))
    assert found.rows == plain.rows == len(ids)


def referenced(found):
    options = {"fo": found.path, "remote_options": {"asynchronous": True}}
    return zarr.open_group("reference://", storage_options=options, mode="r")


def test_references_are_read_through_fsspec(made, tmp_path):
    found = export_zarr(made, tmp_path / "z", mode="refs")
    files = fsspec.filesystem("reference", fo=found.path)
    commit = made.view.commit("acts", 0)
    shard = made.view.storage.get(commit.prefix + "h/c/0/0")
    assert files.cat("acts/h/c/0/0") == shard
    assert files.cat_file("acts/h/c/0/0", start=-68) == shard[-68:]
    tree, ids = referenced(found), made.row_ids()
    assert np.array_equal(np.flatnonzero(tree["acts/valid"][:]), ids)
    for name in COLUMNS:
        raw = made.read(f"acts:{name}", raw=True)
        assert tree[f"acts/{name}"][:][ids].tobytes() == raw.tobytes()


def in_a_bucket(name):
    """A store in a bucket of fsspec's own, in memory."""
    storage = ObjectStorage(f"memory://{name}/s")
    numbers = {"part_rows": 512, "part_stride": 1024, "probe": "0" * 16}
    storage.create("store.json", make_record("store", "0" * 32, numbers)[0])
    return store.Store(storage, {"store": "0" * 32, **numbers}, None)


def test_references_and_copies_of_a_store_in_a_bucket(tmp_path):
    opened = in_a_bucket("export-bucket")
    with opened.writer("tokens", recipe={}) as writer:
        for sequence in sequences_of([200, 256, 300]):
            writer.put([sequence])
        writer.seal()
    opened = fill(opened.refresh(), "acts", COLUMNS)
    found = export_zarr(opened, tmp_path / "z", mode="refs")
    refs = json.loads((tmp_path / "z/references.json").read_text())["refs"]
    assert refs["acts/h/c/0/0"][0].startswith("memory://export-bucket/s/groups/acts/parts/")
    copied = zarr.open_group(export_zarr(opened, tmp_path / "c", mode="copy").path, mode="r")
    ids = opened.row_ids()
    for name in COLUMNS:
        raw = opened.read(f"acts:{name}", raw=True)
        assert referenced(found)[f"acts/{name}"][:][ids].tobytes() == raw.tobytes()
        assert copied[f"acts/{name}"][:][ids].tobytes() == raw.tobytes()


@pytest.mark.slow
def test_references_into_s3_are_read_over_http(s3_url, tmp_path):
    opened = fill(tokens_store(s3_url, [200, 256, 300]), "acts", COLUMNS)
    tree = referenced(export_zarr(opened, tmp_path / "z", mode="refs"))
    ids = opened.row_ids()
    for name in COLUMNS:
        raw = opened.read(f"acts:{name}", raw=True)
        assert tree[f"acts/{name}"][:][ids].tobytes() == raw.tobytes()


def test_where_gc_deleted_a_shard_a_reference_is_an_error_and_a_link_a_fill_value(tmp_path):
    """Said in the module; who needs errors opens the store itself, see test_zarr_store.py."""
    opened = fill(tokens_store(tmp_path / "s", [200]), "acts", {"h": "bfloat16[16]"})
    links = export_zarr(opened, tmp_path / "links")
    tree = referenced(export_zarr(opened, tmp_path / "refs", mode="refs"))
    overwrite(opened.view.storage, opened.view.commit("acts", 0).prefix + "h/c/0/0", None)
    with pytest.raises(ReferenceNotReachable):
        tree["acts/h"][:3]
    array = zarr.open_group(links.path, mode="r")["acts/h"]
    assert (array[:3] == array.fill_value).all()


def test_links_cost_no_bytes_and_copies_outlive_the_store(tmp_path):
    import shutil

    opened = fill(tokens_store(tmp_path / "s", [200]), "acts", {"h": "bfloat16[16]"})
    export_zarr(opened, tmp_path / "links")
    export_zarr(opened, tmp_path / "copies", mode="copy")
    assert (tmp_path / "links/acts/h/c/0/0").is_symlink()
    raw = opened.read("acts:h", raw=True)
    shutil.rmtree(tmp_path / "s")
    array = tensorstore_of(tmp_path / "copies/acts/h")
    assert np.array_equal(np.asarray(array.read().result())[: len(raw)], raw)


def test_a_damaged_shard_is_not_exported(tmp_path):
    opened = fill(tokens_store(tmp_path / "s", [200]), "acts", {"h": "bfloat16[16]"})
    key = opened.view.commit("acts", 0).prefix + "h/c/0/0"
    overwrite(opened.view.storage, key, b"")
    with pytest.raises(CorruptError, match="object-size"):
        export_zarr(store.open(opened.url), tmp_path / "z")


REFUSED = {
    "mode": ({"mode": "move"}, "unknown-mode"),
    "dtype": ({"dtype": "float32"}, "unknown-mode"),
    "a sample": ({"groups": ["sample"]}, "masked-group"),
    "no dense column": ({"groups": ["labels", "codes"]}, "no-columns"),
}


@pytest.mark.parametrize(("asked", "kind"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(tmp_path, asked, kind):
    opened = small_store(tmp_path / "s")
    with pytest.raises(JobError, match=kind):
        export_zarr(opened, tmp_path / "z", **asked)
    assert not (tmp_path / "z").exists()


def test_a_folder_that_holds_something_is_left_alone(made, tmp_path):
    (tmp_path / "z").mkdir()
    (tmp_path / "z/mine.txt").write_text("x")
    with pytest.raises(JobError, match="out-taken"):
        export_zarr(made, tmp_path / "z")
    assert [path.name for path in (tmp_path / "z").iterdir()] == ["mine.txt"]


def test_stores_that_are_no_files_cannot_be_linked(tmp_path):
    opened = fill(tokens_store("memory://export-not-local", [100]), "acts", {"h": "float32[16]"})
    with pytest.raises(JobError, match=r"not-local.*--mode refs"):
        export_zarr(opened, tmp_path / "z")


def test_a_store_in_memory_is_copied_and_nothing_else(tmp_path):
    opened = fill(tokens_store("memory://export-memory", [300]), "acts", {"f": "float32[16]"})
    for mode in ("link", "refs"):
        with pytest.raises(JobError, match="not-local"):
            export_zarr(opened, tmp_path / "z", mode=mode)
    tree = zarr.open_group(export_zarr(opened, tmp_path / "z", mode="copy").path, mode="r")
    assert np.array_equal(tree["acts/f"][:300], opened.read("acts:f"))


@pytest.mark.parametrize("codec", CODECS.names())
def test_every_codec_in_every_reader(codec, tmp_path):
    opened = tokens_store(tmp_path / "s", [200, 150, 256, 31])
    ids = opened.row_ids()
    x = np.random.default_rng(0).standard_normal((len(ids), 70)).astype(np.float32)
    with opened.writer("acts", columns={"h": "bfloat16[70]"}, recipe={}, codec=codec) as writer:
        writer.put(ids, {"h": x})
    opened = opened.refresh()
    found = export_zarr(opened, tmp_path / "z", dtype="uint16")
    column, wanted = opened.column("acts:h"), opened.read("acts:h", raw=True)
    array = zarr.open_group(found.path, mode="r")["acts/h"]
    seen = {"zarr-python": array[:], "tensorstore": tensorstore_of(tmp_path / "z/acts/h")}
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        seen["zarrs"] = zarr.open_group(found.path, mode="r")["acts/h"][:]
    for reader, values in seen.items():
        rows = np.ascontiguousarray(np.asarray(values)[ids])
        if CODECS.get(codec)().lossy:
            assert (rows.dtype, array.attrs["codec"]) == (np.uint8, codec), reader
            out = np.empty_like(wanted)
            CODECS.get(codec)().decode(rows, out, column)
            rows = out
        assert rows.tobytes() == wanted.tobytes(), reader


def test_zarr_python_refuses_bfloat16_rather_than_misreading_it(made, tmp_path):
    tree = zarr.open_group(export_zarr(made, tmp_path / "z", dtype="bfloat16").path, mode="r")
    with pytest.raises(ValueError, match="bfloat16"):
        tree["acts/h"]
    assert tree["acts/f"].shape[1:] == (4, 5)


def test_retired_parts_are_not_rows_and_a_pin_that_saw_them_is_refused(tmp_path):
    opened = fill(tokens_store(tmp_path / "s", [512, 512, 512]), "acts", {"i": "int8[32]"})
    pin = opened.pin()
    retire(opened, [1], "a test")
    opened = opened.refresh()
    found = export_zarr(opened, tmp_path / "z")
    tree = zarr.open_group(found.path, mode="r")
    assert (found.parts, found.rows) == (2, 1024)
    assert np.array_equal(np.flatnonzero(tree["acts/valid"][:]), opened.row_ids())
    assert not (tmp_path / "z/acts/i/c/1").exists()
    assert tree["acts"].attrs["pin"] == opened.pin_id(["acts"])
    with pytest.raises(NotFoundError, match="purged"):
        export_zarr(store.open(opened.url, pin=pin), tmp_path / "pinned")
    assert not (tmp_path / "pinned").exists()


def test_what_is_left_out_is_said(tmp_path, capsys):
    opened = small_store(tmp_path / "s")
    assert cli.main(["export", "zarr", opened.url, "--out", str(tmp_path / "z")]) == 0
    said = capsys.readouterr().out
    assert "sample (a sample of the rows" in said
    assert "codes (no dense column: codes)" in said
    attributes = json.loads((tmp_path / "z/zarr.json").read_text())["attributes"]
    assert set(attributes["left_out"]) == {"tokens", "labels", "codes", "sample", "stat"}


def test_a_column_called_valid_keeps_its_values(tmp_path):
    opened = fill(tokens_store(tmp_path / "s", [300]), "acts", {"valid": "float32[16]"})
    tree = zarr.open_group(export_zarr(opened, tmp_path / "z").path, mode="r")
    assert np.array_equal(tree["acts/valid"][:300], opened.read("acts:valid"))
    assert tree[f"acts/{tree['acts'].attrs['valid']}"][:].sum() == 300


def test_the_verb_writes_and_says_what(made, tmp_path, capsys):
    words = ["export", "zarr", made.url, "--out", tmp_path / "z", "--groups", "acts", "--json"]
    assert cli.main([str(word) for word in words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == len(made.row_ids())
    values = np.asarray(tensorstore_of(tmp_path / "z/acts/f").read().result())
    ids = made.row_ids()[-5:]
    assert np.array_equal(values[ids], values_of(ids, made.column("acts:f")))


def test_removed_documents_are_not_shown_to_readers_that_leave_nothing_out(tmp_path):
    opened = fill(tokens_store(tmp_path / "s"), "acts", {"h": "float32[16]"})
    whole = opened.row_ids()
    add_tombstone(opened, [1, 4], "asked to")
    with pytest.raises(JobError, match="actlake purge") as caught:
        export_zarr(opened.live(), tmp_path / "z")
    assert caught.value.kind == "not-purged"
    assert not (tmp_path / "z").exists()
    purge(opened, "asked to")
    opened = opened.live()
    export_zarr(opened, tmp_path / "z")
    tree = zarr.open_group(tmp_path / "z", mode="r")
    ids = opened.row_ids()
    assert np.flatnonzero(tree["acts/valid"][:]).tolist() == ids.tolist()
    assert np.array_equal(tree["acts/h"][:][ids], opened.read("h"))
    assert not tree["acts/h"][:][np.setdiff1d(whole, ids)].any()
