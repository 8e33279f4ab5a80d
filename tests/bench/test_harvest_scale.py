"""The bench of how a harvest grows runs, says both figures and leaves nothing behind."""

from __future__ import annotations

import harvest_scale
import pytest


@pytest.mark.slow
def test_memory_and_workers_are_measured_and_nothing_is_left(tmp_path, capsys):
    found = harvest_scale.main(["--folder", str(tmp_path), "--small"])
    few, many = found["memory"]["sizes"]
    assert few["rows"] < many["rows"]
    assert few["peak_mb"] > 100  # a model and its libraries are in it
    assert found["workers"]["ratio"] > 0
    assert "beside 16 bytes a document" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
