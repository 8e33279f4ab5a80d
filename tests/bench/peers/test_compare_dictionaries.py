"""The comparison with the peers, small: same rows, same batches, same scoring."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("compare_dictionaries.py")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("compare_dictionaries", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def planted(rows, seed):
    """Sums of about four of 96 directions in 32 dimensions, off centre."""
    rng = np.random.default_rng(7)
    directions = rng.standard_normal((96, 32))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    code = (rng.random((rows, 96)) < 4 / 96) * (0.5 + rng.random((rows, 96)))
    return (10 * code @ directions + 3).astype(np.float32)


@pytest.mark.peers
@pytest.mark.timeout(3600)
def test_our_dictionaries_explain_as_much_as_the_peers(script, tmp_path, capsys):
    """Equal rates, so that what is compared is the method and not its tuning."""
    for name, rows, seed in [("train", 40_000, 1), ("held_out", 5_000, 2)]:
        np.save(tmp_path / f"{name}.npy", planted(rows, seed))
    words = f"--train {tmp_path}/train.npy --held-out {tmp_path}/held_out.npy --out {tmp_path}/out"
    sizes = "--latents 192 --k 4 --batch-rows 512 --epochs 5 --seeds 1 --lr 2e-3 --peer-lr 2e-3 --peer-warmup 0.25"
    script.main([*words.split(), "--env", str(tmp_path / "env"), *sizes.split()])
    records = json.loads((tmp_path / "out" / "comparison.json").read_text())
    told = capsys.readouterr().out
    assert all(library in told for library in script.PEERS)
    best = {}
    for record in records:
        if record["mode"] == "L0 = k" or record["mode"] == "k per row":
            assert record["l0"] == pytest.approx(4, rel=0.1)
            key = record["library"]
            best[key] = min(best.get(key, np.inf), record["fvu"])
    assert best["actlake"] <= 1.02 * min(best.values())
