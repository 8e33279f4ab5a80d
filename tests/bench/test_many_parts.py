"""The measurement of stores of many parts, small: what it lays down is a store like any other's records."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import store

SCRIPT = Path(__file__).with_name("many_parts.py")


def test_a_store_of_records_opens_and_its_costs_are_told(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("many_parts", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    (row,) = script.main(["--parts", "5k", "--folder", str(tmp_path), "--repeats", "1"])
    assert row["parts"] == 5000
    assert all(row[name] > 0 for name in ("open", "records", "pin", "commit"))
    assert "5,000 parts: open" in capsys.readouterr().out
    opened = store.open(tmp_path / "5000")
    assert opened.coverage["acts"].rows == 5000 * script.ROWS
    assert opened.coverage["acts"].sealed
    assert len(opened.row_ids(slice(-3, None))) == 3
