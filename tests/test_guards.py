"""The guards of conftest.py hold."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import settings


def test_sleeping_in_a_unit_test_is_refused():
    with pytest.raises(AssertionError, match=r"test_guards:\d+ sleeps 0 s"):
        time.sleep(0)


@pytest.mark.slow
def test_a_slow_test_may_sleep():
    time.sleep(0)


def test_libraries_may_wait():
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        assert process.wait(timeout=60) == 0  # polls with time.sleep


@pytest.mark.parametrize("again", [1, 2])
def test_generators_start_the_same_in_every_test(again, rng):
    assert random.random() == random.Random(0).random()
    assert rng.random() == np.random.default_rng(0).random()


def test_the_ci_profile_is_derandomised():
    ci = settings.get_profile("ci")
    assert ci.derandomize
    assert ci.deadline is None
    examples = [settings.get_profile(name).max_examples for name in ("dev", "ci", "nightly")]
    assert examples == sorted(examples)
