"""What SAELens, dictionary_learning and sparsify themselves make of dictionary files.

Runs inside the peers' own environment and imports nothing of this repository. ``load`` reads a folder and writes what the
library rebuilds of rows; ``make`` has the library write a dictionary of its own, and what it rebuilds. Arguments are one
JSON object; rows and answers are .npy files.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

os.environ["SPARSIFY_DISABLE_TRITON"] = (
    "1"  # its kernels want a GPU; its plain decoder computes the same
)


def saelens_load(folder):
    from sae_lens import SAE

    return SAE.load_from_disk(str(folder), device="cpu")


def learning_load(folder):
    from dictionary_learning.utils import load_dictionary

    return load_dictionary(str(folder), device="cpu")[0]


class Sparsified:
    """sparsify's coder as a function of rows."""

    def __init__(self, folder):
        from sparsify import SparseCoder

        self.coder = SparseCoder.load_from_disk(folder, device="cpu")

    def __call__(self, x):
        top = self.coder.encode(x)
        out = self.coder.decode(top.top_acts, top.top_indices)
        return out if self.coder.W_skip is None else out + x @ self.coder.W_skip.mT


LOADERS = {"saelens": saelens_load, "dictionary_learning": learning_load, "sparsify": Sparsified}


def fill(module, generator):
    """Give every parameter and float buffer values in which a mistake would show."""
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if value.dtype != torch.float32:
                continue
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(noise.abs() * 0.3 if "threshold" in name else 0.4 * noise)


def saelens_make(spec, folder, generator):
    from sae_lens.registry import get_sae_class

    sae_class, config_class = get_sae_class(spec["architecture"])
    sizes = {"d_in": spec["width"], "d_sae": spec["latents"], **spec.get("config", {})}
    sae = sae_class(config_class.from_dict({"architecture": spec["architecture"], **sizes}))
    fill(sae, generator)
    if spec.get("unit"):
        with torch.no_grad():
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    sae.save_model(str(folder))
    return sae


def learning_make(spec, folder, generator):
    import dictionary_learning.dictionary as plain
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    name, sizes, k = spec["architecture"], (spec["width"], spec["latents"]), spec["k"]
    made = {
        "AutoEncoderTopK": lambda: AutoEncoderTopK(*sizes, k),
        "BatchTopKSAE": lambda: BatchTopKSAE(*sizes, k),
        "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(*sizes, k, [sizes[1] // 2] * 2),
    }
    ae = made.get(name, lambda: getattr(plain, name)(*sizes))()
    fill(ae, generator)
    if name == "AutoEncoderTopK" or name == "AutoEncoder":
        with torch.no_grad():
            ae.decoder.weight /= ae.decoder.weight.norm(dim=0, keepdim=True)
    folder.mkdir(parents=True)
    torch.save(ae.state_dict(), folder / "ae.pt")
    config = {"trainer": {"dict_class": name, "k": k, "activation_dim": sizes[0]}, "buffer": {}}
    (folder / "config.json").write_text(json.dumps(config))
    return learning_load(folder)


def sparsify_make(spec, folder, generator):
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(num_latents=spec["latents"], k=spec["k"], **spec.get("config", {}))
    coder = SparseCoder(spec["width"], config)
    fill(coder, generator)
    with torch.no_grad():
        coder.W_dec /= coder.W_dec.norm(dim=1, keepdim=True)
    coder.save_to_disk(folder)
    return Sparsified(folder)


MAKERS = {"saelens": saelens_make, "dictionary_learning": learning_make, "sparsify": sparsify_make}


def main(asked):
    torch.set_grad_enabled(False)
    rows = torch.from_numpy(np.load(asked["rows"]))
    for spec in asked["tasks"]:
        folder = Path(spec["folder"])
        if spec["do"] == "load":
            model = LOADERS[spec["library"]](folder)
        else:
            model = MAKERS[spec["library"]](spec, folder, torch.Generator().manual_seed(1))
        np.save(spec["answer"], model(rows).numpy())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
