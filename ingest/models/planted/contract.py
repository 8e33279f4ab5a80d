"""The registry of planted models, and the folders they are written to when one is asked for by name.

A planted model is a frozen config; ``planted:<name>:<field>=<value>,…`` names it where a model's folder is asked for. It is
written once a machine, under a name that holds everything it is a function of, and loaded from there like any other.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ingest.errors import ModelError
from store.errors import InvalidInputError
from store.registry import Registry

PLANTED = Registry("planted model", "ingest.models.planted")
TRUTH_FILE = "truth.json"
_PREFIX = "planted:"
_FILES = ("config.json", "model.safetensors", "tokenizer.json", TRUTH_FILE)
_MOST = 1 << 31


class PlantedModel(Protocol):
    """A frozen config of a model whose circuit is known."""

    kind: ClassVar[str]
    version: ClassVar[int]
    """Goes up when equal settings give other weights."""

    def build(self) -> Any:
        """Return the Hugging Face model, float32, in evaluation mode."""

    def words(self) -> list[str]:
        """Return the text of each token, by id; the first of those in angle brackets begins a text."""

    def truth(self) -> dict[str, Any]:
        """Return what is known of it, as JSON."""


def symbols_and_begin(count: int) -> list[str]:
    """Return ``t0`` to ``t<count - 1>`` and ``<bos>``: the words of most planted models."""
    return [*(f"t{at}" for at in range(count)), "<bos>"]


def is_planted(name: str) -> bool:
    """Return whether a model's name asks for a planted one."""
    return name.startswith(_PREFIX)


def planted_folder(name: str, root: Path | None = None) -> Path:
    """Return the folder of a planted model, which is made where it is not there yet.

    Parameters
    ----------
    name
        ``planted:compiled_induction``, ``planted:trained_induction:steps=500,seed=1``.
    root
        Folder that planted models are kept in; ``~/.cache/actlake/planted`` where None.

    Raises
    ------
    ModelError
        ``unknown-name`` or ``bad-model`` of a name or field that is none.
    """
    model = _parsed(name)
    settings = {"kind": model.kind, "version": model.version, **asdict(model)}  # type: ignore[call-overload]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    place = (root or Path.home() / ".cache" / "actlake" / "planted") / f"{model.kind}-{digest}"
    if _whole(place):
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{model.kind}-", dir=place.parent))
        try:
            _write(model, settings, made)
            _move(made, place)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise ModelError(
            f"the planted model {name!r} cannot be kept in {place}: {error}. Nothing was loaded. Make room for it there, or "
            "write it elsewhere and name its folder.",
            kind="planted-cache",
            path=str(place),
        ) from error
    return place


def _whole(place: Path) -> bool:
    """Return whether a folder holds all that a planted model is."""
    return all((place / name).is_file() for name in _FILES)


def _move(made: Path, place: Path) -> None:
    """Give a folder its name; where another process was faster, its folder says the same, and one that is damaged goes."""
    for _ in range(2):
        try:
            made.rename(place)
        except OSError:
            if _whole(place):
                return
            shutil.rmtree(place)
        else:
            return
    made.rename(place)


def _parsed(name: str) -> PlantedModel:
    words = name.removeprefix(_PREFIX)
    kind, _, rest = words.partition(":")
    try:
        config: PlantedModel = PLANTED.get(kind)(**_given(rest))
    except InvalidInputError as error:
        raise ModelError(str(error).partition(": ")[2], kind="unknown-name") from error
    except (TypeError, ValueError) as error:
        known = ", ".join(one.name for one in fields(PLANTED.get(kind)))
        raise ModelError(
            f"the planted model {name!r} was asked for; its fields are whole numbers from 0 on, {known} ({error}). Nothing was "
            f"made. Say planted:{kind}:FIELD=NUMBER,…",
            kind="bad-model",
        ) from error
    return config


def _given(words: str) -> dict[str, int]:
    """Return the fields of a name; ``ValueError`` where one is no number, negative, huge or given twice."""
    pairs = [pair.split("=", 1) for pair in words.split(",") if pair]
    given = {field: int(value) for field, value in pairs}
    if len(given) < len(pairs) or not all(0 <= value < _MOST for value in given.values()):
        msg = f"each once, below {_MOST}"
        raise ValueError(msg)
    return given


def _write(model: PlantedModel, settings: dict[str, Any], folder: Path) -> None:
    from ingest.models.outside import quiet

    with quiet():
        model.build().save_pretrained(str(folder))
    _tokenizer(model.words()).save_pretrained(str(folder))
    truth = {"schema": 1, "model": settings, **model.truth()}
    (folder / TRUTH_FILE).write_text(json.dumps(truth, indent=1))


def _tokenizer(words: list[str]) -> Any:
    """Return a tokenizer that knows some words, one token each, with spaces between them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    begin = next(word for word in words if word.startswith("<"))
    core = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, words.index(begin))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=begin, eos_token=begin, pad_token=begin
    )
