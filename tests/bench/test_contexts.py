"""The measurement of a latent's strongest codes, small: what it lays down is a store, what it asks for is checked."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).with_name("contexts.py")


def test_the_strongest_codes_are_asked_for_and_their_cost_told(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("bench_contexts", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    sizes = ["--codes", "4k", "--parts", "4", "--latents", "64", "--repeats", "1", "--times", "3"]
    (row,) = script.main([*sizes, "--folder", str(tmp_path)])
    assert (row["codes"], row["parts"], row["files"]) == (4000, 4, 1)
    for how in ("index", "plain"):
        assert all(row[how][name] > 0 for name in ("cold", "fresh", "first", "warm"))
    assert "index of 1 files made" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
