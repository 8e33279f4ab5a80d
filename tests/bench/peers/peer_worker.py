"""Trains one dictionary of ``dictionary_learning`` or SAELens on rows and an order of rows from files.

Runs inside the peers' own environment and imports nothing of this repository. Called by ``compare_dictionaries.py``;
arguments are one JSON object, the answer is one JSON line and the library's own files in a folder.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

SCALE_BATCHES = 20


def learning_trainer(spec):
    """Return the library's trainer, its defaults but for what the comparison fixes."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    kinds = {
        "batch_topk": BatchTopKTrainer,
        "topk": TopKTrainer,
        "matryoshka": MatryoshkaBatchTopKTrainer,
        "jumprelu": JumpReluTrainer,
    }
    options = {
        "steps": spec["steps"],
        "activation_dim": spec["width"],
        "dict_size": spec["latents"],
        "layer": 0,
        "lm_name": "rows",
        "warmup_steps": spec["warmup_steps"],
        "decay_start": spec["decay_start"],
        "seed": spec["seed"],
        "device": spec["device"],
    }
    if spec["lr"] is not None:
        options["lr"] = spec["lr"]
    if spec["kind"] == "jumprelu":
        sparsity = min(2000, spec["steps"] // 5)
        options |= {"target_l0": float(spec["k"]), "sparsity_warmup_steps": sparsity}
    else:
        options |= {"k": spec["k"], "threshold_start_step": spec["threshold_start_step"]}
    if spec["kind"] == "matryoshka":
        options["group_fractions"] = spec["group_fractions"]
    return kinds[spec["kind"]](**options)


def learning(spec, rows, order):
    """Train as the library's own loop does with ``normalize_activations=True``: rows of unit mean square."""
    trainer = learning_trainer(spec)
    scale = float(rows[order[: 100 * spec["batch_rows"]]].square().sum(dim=1).mean().sqrt())
    start = time.perf_counter()
    for step, ids in enumerate(order.split(spec["batch_rows"])):
        trainer.update(step, rows[ids] / scale)
    seconds = time.perf_counter() - start
    trainer.ae.scale_biases(scale)
    folder = Path(spec["folder"])
    torch.save(trainer.ae.cpu().state_dict(), folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": trainer.config, "buffer": {}}))
    return seconds, trainer.lr


def saelens(spec, rows, order):
    """Train with the library's ``SAETrainer``, rows scaled as its documentation advises."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

    name = {"batch_topk": "batchtopk", "topk": "topk"}[spec["kind"]]
    sae_class, config_class = get_sae_training_class(name)
    sizes = {"d_in": spec["width"], "d_sae": spec["latents"], "k": spec["k"]}
    torch.manual_seed(spec["seed"])
    config = config_class(**sizes, normalize_activations="expected_average_only_in")
    sae = sae_class(config).to(spec["device"])
    lr = spec["lr"] or 3e-4
    batches = order.split(spec["batch_rows"])
    start = [0.0]

    def provider():
        for number, ids in enumerate(itertools.chain(batches[:SCALE_BATCHES], batches)):
            if number == min(SCALE_BATCHES, len(batches)):
                start[0] = time.perf_counter()
            yield rows[ids]

    settings = SAETrainerConfig(
        total_training_samples=len(order),
        train_batch_size_samples=spec["batch_rows"],
        lr=lr,
        lr_end=lr / 10,
        lr_warm_up_steps=spec["warmup_steps"],
        lr_decay_steps=spec["steps"] - spec["decay_start"],
        autocast=spec["autocast"],
        device=spec["device"],
        n_batches_for_norm_estimate=min(SCALE_BATCHES, len(batches)),
    )
    sae = SAETrainer(settings, sae, provider()).fit()
    seconds = time.perf_counter() - start[0]
    sae.save_inference_model(spec["folder"])
    return seconds, lr


LIBRARIES = {"dictionary_learning": learning, "saelens": saelens}


def main(spec):
    torch.set_num_threads(spec["threads"])
    rows, order = (torch.from_numpy(np.load(spec[name])) for name in ("rows", "order"))
    Path(spec["folder"]).mkdir(parents=True, exist_ok=True)
    seconds, lr = LIBRARIES[spec["library"]](spec, rows, order)
    answer = {"seconds": seconds, "rows_per_second": len(order) / seconds, "lr": lr}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    main(json.loads(sys.argv[1]))
