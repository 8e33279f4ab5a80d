"""What the script says of the order, and that it can tell a bad one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("shuffle_quality.py")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("bench_shuffle_quality", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ours_mixes_as_well_as_a_shuffled_window_and_long_sequences_better_than_the_peers_pools(
    script, capsys
):
    shape = ["--rows", "256k", "--window", "64k", "--batch", "1k", "--seeds", "2"]
    found = script.main([*shape, "--tokens", "128", "512"])
    assert capsys.readouterr().out.count("tokens a sequence") == 2
    for one in found:
        assert one["ratio"] <= 1.15
        pools = min(one["refilled at half"], one["mixed halves"])
        # A sequence that lies in one chunk comes in one window; a pool that is topped up spreads it farther.
        assert one["ours"] <= pools * (1.5 if one["tokens"] <= 256 else 1.0)
        assert one["at equal bytes"] < pools
        assert one["full"] < one["ours"] < one["contexts"]


@pytest.mark.parametrize("tokens", [128, 512])
def test_a_shuffled_window_has_the_neighbours_that_chance_gives(script, tokens):
    """In a batch of n from B shuffled rows a row meets (n - 1)(T - 1)/(B - 1) of its sequence."""
    rng = np.random.default_rng(0)
    rows, window, batch = 1 << 18, 1 << 16, 1 << 10
    shuffled = script.window_shuffled(rows, window, rng)
    found = script.neighbours(script.batches(shuffled, batch), tokens)
    assert found == pytest.approx((batch - 1) * (tokens - 1) / (window - 1), rel=0.02)
    in_order = script.batches(np.arange(rows), batch)
    assert script.neighbours(in_order, tokens) == tokens - 1


def test_every_row_comes_once_in_our_order(script):
    assert np.array_equal(np.sort(script.ours(100_000, 1 << 14, 3)), np.arange(100_000))


def test_the_peers_pools_hand_out_no_row_twice(script):
    rng = np.random.default_rng(0)
    for pool in (script.refilled_at_half, script.mixed_halves):
        handed = np.concatenate(list(pool(100_000, 1 << 14, 512, rng)))
        assert len(np.unique(handed)) == len(handed) > 95_000
