"""The bench of how a harvest grows runs, says both figures and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("harvest_scale.py")


@pytest.fixture
def harvest_scale(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_harvest_scale", SCRIPT)
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_harvest_scale", found)
    spec.loader.exec_module(found)
    return found


@pytest.mark.slow
def test_memory_and_workers_are_measured_and_nothing_is_left(harvest_scale, tmp_path, capsys):
    found = harvest_scale.main(["--folder", str(tmp_path), "--small"])
    few, many = found["memory"]["sizes"]
    assert few["rows"] < many["rows"]
    assert few["peak_mb"] > 100  # a model and its libraries are in it
    assert found["workers"]["ratio"] > 0
    assert "beside 16 bytes a document" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
