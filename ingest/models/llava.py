"""LLaVA: a decoder with images among its tokens, one token for each patch that its vision tower sees.

Sites are the decoder's own, under its own names: rows of an image's tokens hold what the decoder makes of that patch. The class
token is left out, as the model's config must say (``vision_feature_select_strategy: default``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ingest.errors import ModelError
from ingest.models.contract import ADAPTERS, Anatomy, Vision
from ingest.models.hooks import family_of
from ingest.models.seeing import below, sides


@ADAPTERS.register("llava")
@dataclass(frozen=True, slots=True)
class Llava:
    """`Family` of `LlavaForConditionalGeneration`, its decoder of any family known here.

    Source: transformers 5, ``models/llava/modeling_llava.py``.
    """

    kind: ClassVar[str]
    spare: ClassVar[tuple[str, ...]] = ()
    tokens: ClassVar[str] = "bytes"
    maker: ClassVar[str] = "LlavaForConditionalGeneration"

    @staticmethod
    def anatomy(config: Any) -> Anatomy:
        """Return where the sites lie, below `LlavaModel`."""
        vision = config.vision_config
        if config.vision_feature_select_strategy != "default":
            raise ModelError(
                f"this llava model keeps {config.vision_feature_select_strategy!r} of what its tower sees; supported is "
                "'default', one token for each patch. Nothing was loaded.",
                kind="unsupported-family",
            )
        height, width = sides(vision.image_size)
        text = config.text_config
        decoder = below("language_model", family_of(text.model_type).anatomy(text))
        return replace(
            decoder,
            vision=Vision(
                rows="tokens",
                height=height,
                width=width,
                patch=vision.patch_size,
                lead=0,
                token=config.image_token_index,
            ),
        )

    @staticmethod
    def toy(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> Any:
        """Return the config of a tiny Llama that sees images of 4 x 4 patches; its last token stands for one."""
        from transformers import LlavaConfig

        from ingest.models.clip_vision import ClipVision
        from ingest.models.llama import Llama

        sizes = {"layers": layers, "heads": heads, "vocab": vocab, "positions": positions}
        return LlavaConfig(
            text_config=Llama.toy(width=width, **sizes).to_dict(),
            vision_config=ClipVision.toy(width=width, **{**sizes, "layers": 2}).to_dict(),
            image_token_index=vocab - 1,
            image_seq_length=16,
            vision_feature_layer=-2,
        )
