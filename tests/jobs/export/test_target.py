"""A folder appears whole or not at all: killed, refused, busy, full."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import zarr

from jobs.errors import JobError
from jobs.export.target import target
from jobs.export.zarr import export_zarr
from store.testing.small import fill, tokens_store

KILLED = """
import os, sys
from jobs.export import zarr
import store
calls, lay = [], zarr._Folder.shard
def dies(*arguments):
    calls.append(1)
    if len(calls) == int(sys.argv[3]):
        os._exit(9)
    lay(*arguments)
zarr._Folder.shard = dies
zarr.export_zarr(store.open(sys.argv[1]), sys.argv[2], mode="copy")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    opened = tokens_store(tmp_path_factory.mktemp("target") / "s", [512, 512])
    return fill(opened, "acts", {"h": "float32[64]", "i": "int8[32]"})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("call", [1, 4])
def test_an_export_that_was_killed_left_nothing_and_is_simply_run_again(made, tmp_path, call):
    out = tmp_path / "z"
    words = [sys.executable, "-c", KILLED, made.url, str(out), str(call)]
    assert subprocess.run(words, check=False).returncode == 9
    assert names(tmp_path) == [".z.unfinished"]
    found = export_zarr(made, out, mode="copy")
    assert names(tmp_path) == ["z"]
    array = zarr.open_group(found.path, mode="r")["acts/h"]
    assert np.array_equal(array[:512], made.read("acts:h", slice(0, 512)))


def test_an_empty_folder_is_taken_and_anything_else_is_left_alone(made, tmp_path):
    (tmp_path / "empty").mkdir()
    export_zarr(made, tmp_path / "empty")
    assert "acts" in names(tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in ("file", "link", "empty"):
        with pytest.raises(JobError, match="out-taken"):
            export_zarr(made, tmp_path / taken)
    assert (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path) == ["empty", "file", "link"]


def leave(out, then):
    with target(out) as folder:
        (folder / "x").write_text("ours")
        then()


def test_what_came_there_meanwhile_is_left_alone(tmp_path):
    def arrive():
        (tmp_path / "z").mkdir()
        (tmp_path / "z/y").write_text("theirs")

    with pytest.raises(JobError, match="out-taken"):
        leave(tmp_path / "z", arrive)
    assert names(tmp_path / "z") == ["y"]
    assert names(tmp_path) == ["z"]


def test_two_exports_into_one_place_are_told_apart(made, tmp_path):
    hidden = tmp_path / ".z.unfinished"
    hidden.mkdir()
    (hidden / "theirs").write_text("x")
    held = os.open(hidden, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(JobError, match="out-busy"):
            export_zarr(made, tmp_path / "z")
        assert names(hidden) == ["theirs"]
    finally:
        os.close(held)
    export_zarr(made, tmp_path / "z")
    assert names(tmp_path) == ["z"]


def test_any_error_leaves_nothing_behind(tmp_path):
    with pytest.raises(ZeroDivisionError):
        leave(tmp_path / "a/b/z", lambda: 1 // 0)
    assert names(tmp_path / "a/b") == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_an_operating_system_that_refuses_is_one_error_that_says_why(tmp_path, number):
    with pytest.raises(JobError, match="not-written") as caught, target(tmp_path / "z"):
        raise OSError(number, os.strerror(number))
    assert os.strerror(number) in str(caught.value)
    assert names(tmp_path) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(JobError, match="not-written"), target(tmp_path / "file/z"):
        pytest.fail("there is no such folder")


ON_A_SMALL_DISK = """
import os, sys
import store
from jobs.errors import JobError
from jobs.export.zarr import export_zarr
try:
    export_zarr(store.open(sys.argv[1]), sys.argv[2] + "/z", mode="copy")
except JobError as error:
    sys.stdout.write(f"{error.kind} {os.listdir(sys.argv[2])}")
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_a_really_full_disk_holds_nothing_of_it_afterwards(made, tmp_path):
    script, disk = tmp_path / "script.py", tmp_path / "disk"
    script.write_text(ON_A_SMALL_DISK)
    disk.mkdir()
    words = f"mount -t tmpfs -o size=200k tmpfs {disk} && exec {sys.executable} {script} {made.url} {disk}"
    run = subprocess.run(
        ["unshare", "-rm", "sh", "-c", words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if run.returncode and ("unshare" in run.stderr or "mount" in run.stderr):
        pytest.skip(f"no mounts in a user namespace here: {run.stderr.strip()[:100]}")
    assert run.returncode == 0, run.stderr
    assert run.stdout == "not-written []"


def test_a_folder_that_its_holder_removed_meanwhile_is_locked_anew(tmp_path, monkeypatch):
    """Whoever waited for it has a lock on nothing: a third export may be making another."""
    out, hidden = tmp_path / "out", tmp_path / ".out.unfinished"
    flock, calls = fcntl.flock, []

    def late(held, how):
        if not calls:
            hidden.rmdir()
        calls.append(flock(held, how))

    monkeypatch.setattr(fcntl, "flock", late)
    with target(out) as folder:
        (folder / "a").write_bytes(b"x")
        with pytest.raises(JobError, match="out-busy"), target(out):
            pass
    assert len(calls) == 2
    assert (out / "a").read_bytes() == b"x"
