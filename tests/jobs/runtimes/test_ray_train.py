"""Ranks started by Ray Train: one group, the dictionary that one process gets, and another start where one dies."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from ingest.config import TokensConfig
from ingest.run import ingest_vectors
from ingest.sources import SOURCES
from jobs.codebook import Codebook
from jobs.config import Train
from jobs.errors import JobError
from jobs.runtimes.in_process import InProcess
from jobs.runtimes.ray import Ray
from jobs.runtimes.ray_train import as_ranks
from jobs.verbs.dictionaries import train_here

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def two():
    with Ray(workers=2, threads=1) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    source = SOURCES.get("synthetic")(width=16, features=32, active=3.0)
    tokens = TokensConfig(source=source, rows=6000, part_rows=1024, context=32)
    found = tmp_path_factory.mktemp("s") / "s"
    ingest_vectors(found, tokens, "acts", runtime=InProcess())
    return str(found)


def config(url, out):
    return Train(
        url=url, site=("x",), out=str(out), latents=(48,), k=(3,), rows=256 * 120, batch_rows=256
    )


def test_two_ranks_train_the_dictionary_one_process_does(two, url, tmp_path):
    """Apart only by what sums in another order do to the last bits, which 120 steps grow."""
    (alone,) = train_here(config(url, tmp_path / "alone"))
    (found,) = as_ranks(two, partial(train_here, config(url, tmp_path / "two")), tmp_path)
    assert Path(found["result"]).parent == tmp_path / "two" / "results"
    mine, theirs = (Codebook.load(one["result"]).W_dec_LD for one in (alone, found))
    assert torch.cosine_similarity(mine, theirs, dim=1).median() > 0.999
    assert not list(tmp_path.glob(".ray_train*"))


def dies_once(marker, made):
    """Train, but the first time the first rank's process ends in the midst of it."""
    from jobs.dictionaries import run

    whole = run.curve

    def ends(history):
        if not Path(marker).exists():
            Path(marker).touch()
            os._exit(1)
        return whole(history)

    run.curve = ends
    return train_here(made)


def test_ranks_start_anew_where_one_dies(two, url, tmp_path):
    marker = tmp_path / "died"
    work = partial(dies_once, str(marker), config(url, tmp_path / "hurt"))
    (found,) = as_ranks(two, work, tmp_path)
    assert marker.exists()
    (whole,) = as_ranks(two, partial(train_here, config(url, tmp_path / "whole")), tmp_path)
    assert found["sha"] == whole["sha"]


def refuses():
    raise JobError("width 3 was asked for. Nothing was written.", kind="width-mismatch")


def test_what_fails_on_a_rank_is_said(two, tmp_path):
    with pytest.raises(JobError, match=r"^width-mismatch: width 3 was asked for"):
        as_ranks(two, refuses, tmp_path, restarts=1)
    with pytest.raises(JobError, match=r"ranks-failed.*1 times.*modulo by zero"):
        as_ranks(two, partial(divmod, 1, 0), tmp_path, restarts=0)
