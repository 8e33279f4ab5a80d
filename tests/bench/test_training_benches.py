"""The scripts about training, small: they run, and say what they are asked for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from ingest.config import TokensConfig
from ingest.run import ingest_vectors
from ingest.sources import SOURCES
from jobs.runtimes.in_process import InProcess


def script(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    source = SOURCES.get("synthetic")(width=16, features=24, active=3.0)
    tokens = TokensConfig(source=source, rows=8000, part_rows=1024, context=32)
    url = tmp_path_factory.mktemp("s") / "s"
    ingest_vectors(url, tokens, "acts", runtime=InProcess())
    return url


def test_windows_of_the_shuffle(held, capsys):
    words = f"--on {held} --site x --windows 1,512,all --latents 32 --k 3 --batch-rows 256 --rows 4k --seeds 1"
    records = script("shuffle_training").main(words.split())
    assert [(r["feed"], r["window"]) for r in records] == [
        ("in order", 1),
        ("in order", 512),
        ("chunks", 512),
        ("full", None),
    ]
    assert all(0 < r["fvu"] < 1 for r in records)
    assert "in order" in capsys.readouterr().out


def test_a_buffer_of_one_row_shuffles_nothing_and_windows_stay_apart():
    import torch

    buffered = script("shuffle_training").Buffered
    x = torch.arange(100.0)[:, None]
    plain = next(buffered(x, 100, window=1).batches(0)).x[:, 0]
    assert torch.equal(plain, x[:, 0])
    mixed = next(buffered(x, 100, window=25).batches(0)).x[:, 0]
    assert not torch.equal(mixed, x[:, 0])
    assert all(
        torch.equal(piece.sort().values, x[low : low + 25, 0])
        for low, piece in zip(range(0, 100, 25), mixed.split(25), strict=True)
    )


def test_several_on_one_reading(held, capsys):
    words = f"--on {held} --site x --latents 32,48 --k 3 --batch-rows 256 --steps 3 --repeats 2"
    assert script("training_together").main(words.split()) > 0
    assert "2 dictionaries on one reading" in capsys.readouterr().out
