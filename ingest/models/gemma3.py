"""Gemma 3, its text model: Gemma 2's layout with a norm on every head's q and k in place of capped scores.

Blocks that see nearby turn q and k by other frequencies than those that see all; each block's `AttentionSpec` holds its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ingest.errors import ModelError
from ingest.models.contract import ADAPTERS, Anatomy, Bends
from ingest.models.gemma2 import gemma, tiny
from ingest.models.llama import BY_LENGTH
from ingest.models.qwen3 import behind_their_norms
from ingest.models.views import positions_first


@ADAPTERS.register("gemma3_text")
@dataclass(frozen=True, slots=True)
class Gemma3Text:
    """`Family` of `Gemma3TextModel` and `Gemma3ForCausalLM`.

    Source: transformers 5, ``models/gemma3/modeling_gemma3.py``.
    """

    kind: ClassVar[str]
    spare: ClassVar[tuple[str, ...]] = ()
    tokens: ClassVar[str] = "bytes"

    @staticmethod
    def anatomy(config: Any) -> Anatomy:
        """Return where the sites lie, below `Gemma3TextModel`."""
        _refuse_unusual(config)
        plain = gemma(config)
        block, norms = behind_their_norms(plain.block, positions_first)
        sites = {"resid_pre": block["resid_pre"], "attn.v": block["attn.v"], **block}
        bends = plain.bends or Bends()
        return replace(
            plain,
            block=sites,  # v is made before q and k pass their norms
            bends=replace(bends, norms=(*bends.norms, *norms)),
            rotary_kind=lambda layer: f"{config.layer_types[layer]}_",
        )

    @staticmethod
    def toy(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> Any:
        """Return the config of a tiny Gemma 3 whose first block sees 16 tokens back; token 0 begins and ends texts."""
        from transformers import Gemma3TextConfig

        return Gemma3TextConfig(
            **tiny(vocab=vocab, layers=layers, width=width, heads=heads, positions=positions)
        )


def _refuse_unusual(config: Any) -> None:
    for kind, rope in dict(config.rope_parameters or {}).items():
        told = rope.get("rope_type", "default") if isinstance(rope, dict) else "default"
        if told in BY_LENGTH:
            raise ModelError(
                f"this {config.model_type} model has rope_type={told!r} in its blocks of {kind}, whose frequencies depend on a "
                "sequence's length, so no one set of them describes a column. Nothing was loaded.",
                kind="unsupported-family",
            )
