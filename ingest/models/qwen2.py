"""Qwen2: Llama's layout with biases on q, k and v, and a window on some blocks where the config says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ingest.models.contract import ADAPTERS, Anatomy
from ingest.models.llama import decoder, refuse_unusual, windows_by_layer


@ADAPTERS.register("qwen2")
@dataclass(frozen=True, slots=True)
class Qwen2:
    """`Family` of `Qwen2Model` and `Qwen2ForCausalLM`.

    Source: transformers 5, ``models/qwen2/modeling_qwen2.py``.
    """

    kind: ClassVar[str]
    spare: ClassVar[tuple[str, ...]] = ()
    tokens: ClassVar[str] = "bytes"

    @staticmethod
    def anatomy(config: Any) -> Anatomy:
        """Return where the sites lie, below `Qwen2Model`."""
        refuse_unusual(config)
        return decoder(config, windows_by_layer(config))

    @staticmethod
    def toy(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> Any:
        """Return the config of a tiny Qwen2 whose last block sees back a quarter of its positions."""
        from transformers import Qwen2Config

        return Qwen2Config(
            vocab_size=vocab,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 2),
            intermediate_size=3 * width,
            max_position_embeddings=positions,
            use_sliding_window=True,
            sliding_window=max(1, positions // 4),
            max_window_layers=layers - 1,
            bos_token_id=0,
            eos_token_id=0,
        )
