"""What the README of exports shows is run as it stands, in its order."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import zarr

import store
from jobs import cli
from store.testing.small import small_store

README = Path(__file__).parents[3] / "jobs/export/README.md"
STEPS = re.findall(
    r"^```python\n(.*?)^```|^ {4}(actlake [^\n]+)$", README.read_text(encoding="utf-8"), re.M | re.S
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a store and an array of somebody else's."""
    opened = small_store(tmp_path / "store")
    rows = len(opened.row_ids())
    array = zarr.create_array(
        str(tmp_path / "theirs.zarr"), shape=(rows, 24), chunks=(100, 24), dtype="float32"
    )
    array[:] = np.arange(rows * 24, dtype=np.float32).reshape(rows, 24)
    monkeypatch.chdir(tmp_path)
    return opened


def test_the_examples_are_there():
    assert len([code for code, _ in STEPS if code]) == 5
    assert len([words for _, words in STEPS if words]) == 2


def test_the_examples_run_and_show_the_stores_rows(place):
    for module in ("tensorstore", "duckdb"):
        pytest.importorskip(module)
    names = {}
    for code, words in STEPS:
        if words:
            assert cli.main(shlex.split(words)[1:]) == 0
        else:
            exec(compile(code, str(README), "exec"), names)
    wanted = place.read("acts:h", slice(0, 16), raw=True)
    assert np.array_equal(names["bits"], wanted)
    assert np.array_equal(np.asarray(names["h"][:16].read().result()).view(np.uint16), wanted)
    assert np.array_equal(names["tree"]["acts/h"][:16], wanted)
    assert np.array_equal(np.flatnonzero(names["valid"]), place.row_ids())
    brought = store.open("store").read("theirs:x")
    assert np.array_equal(brought, names["theirs"][:])
