"""SAELens 6: ``cfg.json`` and ``sae_weights.safetensors``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from jobs.codebook import Codebook, write_atomic
from jobs.export.foreign import (
    FOREIGN,
    only_known,
    positive,
    read_json,
    read_safetensors,
    unit_rows,
    unknown,
)

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"
WHAT = "SAELens"
OLDEST = "6.0.0"
"""Older versions are told apart by ``metadata.sae_lens_version`` and read through a conversion."""
PLAIN = ("W_enc", "W_dec", "b_enc", "b_dec")
TENSORS = {
    "standard": PLAIN,
    "topk": PLAIN,
    "jumprelu": (*PLAIN, "threshold"),
    "gated": ("W_enc", "W_dec", "b_gate", "b_mag", "r_mag", "b_dec"),
    "transcoder": PLAIN,
    "skip_transcoder": (*PLAIN, "W_skip"),
    "jumprelu_transcoder": (*PLAIN, "threshold"),
    "jumprelu_skip_transcoder": (*PLAIN, "W_skip", "threshold"),
}
"""Architecture to its tensors. Those trained with batch-wide k are saved as ``jumprelu``."""


@FOREIGN.register("saelens")
@dataclass(frozen=True)
class SaeLens:
    """SAELens 6.x: written as `jumprelu` or as one of its transcoders, read in seven architectures."""

    kind: ClassVar[str]

    def write(self, book: Codebook, folder: Path) -> list[str]:
        """Write a dictionary as ``jumprelu``, or as a ``jumprelu_transcoder`` with or without a skip."""
        positive(book, WHAT)
        skip = book.W_skip_DE
        architecture = "jumprelu"
        if book.out_width != book.width or skip is not None or book.meta.get("targets"):
            architecture = "jumprelu_skip_transcoder" if skip is not None else "jumprelu_transcoder"
        tensors = {
            "W_enc": book.W_enc_DL,
            "W_dec": book.W_dec_LD,
            "b_enc": book.b_enc_L,
            "b_dec": book.b_dec_D,
            "threshold": book.theta.expand(book.latents),
        }
        if skip is not None:
            tensors["W_skip"] = skip.t()
        config: dict[str, Any] = {
            "d_in": book.width,
            "d_sae": book.latents,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "architecture": architecture,
            "metadata": _metadata(book),
        }
        if architecture != "jumprelu":
            config["d_out"] = book.out_width
        folder.mkdir(parents=True, exist_ok=True)
        held = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
        write_atomic(folder / WEIGHTS_FILE, save_tensors(held))
        write_atomic(folder / CONFIG_FILE, json.dumps(config, indent=1).encode())
        return [CONFIG_FILE, WEIGHTS_FILE]

    def read(self, folder: Path) -> Codebook:
        """Read what ``save_model`` wrote."""
        config = read_json(folder / CONFIG_FILE, WHAT)
        architecture = config.get("architecture")
        if architecture not in TENSORS:
            known = ", ".join(TENSORS)
            raise unknown(folder, WHAT, f"its architecture is {architecture!r}; known: {known}")
        for key, plain in (("normalize_activations", "none"), ("reshape_activations", "none")):
            if config.get(key, plain) != plain:
                raise unknown(
                    folder, WHAT, f"{key} is {config[key]!r}, which is no linear map of raw rows"
                )
        tensors = read_safetensors(folder / WEIGHTS_FILE, WHAT)
        only_known(tensors, TENSORS[architecture], (), folder, WHAT)
        metadata = config.get("metadata") or {}
        meta = {
            "from": "saelens",
            "architecture": architecture,
            **{key: metadata[key] for key in ("hook_name", "model_name") if metadata.get(key)},
        }
        return self._book({k: v.double() for k, v in tensors.items()}, config, architecture, meta)

    def _book(
        self, t: dict[str, Tensor], config: dict[str, Any], architecture: str, meta: dict[str, Any]
    ) -> Codebook:
        transcodes = architecture.endswith("transcoder")
        common: dict[str, Any] = {
            "decoder_LE": t["W_dec"],
            "bias_E": t["b_dec"],
            "centred": not transcodes and bool(config.get("apply_b_dec_to_input", True)),
            "meta": meta,
        }
        if architecture == "gated":
            gain = t["r_mag"].exp()
            threshold = t["b_mag"] - t["b_gate"] * gain
            return unit_rows(
                encoder_DL=t["W_enc"] * gain, bias_L=t["b_mag"], threshold=threshold, **common
            )
        encoder, bias, k = t["W_enc"], t["b_enc"], None
        if architecture == "topk":
            k = int(config["k"])
            if config.get("rescale_acts_by_decoder_norm"):
                norms = t["W_dec"].norm(dim=1)  # it compares, and tells, what a code writes
                encoder, bias = encoder * norms, bias * norms
                common["decoder_LE"] = t["W_dec"] / norms.unsqueeze(1)
                if common["centred"]:
                    bias, common["centred"] = bias - t["b_dec"] @ encoder, False
        skip = t["W_skip"].t() if "W_skip" in t else None
        return unit_rows(
            encoder_DL=encoder,
            bias_L=bias,
            threshold=t.get("threshold", torch.zeros(())),
            skip_DE=skip,
            row_k=k,
            **common,
        )


def _metadata(book: Codebook) -> dict[str, Any]:
    """Return what SAELens keeps beside a dictionary."""
    from ingest.models.sites import hook_name

    site = book.meta.get("site")
    names: dict[str, Any] = {"sae_lens_version": OLDEST, "exported_by": "actlake"}
    if isinstance(site, str):
        names["hook_name"] = hook_name(site)
        names["actlake_site"] = site
    targets = book.meta.get("targets") or []
    if len(targets) == 1:
        names["hook_name_out"] = hook_name(targets[0])
    for key in ("variant", "k", "rows"):
        if key in book.meta:
            names[f"actlake_{key}"] = book.meta[key]
    return names
