"""The measurement of codecs, small: sizes, errors, and dictionaries that lose little."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from store.codecs import CODECS
from store.testing.small import fill, tokens_store

SCRIPT = Path(__file__).with_name("codecs.py")


def test_every_codec_is_measured_and_a_dictionary_trained_on_what_it_gives_back(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("bench_codecs", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    made = tokens_store(tmp_path / "s", [256] * 30, part_rows=4096, part_stride=4096)
    made = fill(made, "acts", {"h": "bfloat16[64]"})
    script.BLOCK = 512
    script.SPLITS = ("train", "test", "val")  # the small store holds out for validation only
    assert len(script.rows_of(made.url, "acts:h", "test", 10)) == 10
    words = ["--on", made.url, "--site", "acts:h", "--rows", "4k", "--repeats", "1"]
    found = script.main([*words, "--latents", "128", "--epochs", "1"])
    assert set(found) == set(CODECS.names())
    assert capsys.readouterr().out.count("MB/s") == 2 * len(found)
    assert found["raw"]["ratio"] == pytest.approx(1, abs=0.15)
    assert found["int8"]["ratio"] > 1.4  # chunks of 256 narrow rows are mostly their own padding
    for name, row in found.items():
        lossy = CODECS.get(name)().lossy
        assert (row["relative_squared_error"] > 0) == lossy
        assert np.isfinite(row["fvu"])
        assert row["fvu"] == pytest.approx(found["raw"]["fvu"], abs=0.02 if lossy else 0)
