"""Mistral: Llama's layout, every block seeing only so far back where the config names a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ingest.models.contract import ADAPTERS, Anatomy
from ingest.models.llama import decoder, refuse_unusual


@ADAPTERS.register("mistral")
@dataclass(frozen=True, slots=True)
class Mistral:
    """`Family` of `MistralModel` and `MistralForCausalLM`.

    Source: transformers 5, ``models/mistral/modeling_mistral.py``.
    """

    kind: ClassVar[str]
    spare: ClassVar[tuple[str, ...]] = ()
    tokens: ClassVar[str] = "bytes"

    @staticmethod
    def anatomy(config: Any) -> Anatomy:
        """Return where the sites lie, below `MistralModel`."""
        refuse_unusual(config)
        return decoder(config, lambda _layer: config.sliding_window)

    @staticmethod
    def toy(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> Any:
        """Return the config of a tiny Mistral that sees back a quarter of its positions."""
        from transformers import MistralConfig

        return MistralConfig(
            vocab_size=vocab,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 2),
            intermediate_size=3 * width,
            max_position_embeddings=positions,
            sliding_window=max(1, positions // 4),
            bos_token_id=0,
            eos_token_id=0,
        )
