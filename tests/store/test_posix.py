"""The POSIX adapter at its edges: what the system says seldom, and what it does not have."""

import errno
import os
import pickle
import subprocess
import sys

import pytest

from store import NotFoundError, StoreError, UnavailableError
from store.memory import MemoryStorage
from store.posix import _FOLDER_TRIES, PosixStorage
from store.system import System


class Failing(System):
    """A system whose calls fail where a test says so."""

    def __init__(self, **failures):
        self.failures, self.calls = failures, []

    def _maybe(self, name, path):
        self.calls.append((name, str(path)))
        if (error := self.failures.get(name, lambda _: None)(path)) is not None:
            raise error

    def open(self, path, flags, mode=0o777):
        self._maybe("create" if flags & os.O_CREAT else "open", path)
        return super().open(path, flags, mode)


def test_a_folder_that_always_vanishes_is_given_up(tmp_path):
    system = Failing(create=lambda _: FileNotFoundError())
    with pytest.raises(NotFoundError, match="a/b"):
        PosixStorage(tmp_path, system).put("a/b", b"1")
    assert [name for name, _ in system.calls].count("create") == _FOLDER_TRIES


def test_a_folder_that_was_there_and_vanishes_before_it_is_looked_at_is_made_again(tmp_path):
    class Vanishing(System):
        said = 0

        def mkdir(self, path):
            if path.name == "a" and not self.said:
                self.said += 1
                raise FileExistsError
            super().mkdir(path)

    system = Vanishing()
    PosixStorage(tmp_path, system).put("a/b", b"1")
    assert system.said == 1
    assert PosixStorage(tmp_path).get("a/b") == b"1"


def test_names_that_cannot_be_made_durable_leave_nothing(tmp_path):
    broken = Failing(open=lambda path: OSError(errno.EIO, "gone") if path != tmp_path else None)
    with pytest.raises(UnavailableError, match="gone"):
        PosixStorage(tmp_path / "store", broken).put("a/b/c", b"1")
    assert list((tmp_path / "store").rglob("*")) == []


def test_folders_above_the_store_may_be_nobody_s_to_open(tmp_path):
    root = tmp_path / "store"
    root.mkdir()
    system = Failing(open=lambda path: PermissionError() if path in root.parents else None)
    assert PosixStorage(root, system).create("a/b", b"1")
    assert ("open", str(tmp_path)) in system.calls


def test_a_file_where_a_folder_is_needed_is_said(tmp_path):
    storage = PosixStorage(tmp_path)
    storage.put("a", b"1")
    with pytest.raises(StoreError, match=r"not-permitted.*'a/b'"):
        storage.put("a/b", b"2")
    assert storage.get("a") == b"1"


def test_ranges_of_nothing_are_read_as_such(tmp_path):
    storage = PosixStorage(tmp_path)
    storage.put("a", b"0123456789")
    one, other = bytearray(2), bytearray(3)
    storage.read_into("a", [(0, bytearray()), (1, one), (3, bytearray()), (3, other), (9, b"")])
    assert (one, other) == (b"12", b"345")


@pytest.mark.parametrize("name", ["begin_read", "begin_sync"])
def test_hints_are_left_out_where_the_system_takes_none(tmp_path, monkeypatch, name):
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    monkeypatch.setattr("store.system._sync_file_range", None)
    with (tmp_path / "f").open("wb") as file:
        assert getattr(System(), name)(file.fileno(), 0, 1) is None


def test_a_store_in_memory_is_not_opened_elsewhere(memory_url, monkeypatch):
    storage = MemoryStorage.named("not-shared")
    data = pickle.dumps(storage)
    assert pickle.loads(data) is storage
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(StoreError, match="not-shared"):
        pickle.loads(data)
    monkeypatch.undo()
    code = f"import pickle; pickle.loads({data!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert "not-shared" in done.stderr
