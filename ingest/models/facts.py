"""What a model is, without the model: family, layers, width, sites and how each block attends.

Written beside the columns a model filled, so that what is computed from them later needs neither the model's files
nor a place to load them. Facts follow from the model's identity, which the recipe holds; they identify nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from ingest.errors import ModelError, SiteError
from ingest.models.contract import ADAPTERS, AttentionSpec, ModelAdapter, Rotary, SiteInfo
from ingest.models.files import locate
from ingest.models.hooks import adapt, family_of
from ingest.models.sites import no_attention

FACTS_FILE = "model.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """A plain record of a model; it answers ``sites()`` and ``attention(layer)`` as an adapter does."""

    family: str
    """Model type, ``llama``; empty where the columns come from no model known here."""
    layers: int
    width: int
    """Features of the residual stream; 0 where not known."""
    causal: bool
    shapes: Mapping[str, tuple[int, ...]]
    """Site → shape of one row, in the order the forward pass reaches them."""
    attentions: tuple[AttentionSpec, ...] = field(default=())
    """How each block attends; empty where not known."""
    trained_length: int | None = None
    """Longest sequence the model was trained on, in tokens; None where not known."""

    @classmethod
    def of(cls, adapter: ModelAdapter) -> Self:
        """Return the facts of a model in memory."""
        return cls(
            family=adapter.family,
            layers=adapter.layers,
            width=adapter.width,
            causal=adapter.causal,
            shapes={name: tuple(site.shape) for name, site in adapter.sites().items()},
            attentions=_attentions(adapter),
            trained_length=adapter.trained_length,
        )

    def sites(self) -> dict[str, SiteInfo]:
        """Return the sites by name, in order of depth."""
        return {
            name: SiteInfo(name, shape, depth)
            for depth, (name, shape) in enumerate(self.shapes.items())
        }

    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Return no other names; with ``sites`` it makes the record fit for ``resolve_sites``."""
        return {}

    def shape(self, site: str) -> tuple[int, ...]:
        """Return the shape of one row of a site, or raise ``SiteError``."""
        if site not in self.shapes:
            raise SiteError(
                f"the {self.family or 'store'!r} model has no site {site!r}; it has "
                f"{', '.join(self.shapes)}. Nothing was started."
            )
        return self.shapes[site]

    def attention(self, layer: int) -> AttentionSpec:
        """Return what it takes to recompute the attention of block ``layer``.

        Raises
        ------
        ModelError
            ``facts-missing``: how the model attends is not recorded; ``no-attention``: it has none.
        SiteError
            There is no such block.
        """
        known = self.family in ADAPTERS.names()
        if known and not self.attentions and not any(".attn." in site for site in self.shapes):
            raise no_attention(self.family)
        if not self.attentions:
            raise ModelError(
                "how the model attends is not recorded beside its columns (the group was written by an older "
                "version, or by another program). Nothing was started. Name the model: --model FOLDER.",
                kind="facts-missing",
            )
        self.blocks((layer,))
        return self.attentions[layer]

    def blocks(self, chosen: Sequence[int] = ()) -> tuple[int, ...]:
        """Return blocks ascending, each once: those chosen, else all.

        Raises
        ------
        SiteError
            One of them is not there.
        ModelError
            ``facts-missing``: the columns come from no model that is known here.
        """
        if not self.layers:
            raise ModelError(
                "blocks of a model were asked for, and nothing is known of one: no column here is called "
                "blocks.N.…. Nothing was started. Name the model: --model FOLDER.",
                kind="facts-missing",
            )
        found = tuple(sorted(set(chosen))) or tuple(range(self.layers))
        for layer in found:
            if not 0 <= layer < self.layers:
                raise SiteError(
                    f"there is no block {layer}; the {self.family or 'store'!r} model has blocks 0 to "
                    f"{self.layers - 1}. Nothing was started. Name some of them."
                )
        return found

    @classmethod
    def of_folder(cls, folder: str | Path) -> tuple[Self, str]:
        """Return the facts of a model's folder, and the sha256 of its config; no weights are read.

        Raises
        ------
        ModelError
            ``model-not-found``, ``model-broken`` or ``unsupported-family``.
        """
        import torch
        from transformers import AutoConfig, AutoModel

        place, _ = locate(folder, None)
        path = place / "config.json"
        try:
            data = path.read_bytes()
            family_of(json.loads(data)["model_type"])
            config = AutoConfig.from_pretrained(str(place), local_files_only=True)
            with torch.device("meta"):
                network = AutoModel.from_config(config)
            _turn(network)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(
                f"the model in {place} cannot be described: {str(error).splitlines()[0]}. Nothing was started. "
                "Name a folder with config.json.",
                kind="model-broken",
                path=str(place),
            ) from error
        return cls.of(adapt(network)), hashlib.sha256(data).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON; ``from_json`` undoes it exactly, floats included."""
        return {
            "schema": 1,
            "family": self.family,
            "layers": self.layers,
            "width": self.width,
            "causal": self.causal,
            "sites": {name: list(shape) for name, shape in self.shapes.items()},
            "attention": json.loads(json.dumps([asdict(spec) for spec in self.attentions])),
            "trained_length": self.trained_length,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Undo ``to_json``."""
        return cls(
            family=record["family"],
            layers=record["layers"],
            width=record["width"],
            causal=bool(record["causal"]),
            shapes={name: tuple(shape) for name, shape in record["sites"].items()},
            attentions=tuple(_spec(entry) for entry in record["attention"]),
            trained_length=record.get("trained_length"),
        )

    def to_files(self) -> dict[str, bytes]:
        """Return the record as the file of an asset."""
        return {FACTS_FILE: json.dumps(self.to_json()).encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """Undo ``to_files``."""
        return cls.from_json(json.loads(files[FACTS_FILE]))


def _attentions(adapter: ModelAdapter) -> tuple[AttentionSpec, ...]:
    try:
        return tuple(adapter.attention(layer) for layer in range(adapter.layers))
    except ModelError as error:
        if error.kind != "no-attention":
            raise
        return ()


def _turn(network: Any) -> None:
    """Make the rotary modules of a model without weights anew: what they hold follows from the config."""
    for name, module in list(network.named_modules()):
        if any(kind.endswith("inv_freq") for kind, _ in module.named_buffers(recurse=False)):
            network.set_submodule(name, type(module)(config=network.config))


def _spec(entry: Mapping[str, Any]) -> AttentionSpec:
    rotary = entry["rotary"]
    if rotary is not None:
        rotary = Rotary(tuple(rotary["inverse_frequencies"]), rotary["magnitude"])
    return AttentionSpec(**{**entry, "rotary": rotary})
