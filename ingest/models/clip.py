"""CLIP: an image and a text, each one vector; a row is the pair, its columns what either tower makes of its half.

``image.pooled`` and ``text.pooled`` are what the towers hand on, ``image.embed`` and ``text.embed`` their projections into the
space they share, before they are scaled to length 1. The towers' inner sites are those of ``clip_vision_model`` and
``clip_text_model``, which a checkpoint of both gives as well: images alone are shown to the one, texts alone to the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ingest.models.contract import ADAPTERS, Anatomy, Tap, Vision
from ingest.models.seeing import sides
from ingest.models.views import one_row


@ADAPTERS.register("clip")
@dataclass(frozen=True, slots=True)
class Clip:
    """`Family` of `CLIPModel`.

    Source: transformers 5, ``models/clip/modeling_clip.py``.
    """

    kind: ClassVar[str]
    spare: ClassVar[tuple[str, ...]] = ()
    tokens: ClassVar[str] = "clip"
    towers: ClassVar[dict[str, str]] = {"images": "clip_vision_model", "texts": "clip_text_model"}
    """Families of its halves, by what they alone take."""

    @staticmethod
    def anatomy(config: Any) -> Anatomy:
        """Return where the sites lie, below `CLIPModel`."""
        vision, text, shared = config.vision_config, config.text_config, config.projection_dim
        height, width = sides(vision.image_size)
        return Anatomy(
            layers=0,
            width=shared,
            causal=False,
            max_positions=None,
            block={},
            before={
                "image.pooled": Tap(
                    "vision_model.post_layernorm", "out", (vision.hidden_size,), one_row
                ),
                "image.embed": Tap("visual_projection", "out", (shared,), one_row),
                "text.pooled": Tap("text_projection", "in", (text.hidden_size,), one_row),
                "text.embed": Tap("text_projection", "out", (shared,), one_row),
            },
            vision=Vision(
                rows="pairs",
                height=height,
                width=width,
                patch=vision.patch_size,
                lead=0,
                text_tokens=text.max_position_embeddings,
            ),
        )

    @staticmethod
    def toy(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> Any:
        """Return the config of a tiny pair of towers, the image's half as wide again as the text's."""
        from transformers import CLIPConfig

        from ingest.models.clip_text import ClipText
        from ingest.models.clip_vision import ClipVision

        sizes = {"layers": layers, "heads": heads, "vocab": vocab, "positions": positions}
        return CLIPConfig(
            text_config=ClipText.toy(width=width, **sizes).to_dict(),
            vision_config=ClipVision.toy(width=2 * width, **sizes).to_dict(),
            projection_dim=width // 2,
        )
