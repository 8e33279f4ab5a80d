"""sparsify: ``cfg.json`` and ``sae.safetensors``; dictionaries that keep the k largest of each row."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import save as save_tensors

from jobs.codebook import Codebook, write_atomic
from jobs.errors import JobError
from jobs.export.foreign import FOREIGN, only_known, read_json, read_safetensors, unit_rows, unknown

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae.safetensors"
WHAT = "sparsify"
TENSORS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")


@FOREIGN.register("sparsify")
@dataclass(frozen=True)
class Sparsify:
    """sparsify 1.3: written and read with k per row, transcoders and skips too; `groupmax` is refused."""

    kind: ClassVar[str]

    def write(self, book: Codebook, folder: Path) -> list[str]:
        """Write a dictionary with its k per row in the threshold's place.

        What sparsify then computes is ``dataclasses.replace(book, threshold=0, row_k=k)``, not the threshold's choice.
        """
        k = book.row_k or book.meta.get("k")
        if not k:
            raise JobError(
                "a dictionary was to be written as sparsify, which keeps k latents of each row, and it does not say which k. "
                "Nothing was written. Write it as saelens, whose dictionaries have thresholds.",
                kind="foreign-unknown",
            )
        transcodes = book.W_skip_DE is not None or bool(book.meta.get("targets"))
        if book.out_width != book.width:
            raise JobError(
                f"a transcoder from width {book.width} to {book.out_width} was to be written as sparsify, whose transcoders "
                "have one width. Nothing was written. `actlake export saelens` writes it.",
                kind="foreign-unknown",
            )
        bias_L = book.b_enc_L.double()
        if not transcodes:  # it takes b_dec from the rows first
            bias_L = bias_L + book.b_dec_D.double() @ book.W_enc_DL.double()
        tensors = {
            "encoder.weight": book.W_enc_DL.t(),
            "encoder.bias": bias_L.float(),
            "W_dec": book.W_dec_LD,
            "b_dec": book.b_dec_D,
        }
        if book.W_skip_DE is not None:
            tensors["W_skip"] = book.W_skip_DE.t()
        config: dict[str, Any] = {
            "activation": "topk",
            "expansion_factor": 32,
            "normalize_decoder": True,
            "num_latents": book.latents,
            "k": int(k),
            "multi_topk": False,
            "skip_connection": book.W_skip_DE is not None,
            "transcode": transcodes,
            "d_in": book.width,
        }
        folder.mkdir(parents=True, exist_ok=True)
        held = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
        write_atomic(folder / WEIGHTS_FILE, save_tensors(held))
        write_atomic(folder / CONFIG_FILE, json.dumps(config, indent=1).encode())
        return [CONFIG_FILE, WEIGHTS_FILE]

    def read(self, folder: Path) -> Codebook:
        """Read what ``save_to_disk`` wrote."""
        config = read_json(folder / CONFIG_FILE, WHAT)
        if config.get("activation", "topk") != "topk":
            raise unknown(folder, WHAT, f"its activation is {config['activation']!r}; known: topk")
        tensors = read_safetensors(folder / WEIGHTS_FILE, WHAT)
        only_known(tensors, TENSORS, ("W_skip",), folder, WHAT)
        t = {name: tensor.double() for name, tensor in tensors.items()}
        transcodes = bool(config.get("transcode"))
        return unit_rows(
            encoder_DL=t["encoder.weight"].t(),
            bias_L=t["encoder.bias"],
            decoder_LE=t["W_dec"],
            bias_E=t["b_dec"],
            centred=not transcodes,
            meta={"from": "sparsify", "k": int(config["k"]), "hookpoint": folder.name},
            skip_DE=t["W_skip"].t() if "W_skip" in t else None,
            row_k=int(config["k"]),
        )
