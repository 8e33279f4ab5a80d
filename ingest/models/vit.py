"""ViT: a pre-norm encoder of image patches behind a class token, with learned positions.

``embed`` is the class token and the patches with their positions, what enters the first block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ingest.models.contract import ADAPTERS, Anatomy, Tap, Vision
from ingest.models.seeing import sides, tower


@ADAPTERS.register("vit")
@dataclass(frozen=True, slots=True)
class Vit:
    """`Family` of `ViTModel` and the `ViTFor…` models.

    Source: transformers 5, ``models/vit/modeling_vit.py``.
    """

    kind: ClassVar[str]
    spare: ClassVar[tuple[str, ...]] = ("pooler.", "vit.pooler.")
    tokens: ClassVar[str] = "none"

    @staticmethod
    def anatomy(config: Any) -> Anatomy:
        """Return where the sites lie, below `ViTModel`."""
        blocks = tower(
            config,
            block="layers.{l}",
            attention="attention",
            out="o_proj",
            norms=("layernorm_before", "layernorm_after"),
            mlp=("mlp", "mlp.fc1", "mlp.fc2"),
        )
        height, width = sides(config.image_size)
        return replace(
            blocks,
            before={"embed": Tap("embeddings", "out", (config.hidden_size,))},
            after={"final.normalized": Tap("layernorm", "out", (config.hidden_size,))},
            vision=Vision(rows="patches", height=height, width=width, patch=config.patch_size),
        )

    @staticmethod
    def toy(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> Any:
        """Return the config of a tiny ViT of images of 4 x 4 patches."""
        from transformers import ViTConfig

        del vocab, positions
        return ViTConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=3 * width,
            image_size=32,
            patch_size=8,
        )
