"""SIGKILL a real writer process at random moments, run it again to the end: the same store.

Ten kills here, a hundred in the slow tests, a thousand by hand: ``pytest -m loops tests/store/test_kill_loop.py``.
"""

import random
import subprocess
import sys
import time

import numpy as np
import pytest

import store
from store.testing.small import values_of
from store.testing.writer_process import write

COMMAND = [sys.executable, "-m", "store.testing.writer_process"]


@pytest.fixture(scope="module")
def undisturbed(memory_url):
    return write(memory_url()).digest()


def start(path):
    """Start a writer and wait until it is about to write."""
    process = subprocess.Popen([*COMMAND, str(path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    return process


def finish(process):
    try:
        assert process.wait(timeout=120) == 0
    finally:
        process.stdout.close()


def killed(path, seconds):
    """Let a writer work for some time; return whether it was killed before it was done."""
    process = start(path)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    finally:
        process.stdout.close()
    return process.wait() == -9


def kill_loop(folder, kills, undisturbed):
    """Kill writers until ``kills`` have died, over as many stores as that takes; check each store."""
    started = time.monotonic()
    finish(start(folder / "timing"))
    whole = time.monotonic() - started
    pick = random.Random(20261120)
    died = number = 0
    while died < kills:
        path = folder / f"store-{number}"
        number += 1
        while died < kills and killed(path, pick.uniform(0, whole / 5)):
            died += 1
            if (path / "store.json").exists():
                check(path)
        finish(start(path))
        assert check(path).digest == undisturbed
    assert died == kills


def check(path):
    """Whatever is visible is whole and right, orphans or not."""
    opened = store.open(path)
    report = store.verify(opened)
    assert report.problems == []
    if opened.coverage.get("acts") is not None:
        ids = opened.row_ids()
        ids = ids[np.isin(ids // opened.part_stride, list(opened.view.parts("acts")))]
        assert np.array_equal(opened.read("acts:h"), values_of(ids, opened.column("acts:h")))
    return report


def test_a_writer_killed_ten_times_ends_at_the_same_digest(tmp_path, undisturbed):
    kill_loop(tmp_path, 10, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_writer_killed_a_hundred_times_ends_at_the_same_digest(tmp_path, undisturbed):
    kill_loop(tmp_path, 100, undisturbed)


@pytest.mark.loops
@pytest.mark.timeout(0)
def test_a_writer_killed_a_thousand_times_ends_at_the_same_digest(tmp_path, undisturbed):
    kill_loop(tmp_path, 1000, undisturbed)


@pytest.mark.parametrize("processes", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_writer_processes_at_once_make_the_store_that_one_makes(tmp_path, undisturbed, processes):
    started = [start(tmp_path / "s") for _ in range(processes)]
    codes = [process.wait(timeout=240) for process in started]
    [process.stdout.close() for process in started]
    assert codes == [0] * processes
    report = check(tmp_path / "s")
    assert report.digest == undisturbed
    assert report.orphans == []
