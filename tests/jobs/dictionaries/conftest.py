"""Rows with a planted dictionary, and small configs."""

from __future__ import annotations

import pytest
import torch

from jobs.dictionaries.array_feed import ArrayFeed
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.contract import VARIANTS


def planted_rows(rows, *, features=128, width=64, active=4, seed=0, directions_seed=7, offset=0.0):
    """Rows that are sums of few planted unit directions: (x float32 [R, D], directions [N, D]).

    Each feature fires by itself with probability active/features and magnitude U(.5, 1.5): A1.
    """
    generator = torch.Generator().manual_seed(directions_seed)
    directions = torch.nn.functional.normalize(
        torch.randn(features, width, generator=generator), dim=1
    )
    generator = torch.Generator().manual_seed(seed)
    fires = torch.rand(rows, features, generator=generator) < active / features
    magnitude = 0.5 + torch.rand(rows, features, generator=generator)
    return (fires * magnitude) @ directions + offset, directions


@pytest.fixture
def planted():
    return planted_rows


def feed_for(kind, x, batch_rows, seed=0):
    """Rows as a feed with all that a variant needs: targets are the rows themselves, gradients any directions."""
    needs = VARIANTS.get(kind).needs
    y = x.clone() if "target" in needs else None
    generator = torch.Generator().manual_seed(seed + 1000)
    g = torch.randn(x.shape, generator=generator) if "gradient" in needs else None
    return ArrayFeed(x, batch_rows, seed=seed, y=y, g=g)


@pytest.fixture
def feed_of():
    return feed_for


@pytest.fixture
def small_run():
    """Return a function giving (feed, config) of a run that takes a second."""

    def make(
        kind="batch_topk", *, steps=12, batch_rows=64, rows=500, latents=48, k=4, seed=3, **options
    ):
        x, _ = planted_rows(rows, features=24, width=16, active=3, offset=0.3)
        variant = {"kind": kind, "latents": latents, "k": k, **options.pop("variant", {})}
        options = {"lr": 3e-3, "precision": "float32", **options}
        cfg = TrainConfig(variant=variant, steps=steps, batch_rows=batch_rows, seed=seed, **options)
        return feed_for(kind, 20 * x, batch_rows, seed), cfg

    return make
