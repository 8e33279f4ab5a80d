"""Load a model so that its values can be trusted: whole files, no invented weights, no hub code.

transformers is asked only after `ingest.models.files` has found the checkpoint whole, and its
bars and log lines are switched off while it works; what it would have warned about (weights it
had to invent) is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ingest.errors import ModelError, first_line
from ingest.models.contract import LoadedModel
from ingest.models.dtypes import check_device, resolve_dtype
from ingest.models.files import (
    Checkpoint,
    check_tokenizer,
    locate,
    read_checkpoint,
)
from ingest.models.hooks import adapt, family_of
from ingest.models.outside import missing_package, quiet
from ingest.models.pictures import Pictures

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_CAUSAL = ("ForCausalLM", "LMHeadModel")


def load(
    model: str | Path,
    *,
    dtype: str = "auto",
    device: str | torch.device = "cpu",
    attn_implementation: str = "auto",
    revision: str | None = None,
    tokenizer: str | Path | None = None,
    sees: str | None = None,
) -> LoadedModel:
    """Return a model in evaluation mode, with its adapter, tokenizer and hashes.

    Parameters
    ----------
    model
        A folder with ``config.json`` and safetensors, or a hub id. An existing folder is never
        looked up.
    dtype
        Of the computation: a name, or ``auto`` (`resolve_dtype`).
    device
        Where the model goes.
    attn_implementation
        As transformers names it: ``sdpa``, ``eager``, ``flash_attention_2`` …; ``auto`` is ``sdpa`` where the family has
        it, else ``eager``.
    revision
        Branch, tag or commit of a hub id; without meaning for a folder.
    tokenizer
        Folder or hub id of the tokenizer, where it does not lie with the model.
    sees
        ``images`` or ``texts``, where it is to be shown only these: of a model with a tower for each, that tower is loaded.

    Raises
    ------
    ModelError
        ``model-not-found``, ``model-broken``, ``unsupported-family``, ``missing-package``,
        ``tokenizer-missing``, ``missing-device``, ``unknown-dtype``. Nothing stays in memory.
    """
    place = check_device(device)
    compute, _ = resolve_dtype(dtype, device=place)
    with quiet():
        folder, commit = locate(model, revision)
        found = read_checkpoint(folder, commit)
        family = family_of(found.config["model_type"])
        _check_config(found, family)
        if sees in getattr(family, "towers", {}):
            family = family_of(family.towers[sees])
        tokens = None
        if family.tokens != "none":
            tokens = _tokenizer(folder if tokenizer is None else locate(tokenizer)[0])
        network = _network(found, family, getattr(torch, compute), attn_implementation)
        adapter = adapt(network)
    network.eval().requires_grad_(requires_grad=False)
    network.to(place)
    files = found.hashes()
    return LoadedModel(
        adapter=adapter,
        tokenizer=tokens,
        model=network,
        name=str(model),
        folder=folder,
        config_sha256=files["config.json"],
        files=files,
        compute_dtype=compute,
        attn_implementation=str(network.config._attn_implementation),
        revision=commit,
        pictures=None if adapter.vision is None else Pictures.of(folder),
    )


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    check_tokenizer(folder)
    try:
        return AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except ImportError as error:
        raise missing_package(
            error.name or "sentencepiece", f"the tokenizer in {folder}"
        ) from error
    except Exception as error:  # the Rust tokenizer raises plain Exception
        raise ModelError(
            f"the tokenizer in {folder} cannot be read: {first_line(error)}. Nothing was "
            "loaded. Copy or download its files again.",
            kind="model-broken",
            path=str(folder),
        ) from error


def _check_config(found: Checkpoint, family: Any) -> None:
    """Raise where the family cannot describe a model of this config, before its weights are read."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        family.anatomy(
            AutoConfig.from_pretrained(
                str(found.folder), local_files_only=True, trust_remote_code=False
            )
        )
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ArithmeticError,
        StrictDataclassError,
    ) as error:
        raise _unloadable(found.folder, first_line(error)) from error


def _network(found: Checkpoint, family: Any, dtype: torch.dtype, attn_implementation: str) -> Any:
    import transformers
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    makers = str((found.config.get("architectures") or [""])[0])
    auto = transformers.AutoModelForCausalLM if makers.endswith(_CAUSAL) else transformers.AutoModel
    auto = getattr(transformers, getattr(family, "maker", ""), auto)
    try:
        network, report = auto.from_pretrained(
            str(found.folder),
            dtype=dtype,
            attn_implementation=None if attn_implementation == "auto" else attn_implementation,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except ImportError as error:
        raise missing_package(
            error.name or first_line(error), f"the model in {found.folder}"
        ) from error
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
        SafetensorError,
        StrictDataclassError,
    ) as error:
        if "scaled_dot_product_attention" in str(error) and attn_implementation == "sdpa":
            raise ModelError(
                f"the model in {found.folder} was to attend by 'sdpa', which transformers has not for its family. Nothing was "
                "loaded. Use --attn-implementation auto, or eager.",
                kind="no-kernel",
                path=str(found.folder),
            ) from error
        raise _unloadable(found.folder, first_line(error)) from error
    _refuse_invented(found.folder, report, family.spare)
    return network


def _refuse_invented(folder: Path, report: Mapping[str, Any], spare: tuple[str, ...]) -> None:
    absent = sorted(name for name in report["missing_keys"] if not name.startswith(spare))
    if absent:
        raise _unloadable(
            folder,
            f"{len(absent)} weights are absent, {absent[0]} first; they would be random numbers",
        )


def _unloadable(folder: Path, found: str) -> ModelError:
    return ModelError(
        f"the model in {folder} cannot be loaded: {found}. Nothing was kept. Check that "
        "config.json and the weights belong together.",
        kind="model-broken",
        path=str(folder),
    )
