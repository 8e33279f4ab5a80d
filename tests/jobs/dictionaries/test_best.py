"""The best of a run's checkpoints on held-out batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from jobs.codebook import Codebook
from jobs.dictionaries.evaluate import evaluate
from jobs.dictionaries.train import train


def test_the_best_of_the_checkpoints_is_kept(small_run, tmp_path):
    """Against dictionaries of runs that were stopped at each checkpoint."""
    feed, cfg = small_run(steps=12, lr=0.3)  # so large a rate that later is not better
    held_out = list(itertools.islice(feed.batches(100), 2))
    options = {"checkpoint_every": 4, "held_out": held_out}
    blocks = [(b.x, np.zeros(len(b.x), np.int64), None, b.target) for b in held_out]

    def scored(book):
        return evaluate(book, blocks, massive_norm=np.inf).fvu

    train(feed, cfg, out=tmp_path / "whole", **options)
    best = Codebook.load(tmp_path / "whole" / "best")
    stopped = {}
    for step in (4, 8, 12):
        asked = iter(range(1, 13))
        run = train(feed, cfg, should_stop=lambda asked=asked, step=step: next(asked) == step)
        stopped[step] = scored(run.codebook)
    step = min(stopped, key=stopped.get)
    assert best.meta["best"] == {"step": step, "fvu": pytest.approx(stopped[step], rel=1e-6)}
    assert scored(best) == pytest.approx(stopped[step], rel=1e-6)
    asked = iter(range(1, 13))
    halted = tmp_path / "halted"
    train(feed, cfg, out=halted, should_stop=lambda: next(asked) == 10, **options)
    train(feed, cfg, out=halted, **options)
    assert Codebook.load(halted / "best").meta["best"]["fvu"] <= best.meta["best"]["fvu"]
