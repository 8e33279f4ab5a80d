"""Caches one site of a model over given token ids with SAELens, inside an environment of its own; imports nothing of ours.

Called by ``compare_harvest.py``; arguments are one JSON object, the answer is one JSON line.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch


def main(spec):
    from datasets import Dataset
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

    torch.set_num_threads(spec["threads"])
    ids = np.load(spec["ids"])
    folder = Path(spec["folder"])
    shutil.rmtree(folder, ignore_errors=True)
    text = Dataset.from_dict({"input_ids": ids.tolist()})
    config = CacheActivationsRunnerConfig(
        dataset_path="",
        model_name=spec["model"],
        model_class_name="AutoModelForCausalLM",
        model_batch_size=spec["batch"],
        hook_name=spec["hook"],
        d_in=spec["width"],
        training_tokens=ids.size,
        context_size=ids.shape[1],
        new_cached_activations_path=str(folder / "acts"),
        shuffle=False,
        dtype="float32",
        device="cpu",
        prepend_bos=False,
        streaming=False,
        model_from_pretrained_kwargs={"dtype": "float32"},  # the checkpoint's own is bfloat16
        # Whole buffers are filled, past the end of the text: four of them, so that no row is kept twice.
        buffer_size_gb=ids.size // 4 * spec["width"] * 4 / 1e9,
    )
    runner = CacheActivationsRunner(config, override_dataset=text)
    began = time.perf_counter()
    dataset = runner.run()
    seconds = time.perf_counter() - began
    size = sum(path.stat().st_size for path in (folder / "acts").rglob("*") if path.is_file())
    name = next(column for column in dataset.column_names if column != "token_ids")
    first = np.array(dataset[0][name], np.float32)
    np.save(spec["first"], first)
    rows = sum(len(chunk) for chunk in dataset.data.column(name).chunks) * ids.shape[1]
    sys.stdout.write("\n" + json.dumps({"seconds": seconds, "bytes": size, "rows": rows}) + "\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
