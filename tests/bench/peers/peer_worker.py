"""Trains one dictionary of the ``dictionary_learning`` library on rows and an order of rows from files.

Runs inside the peer's own environment and imports nothing of this repository. Called by
``compare_dictionaries.py``; arguments are one JSON object, the answer is one JSON line and an .npz of weights.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch


def trainer_of(spec):
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    kinds = {"batch_topk": BatchTopKTrainer, "topk": TopKTrainer}
    return kinds[spec["kind"]](
        steps=spec["steps"],
        activation_dim=spec["width"],
        dict_size=spec["latents"],
        k=spec["k"],
        layer=0,
        lm_name="rows",
        lr=spec["lr"],
        warmup_steps=spec["warmup_steps"],
        decay_start=spec["decay_start"],
        threshold_start_step=spec["threshold_start_step"],
        seed=spec["seed"],
        device="cpu",
    )


def main(spec):
    """Train as the library's own loop does with ``normalize_activations=True``: rows of unit mean square."""
    torch.set_num_threads(spec["threads"])
    rows = torch.from_numpy(np.load(spec["rows"]))
    order = torch.from_numpy(np.load(spec["order"]))
    trainer = trainer_of(spec)
    scale = float(rows[order[: 100 * spec["batch_rows"]]].square().sum(dim=1).mean().sqrt())
    trainer.ae.scale_biases(1.0)
    start = time.perf_counter()
    for step, ids in enumerate(order.split(spec["batch_rows"])):
        trainer.update(step, rows[ids] / scale)
    seconds = time.perf_counter() - start
    trainer.ae.scale_biases(scale)
    state = {name: value.detach().numpy() for name, value in trainer.ae.state_dict().items()}
    np.savez(spec["weights"], **state)
    rate = len(order) / seconds
    sys.stdout.write(
        json.dumps({"seconds": seconds, "rows_per_second": rate, "lr": trainer.lr}) + "\n"
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
