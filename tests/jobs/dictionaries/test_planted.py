"""Dictionaries planted in rows are found again, and dead latents come back: A1, A2, A7."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jobs.dictionaries.calibration import calibrate
from jobs.dictionaries.contract import VARIANTS, ArrayFeed, TrainConfig
from jobs.dictionaries.evaluate import evaluate
from jobs.dictionaries.learner import Learner
from jobs.dictionaries.train import train

BATCH = 1024

each_variant = pytest.mark.parametrize("name", VARIANTS.names())


def recovery(codebook, directions):
    """Return (mean of the best cosine of each true direction, share of them above .9)."""
    best = (directions @ codebook.W_dec_LD.t()).max(dim=1).values
    return float(best.mean()), float((best > 0.9).float().mean())


def config(name, steps, **options):
    variant = {"kind": name, "latents": 256, "k": 4}
    return TrainConfig(
        variant=variant, steps=steps, batch_rows=BATCH, precision="float32", **options
    )


@each_variant
def test_planted_directions_are_recovered(name, planted):
    """A1 at a tenth of its length: 128 directions in 64 dimensions, four active."""
    rows, directions = planted(200_000)
    run = train(ArrayFeed(rows, BATCH), config(name, 1000))
    mean, recovered = recovery(run.codebook, directions)
    assert mean >= 0.95
    assert recovered >= 0.9
    held_out, _ = planted(20_000, seed=1)
    found = evaluate(run.codebook, [(held_out, np.zeros(len(held_out), int))])
    assert found.l0 == pytest.approx(4, rel=0.1)
