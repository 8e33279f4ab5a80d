"""CLIP's text tower: a causal pre-norm encoder of tokens with learned positions; it predicts none of them.

``embed`` is the tokens with their positions, what enters the first block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ingest.models.clip_vision import clip_tower
from ingest.models.contract import ADAPTERS, Anatomy, Tap


@ADAPTERS.register("clip_text_model")
@dataclass(frozen=True, slots=True)
class ClipText:
    """`Family` of `CLIPTextModel`, also out of a whole CLIP checkpoint.

    Source: transformers 5, ``models/clip/modeling_clip.py``.
    """

    kind: ClassVar[str]
    spare: ClassVar[tuple[str, ...]] = ()
    tokens: ClassVar[str] = "clip"
    maker: ClassVar[str] = "CLIPTextModel"

    @staticmethod
    def anatomy(config: Any) -> Anatomy:
        """Return where the sites lie, below `CLIPTextModel`."""
        width = config.hidden_size
        return replace(
            clip_tower(config, causal=True),
            max_positions=config.max_position_embeddings,
            before={"embed": Tap("embeddings", "out", (width,))},
            after={"final.normalized": Tap("final_layer_norm", "out", (width,))},
        )

    @staticmethod
    def toy(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> Any:
        """Return the config of a tiny tower; token 1 begins texts and token 0 ends them."""
        from transformers import CLIPTextConfig

        return CLIPTextConfig(
            vocab_size=vocab,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=3 * width,
            max_position_embeddings=positions,
            bos_token_id=1,
            eos_token_id=0,
            pad_token_id=0,
        )
