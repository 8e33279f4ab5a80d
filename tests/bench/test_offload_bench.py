"""The measurement of offloading, small: gradients of the three ways agree, and nothing is left."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("offload.py")


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_offload", SCRIPT)
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_offload", found)
    spec.loader.exec_module(found)
    return found


@pytest.mark.slow
def test_three_ways_are_measured(script, tmp_path, capsys):
    found = script.main(["--folder", str(tmp_path), "--small"])
    assert set(found) == set(script.WAYS)
    assert found["offload"]["report"]["written_bytes"] > 0
    assert "stood still" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
