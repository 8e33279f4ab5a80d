"""A small store, laid down in memory or on disk for each test that wants to hurt it; the oracles."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import store
from store.compact import compact
from store.testing.faults import harvest, plant
from store.testing.indexed import made_store
from store.testing.small import small_store

pytest.register_assert_rewrite("store.testing.conformance")

_numbers = itertools.count()


def new_memory_url() -> str:
    return f"memory://tests-store-{next(_numbers)}"


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """What is synced when is tested where it matters; no test pulls the plug."""
    monkeypatch.setattr("store.system.System.fdatasync", lambda self, fd: None)
    monkeypatch.setattr("os.fsync", lambda fd: None)


@pytest.fixture(scope="session")
def memory_url():
    """A function that returns a fresh ``memory://`` URL."""
    return new_memory_url


@pytest.fixture(params=["memory", "posix"])
def url(request, tmp_path):
    """Where an empty store may be made, on both storages."""
    return new_memory_url() if request.param == "memory" else str(tmp_path / "store")


@pytest.fixture(scope="session")
def small_objects():
    """Key → bytes of a small sealed store with every kind of column, a pin and an asset."""
    url = new_memory_url()
    made = small_store(url)
    made.pin()
    made.put_asset({"notes.txt": b"what a small store is for", "empty": b""})
    return harvest(url)


@pytest.fixture
def small_url(url, small_objects):
    """The small store, on both storages, free to be damaged."""
    return plant(url, small_objects)


@pytest.fixture
def small_memory_url(small_objects):
    """The small store in memory."""
    return plant(new_memory_url(), small_objects)


@pytest.fixture
def small_path(tmp_path, small_objects):
    """The small store on disk."""
    return Path(plant(str(tmp_path / "small"), small_objects))


@pytest.fixture(scope="module")
def small_files():
    """Let a small store have indexes of many files and row groups."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("store.compact.FILE_ROWS", 1500)
        patch.setattr("store.compact.FILE_PARTS", 4)
        patch.setattr("store.tables.ROW_GROUP_ROWS", 150)
        patch.setattr("store.indexes._BLOCK_ROWS", 400)
        yield


@pytest.fixture(scope="module")
def compacted_objects(small_files):
    """Key → bytes of a store with indexes of everything."""
    opened = made_store(new_memory_url())
    compact(opened)
    return harvest(opened.url)


@pytest.fixture
def compacted(compacted_objects):
    """A store with indexes of everything, free to be damaged."""
    return store.open(plant(new_memory_url(), compacted_objects))
