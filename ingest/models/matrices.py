"""Weights that are kept beside the columns they belong to, in the shapes papers write them in.

========================= ===================== ================================================================
name                      shape                 what it does
========================= ===================== ================================================================
``W_E``                   ``[V, D]``            token → stream (Gemma multiplies by √D behind it)
``W_U``                   ``[D, V]``            normalised stream → logits
``blocks.L.attn.W_O``     ``[H, dh, D]``        ``attn.z`` → ``attn.out``, without its bias
``blocks.L.mlp.W_out``    ``[F, D]``            ``mlp.post`` → ``mlp.out``, without its bias: a value vector a neuron
========================= ===================== ================================================================

They are read off the modules that lie between two sites, so every family has them that has the sites.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ingest.errors import SiteError
from ingest.models.contract import LoadedModel
from ingest.models.hooks import HookedModel

if TYPE_CHECKING:
    from torch import Tensor

FILE = "weights.safetensors"
_BETWEEN = {"attn.W_O": ("attn.z", "attn.out"), "mlp.W_out": ("mlp.post", "mlp.out")}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def known(adapter: HookedModel) -> list[str]:
    """Return the names there are of a model."""
    model: Any = adapter.model
    of_tokens = adapter.vision is None or adapter.vision.rows == "tokens"
    ends = model.get_output_embeddings() if of_tokens else None
    names = [*(["W_E"] if of_tokens else []), *(["W_U"] if ends is not None else [])]
    sites = adapter.sites()
    for layer in range(adapter.layers):
        for name, ends in _BETWEEN.items():
            if all(f"blocks.{layer}.{end}" in sites for end in ends) and _same(
                adapter, layer, ends
            ):
                names.append(f"blocks.{layer}.{name}")
    return names


def resolve(patterns: Sequence[str], adapter: HookedModel) -> list[str]:
    """Return the names that some patterns stand for: ``W_U``, ``blocks.*.attn.W_O``, or ``W_O`` for every block's.

    Raises
    ------
    SiteError
        ``unknown-weight``.
    """
    names = known(adapter)
    found: dict[str, None] = {}
    for pattern in patterns:
        wild = re.compile(".*".join(map(re.escape, pattern.split("*"))))
        hits = [one for one in names if wild.fullmatch(one) or one.endswith(f".{pattern}")]
        if not hits:
            short = dict.fromkeys(re.sub(r"blocks\.\d+\.", "blocks.*.", one) for one in names)
            raise SiteError(
                f"{pattern!r} names no weights of this {adapter.family} model. Nothing was written. Known: {', '.join(short)}.",
                kind="unknown-weight",
                site=pattern,
            )
        found |= dict.fromkeys(hits)
    return [name for name in names if name in found]


def matrices(loaded: LoadedModel, names: Sequence[str]) -> dict[str, Tensor]:
    """Return some weights by name, on the CPU, in the dtype the model holds them in.

    Parameters
    ----------
    names
        Of those that are `known`.
    """
    adapter: Any = loaded.adapter
    model: Any = loaded.model
    found = {}
    for name in names:
        match = _BLOCK.fullmatch(name)
        if name == "W_E":
            weight = model.get_input_embeddings().weight
        elif name == "W_U":
            weight = model.get_output_embeddings().weight.T
        else:
            assert match is not None
            weight = _between(adapter, int(match[1]), _BETWEEN[match[2]])
        found[name] = weight.detach().cpu().contiguous()
    return found


def to_files(weights: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Return weights as the files of an asset."""
    return {FILE: save_tensors({name: value.clone() for name, value in weights.items()})}


def of_files(files: Mapping[str, bytes]) -> dict[str, Tensor]:
    """Return the weights that an asset holds."""
    found: dict[str, Tensor] = load_tensors(files[FILE])
    return found


def _same(adapter: HookedModel, layer: int, ends: tuple[str, str]) -> bool:
    """Return whether two sites are the two ends of one module with a weight."""
    before, after = (adapter.tap(f"blocks.{layer}.{end}") for end in ends)
    module = adapter.base.get_submodule(before.module)
    one = before.module == after.module and (before.end, after.end) == ("in", "out")
    return one and hasattr(module, "weight")


def _between(adapter: HookedModel, layer: int, ends: tuple[str, str]) -> Tensor:
    """Return the matrix from one site to the next, ``[*first, D]``."""
    before, after = (adapter.tap(f"blocks.{layer}.{end}") for end in ends)
    module: Any = adapter.base.get_submodule(before.module)
    weight: Tensor = module.weight
    if type(module).__name__ != "Conv1D":  # GPT-2 keeps its weights the other way round
        weight = weight.T
    return weight.reshape(*before.shape, *after.shape)
