"""dictionary_learning: ``ae.pt``, a state dict, and ``config.json``."""

from __future__ import annotations

import io
import json
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from jobs.codebook import Codebook, write_atomic
from jobs.errors import JobError
from jobs.export.foreign import (
    FOREIGN,
    only_known,
    positive,
    read_json,
    refused,
    unit_rows,
    unknown,
)

CONFIG_FILE, WEIGHTS_FILE = "config.json", "ae.pt"
WHAT = "dictionary_learning"
LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
MATRICES = ("W_enc", "b_enc", "W_dec", "b_dec")
TENSORS = {
    "AutoEncoder": (*LINEAR, "bias"),
    "AutoEncoderNew": (*LINEAR, "decoder.bias"),
    "AutoEncoderTopK": (*LINEAR, "b_dec", "k", "threshold"),
    "BatchTopKSAE": (*LINEAR, "b_dec", "k", "threshold"),
    "MatryoshkaBatchTopKSAE": (*MATRICES, "k", "threshold", "group_sizes"),
    "JumpReluAutoEncoder": (*MATRICES, "threshold"),
    "GatedAutoEncoder": ("encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"),
}  # fmt: skip


@FOREIGN.register("dictionary_learning")
@dataclass(frozen=True)
class DictionaryLearning:
    """dictionary_learning 0.1: written as `JumpReluAutoEncoder`, read in seven classes."""

    kind: ClassVar[str]

    def write(self, book: Codebook, folder: Path) -> list[str]:
        """Write a dictionary as ``JumpReluAutoEncoder``."""
        positive(book, WHAT)
        if book.out_width != book.width or book.W_skip_DE is not None:
            raise JobError(
                "a transcoder was to be written as dictionary_learning, which has none. Nothing was written. `actlake "
                "export saelens` writes it.",
                kind="foreign-unknown",
            )
        state = {
            "W_enc": book.W_enc_DL,
            "b_enc": book.b_enc_L,
            "W_dec": book.W_dec_LD,
            "b_dec": book.b_dec_D,
            "threshold": book.theta.expand(book.latents),
        }
        held = {name: tensor.cpu().contiguous().clone() for name, tensor in state.items()}
        buffer = io.BytesIO()
        torch.save(held, buffer)
        trainer = {
            "trainer_class": "actlake",
            "dict_class": "JumpReluAutoEncoder",
            "activation_dim": book.width,
            "dict_size": book.latents,
            "k": book.meta.get("k"),
            "steps": book.meta.get("steps"),
            "submodule_name": book.meta.get("site"),
            "lm_name": book.meta.get("model"),
            "device": "cpu",
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / WEIGHTS_FILE, buffer.getvalue())
        text = json.dumps({"trainer": trainer, "buffer": {}}, indent=1)
        write_atomic(folder / CONFIG_FILE, text.encode())
        return [CONFIG_FILE, WEIGHTS_FILE]

    def read(self, folder: Path) -> Codebook:
        """Read a trainer's folder; files that hold anything but tensors are refused."""
        config = read_json(folder / CONFIG_FILE, WHAT)
        trainer = config.get("trainer") or {}
        name = trainer.get("dict_class")
        if name not in TENSORS:
            raise unknown(folder, WHAT, f"its class is {name!r}; known: {', '.join(TENSORS)}")
        t = _state(folder)
        optional = (
            {"k", "threshold", "group_sizes", "decoder.bias"}
            if name != "JumpReluAutoEncoder"
            else set()
        )
        required = [key for key in TENSORS[name] if key not in optional]
        only_known(t, required, set(TENSORS[name]), folder, WHAT)
        meta = {"from": "dictionary_learning", "dict_class": name}
        meta |= {
            key: trainer[key]
            for key in ("k", "lm_name", "submodule_name", "layer")
            if key in trainer
        }
        return _book(name, t, trainer, meta)


def _state(folder: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what matters is refused below
            found = torch.load(folder / WEIGHTS_FILE, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise unknown(
            folder, WHAT, f"{WEIGHTS_FILE} holds code beside tensors, which is never run ({error})"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError) as error:
        raise refused(folder, WHAT, f"{WEIGHTS_FILE} could not be read ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise refused(folder, WHAT, f"{WEIGHTS_FILE} is no dictionary of tensors")
    return {str(key): value.double() for key, value in found.items()}


def _book(
    name: str, t: dict[str, Tensor], trainer: dict[str, Any], meta: dict[str, Any]
) -> Codebook:
    threshold = t.get("threshold", torch.zeros(()))
    if name == "JumpReluAutoEncoder":
        return unit_rows(
            encoder_DL=t["W_enc"], bias_L=t["b_enc"], decoder_LE=t["W_dec"], bias_E=t["b_dec"],
            threshold=threshold, meta=meta,
        )  # fmt: skip
    if name == "MatryoshkaBatchTopKSAE":
        return unit_rows(
            encoder_DL=t["W_enc"], bias_L=t["b_enc"], decoder_LE=t["W_dec"], bias_E=t["b_dec"],
            threshold=threshold, centred=True, meta=meta,
        )  # fmt: skip
    encoder, decoder = t["encoder.weight"].t(), t["decoder.weight"].t()
    if name == "GatedAutoEncoder":
        gain = t["r_mag"].exp()
        return unit_rows(
            encoder_DL=encoder * gain, bias_L=t["mag_bias"], decoder_LE=decoder, bias_E=t["decoder_bias"],
            threshold=t["mag_bias"] - t["gate_bias"] * gain, centred=True, meta=meta,
        )  # fmt: skip
    bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}.get(name, "b_dec")
    top = name == "AutoEncoderTopK"
    k = int(t["k"]) if "k" in t else trainer.get("k")
    return unit_rows(
        encoder_DL=encoder, bias_L=t["encoder.bias"], decoder_LE=decoder, bias_E=t[bias],
        threshold=0.0 if top else threshold, centred=name != "AutoEncoderNew", meta=meta,
        row_k=k if top else None,
    )  # fmt: skip
