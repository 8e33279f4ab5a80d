"""The measurement of reads and writes, small: it checks both sides' answers before it times them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("store_io.py")


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_store_io", SCRIPT)
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_store_io", found)  # dataclasses look their module up
    spec.loader.exec_module(found)
    return found


def test_everything_is_measured_both_ways_and_nothing_is_left(script, tmp_path, capsys):
    found = script.main(["--folder", str(tmp_path), "--small"])
    names = {row["what"] for row in found["contests"]}
    assert {name.split()[0].strip(",") for name in names} == set(script.BUDGETS)
    assert all(row["ratio"]["median"] > 0 for row in found["contests"])
    assert found["write_peak_shards"]["bits"] > 0
    told = capsys.readouterr().out
    assert "warm but where it says cold" in told
    assert all(name in told for name in names)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_wrong_answer_is_not_timed(script, tmp_path):
    bench = script.Bench(folder=tmp_path, rows=2000, width=32, window_rows=1024, gather_rows=10)
    bench.check()
    bench.bits[1500, 3] ^= 1
    with pytest.raises(AssertionError):
        bench.check()
    assert np.array_equal(bench.made.read(script.SITE, raw=True)[:1500], bench.bits[:1500])
