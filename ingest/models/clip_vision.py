"""CLIP's vision tower: a pre-norm encoder of image patches behind a class token, normalised once more before the first block.

``embed`` is before that norm. There is none behind the last block: what CLIP projects is the normalised class token alone, and
belongs to the pair (`ingest.models.clip`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ingest.models.contract import ADAPTERS, Anatomy, Tap, Vision
from ingest.models.seeing import sides, tower


@ADAPTERS.register("clip_vision_model")
@dataclass(frozen=True, slots=True)
class ClipVision:
    """`Family` of `CLIPVisionModel`, also out of a whole CLIP checkpoint.

    Source: transformers 5, ``models/clip/modeling_clip.py``.
    """

    kind: ClassVar[str]
    spare: ClassVar[tuple[str, ...]] = ()
    tokens: ClassVar[str] = "none"
    maker: ClassVar[str] = "CLIPVisionModel"

    @staticmethod
    def anatomy(config: Any) -> Anatomy:
        """Return where the sites lie, below `CLIPVisionModel`."""
        height, width = sides(config.image_size)
        return replace(
            clip_tower(config),
            before={"embed": Tap("embeddings", "out", (config.hidden_size,))},
            vision=Vision(rows="patches", height=height, width=width, patch=config.patch_size),
        )

    @staticmethod
    def toy(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> Any:
        """Return the config of a tiny tower of images of 4 x 4 patches."""
        from transformers import CLIPVisionConfig

        del vocab, positions
        return CLIPVisionConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=3 * width,
            image_size=32,
            patch_size=8,
        )


def clip_tower(config: Any, *, causal: bool = False) -> Anatomy:
    """Return the blocks of either tower."""
    return tower(
        config,
        block="encoder.layers.{l}",
        attention="self_attn",
        out="out_proj",
        norms=("layer_norm1", "layer_norm2"),
        mlp=("mlp", "mlp.fc1", "mlp.fc2"),
        causal=causal,
    )
