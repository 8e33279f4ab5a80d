"""The README's examples of filling a store from other libraries and from a training loop, run as they stand there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.models import bundled_causal
from ingest.run import ingest
from ingest.sources import SOURCES
from jobs.runtimes.in_process import InProcess

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
LIBRARIES = {"nnsight": "nnsight", "lens": "transformer_lens"}


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """A folder with the store that the examples open; it holds the site they fill, by our own forward."""
    monkeypatch.chdir(tmp_path)
    source = SOURCES.get("stdlib")()
    ingest(
        "texts.store",
        TokensConfig(source=source, context=64, rows=1000),
        HarvestConfig(
            model=str(bundled_causal()),
            sites=("blocks.2.resid_post",),
            dtype="float32",
            store_dtype="bfloat16",
        ),
        runtime=InProcess(),
    )
    return tmp_path / "texts.store"


def run(name):
    found = re.search(rf"<!-- example: {name} -->\n```python\n(.*?)```", README, flags=re.S)
    script = Path(f"{name}.py")  # nnsight reads the source of the block it traces
    script.write_text(found[1])
    runpy.run_path(str(script))
    return found[1]


def assert_close(opened, group):
    """Alone or in a batch, a forward differs in low bits only."""
    mine = opened.read(f"{group}:h", slice(None))
    ours = opened.read("acts:blocks.2.resid_post", slice(None))
    assert mine.shape == ours.shape
    assert np.abs(mine - ours).max() <= 2**-7 * np.abs(ours).max()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LIBRARIES)
def test_another_library_fills_a_column_with_the_same_values(texts, name):
    pytest.importorskip(LIBRARIES[name])
    code = run(name)
    assert len([line for line in code.splitlines() if line]) <= 15
    opened = store.open(texts)
    assert_close(opened, f"by.{name}")
    assert opened.coverage[f"by.{name}"].rows == 1000
    assert store.verify(opened).ok


def test_a_training_loop_leaves_its_checkpoints(texts):
    run("training")
    opened = store.open(texts)
    assert [name for name in opened.groups if name.startswith("step.")] == [
        "step.0000",
        "step.0002",
        "step.0004",
    ]
    assert_close(opened, "step.0000")
    first, last = (opened.read(f"step.{step:04}:h", slice(None)) for step in (0, 4))
    assert np.abs(first - last).max() > 0.1
    assert opened.groups["step.0004"].recipe["step"] == 4
    assert store.verify(opened).ok
