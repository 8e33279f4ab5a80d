"""Where figures go: event files that can be read, and names that mean nothing or whose package is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from ingest.config import TokensConfig
from ingest.run import ingest_vectors
from ingest.sources import SOURCES
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.recipe import Recipe
from jobs.dictionaries.run import train_all
from jobs.dictionaries.tracking import TRACKERS, trackers_of
from jobs.runtimes.in_process import InProcess
from store import open as open_store
from store.errors import InvalidInputError


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    source = SOURCES.get("synthetic")(width=16, features=24, active=3.0)
    tokens = TokensConfig(source=source, rows=2000, part_rows=1024, context=32)
    url = tmp_path_factory.mktemp("s") / "s"
    ingest_vectors(url, tokens, "acts", runtime=InProcess())
    return open_store(url)


def trained(held, out, names):
    config = TrainConfig(
        variant={"kind": "topk", "latents": 32, "k": 3}, steps=10, batch_rows=64, seed=1
    )
    recipe = Recipe(columns=("x",), config=config)
    return train_all(held, [recipe], out, trackers=trackers_of(names))[0][1]


def events(path):
    """Read TensorBoard's file: records of length, checksum, data, checksum; data is an Event."""
    from tensorboardX.proto.event_pb2 import Event

    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event()
        event.ParseFromString(data[12 : 12 + length])
        data = data[16 + length :]
        yield event


def test_tensorboard_shows_the_log(held, tmp_path):
    result = trained(held, tmp_path, ["tensorboard"])
    shown = {}
    for file in (result.path / "tensorboard").iterdir():
        for event in events(file):
            for value in event.summary.value:
                shown[value.tag, event.step] = value.simple_value
    records = result.records()
    assert records
    for record in records:
        for name in ("fvu", "l0", "loss", "rows_per_second"):
            assert shown[name, record["step"]] == pytest.approx(record[name], rel=1e-5)


def test_a_finished_result_is_not_tracked_again(held, tmp_path):
    trained(held, tmp_path, [])
    result = trained(held, tmp_path, ["tensorboard"])
    assert not (result.path / "tensorboard").exists()


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_gets_a_run_of_the_results_name(held, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    result = trained(held, tmp_path, ["wandb"])
    (file,) = (result.path / "wandb").glob("offline-run-*/run-*.wandb")
    assert file.stem == f"run-{result.path.name}"
    assert b"rows_per_second" in file.read_bytes()


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_gets_a_run_of_the_results_name(held, tmp_path):
    """In a process of its own: its folder is settled when it is imported."""
    words = "train {} --site x --latents 32 --k 3 --rows 640 --batch-rows 64 --track trackio --out {} --json"
    command = [sys.executable, "-m", "jobs.cli", *words.format(held.url, tmp_path).split()]
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    (answer,) = json.loads(done.stdout)
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as base:
        names = {row[0] for row in base.execute("select run_name from metrics")}
    assert names == {Path(answer["result"]).name}


def test_what_is_not_there_is_refused_before_anything_is_written(held, tmp_path):
    with pytest.raises(InvalidInputError, match=r"unknown-name.*no tracker called 'mlflow'"):
        trained(held, tmp_path, ["mlflow"])
    for name, package in TRACKERS.unavailable().items():
        with pytest.raises(InvalidInputError, match=f"missing-package.*pip install {package}"):
            trained(held, tmp_path, [name])
    assert not list(tmp_path.iterdir())
