"""The oracles, for tests of jobs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ORACLES = Path(__file__).parents[1] / "oracles"


@pytest.fixture(scope="session")
def oracle():
    """A function that loads a module of tests/oracles by name."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"oracle_{name}", ORACLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
