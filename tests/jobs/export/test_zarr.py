"""Whole columns in other Zarr readers: the index is the row id, gaps are said, the bytes are the store's."""

import json

import numpy as np
import pytest

import store
from jobs import cli
from jobs.errors import JobError
from jobs.export.zarr import export_zarr
from store import CorruptError
from store.testing.faults import overwrite
from store.testing.small import fill, small_store, tokens_store, values_of

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
    zarr = pytest.importorskip("zarr")
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
    zarr = pytest.importorskip("zarr")
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


def test_references_are_read_through_fsspec(made, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    found = export_zarr(made, tmp_path / "z", mode="refs")
    refs = json.loads((tmp_path / "z/references.json").read_text())["refs"]
    files = fsspec.filesystem("reference", fo=found.path)
    key = next(key for key in refs if key.startswith("acts/h/c/"))
    commit = made.view.commit("acts", 0)
    assert files.cat(key) == made.view.storage.get(commit.prefix + "h/c/0/0")
    assert json.loads(files.cat("acts/h/zarr.json"))["shape"][1:] == [16]
    there = tokens_store("memory://export-refs", [100])
    there = fill(there, "acts", {"h": "bfloat16[16]"})
    export_zarr(there, tmp_path / "m", mode="refs")
    refs = json.loads((tmp_path / "m/references.json").read_text())["refs"]
    assert refs["acts/h/c/0/0"][0].startswith("memory://export-refs/groups/acts/parts/")


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


def test_the_verb_writes_and_says_what(made, tmp_path, capsys):
    words = ["export", "zarr", made.url, "--out", tmp_path / "z", "--groups", "acts", "--json"]
    assert cli.main([str(word) for word in words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == len(made.row_ids())
    values = np.asarray(tensorstore_of(tmp_path / "z/acts/f").read().result())
    ids = made.row_ids()[-5:]
    assert np.array_equal(values[ids], values_of(ids, made.column("acts:f")))
