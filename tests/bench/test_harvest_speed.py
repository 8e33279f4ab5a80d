"""The measurement of harvests, small: it checks what is stored before it times anything."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("harvest_speed.py")


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_harvest_speed", SCRIPT)
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_harvest_speed", found)
    spec.loader.exec_module(found)
    return found


def test_one_four_and_all_sites_are_measured_and_nothing_is_left(script, tmp_path, capsys):
    found = script.main(["--folder", str(tmp_path), "--small"])
    assert [row["sites"] for row in found["rows"]] == [1, 4, 6]
    for row in found["rows"]:
        assert row["ratio"]["median"] > 0
        assert 0 < row["waiting"]["median"] < 1
        assert row["mb"] > 0.9 * row["sites"] * 2000 * 256 * 2 / 1e6
    told = capsys.readouterr().out
    assert told.count("met") + told.count("MISSED") == 3
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_wrong_value_is_not_timed(script, tmp_path, monkeypatch):
    bench = script.Bench(
        folder=tmp_path,
        model=str(script.bundled_causal()),
        rows=500,
        context=64,
        batch=4,
        dtype="float32",
    )
    bench.check(["blocks.0.resid_post"])

    class Wrong(script.Harvester):
        def _captured(self, *words):
            return {site: value + 1 for site, value in super()._captured(*words).items()}

    monkeypatch.setattr(script, "Harvester", Wrong)
    with pytest.raises(AssertionError, match=r"blocks\.0\.resid_post"):
        bench.check(["blocks.0.resid_post"])
