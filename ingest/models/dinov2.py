"""DINOv2: a ViT whose halves are scaled, feature by feature, before they are added to the stream.

``attn.out`` and ``mlp.out`` are what the last projections give, ``attn.scaled`` and ``mlp.scaled`` what is added. Positions are
interpolated, so images of any size in whole patches are taken. The large models have a gated MLP: ``mlp.pre`` is the gate before
its activation, ``mlp.pre_linear`` what it multiplies, ``mlp.post`` their product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ingest.models.contract import ADAPTERS, Anatomy, Tap, Vision
from ingest.models.seeing import sides, tower


@ADAPTERS.register("dinov2")
@dataclass(frozen=True, slots=True)
class Dinov2:
    """`Family` of `Dinov2Model` and its classifiers.

    Source: transformers 5, ``models/dinov2/modeling_dinov2.py``.
    """

    kind: ClassVar[str]
    spare: ClassVar[tuple[str, ...]] = ()
    tokens: ClassVar[str] = "none"

    @staticmethod
    def anatomy(config: Any) -> Anatomy:
        """Return where the sites lie, below `Dinov2Model`."""
        width = config.hidden_size
        inner = int(width * config.mlp_ratio)
        gated = bool(config.use_swiglu_ffn)
        if gated:  # as transformers rounds it
            inner = (int(inner * 2 / 3) + 7) // 8 * 8
        block = "encoder.layer.{l}"
        blocks = tower(
            config,
            block=block,
            attention="attention",
            out="o_proj",
            norms=("norm1", "norm2"),
            mlp=("mlp", "mlp.gate_proj", "mlp.down_proj")
            if gated
            else ("mlp", "mlp.fc1", "mlp.fc2"),
            inner=inner,
        )
        sites: dict[str, Tap] = {}
        for name, tap in blocks.block.items():
            sites[name] = tap
            if name == "mlp.pre" and gated:
                sites["mlp.pre_linear"] = Tap(f"{block}.mlp.up_proj", "out", (inner,))
            if name in {"attn.out", "mlp.out"}:
                number = 1 if name == "attn.out" else 2
                scaled = Tap(f"{block}.layer_scale{number}", "out", (width,))
                sites[f"{name.split('.')[0]}.scaled"] = scaled
        height, across = sides(config.image_size)
        assert blocks.bends is not None
        mlp = f"{block}.mlp"
        bends = replace(
            blocks.bends,
            adds=(f"{block}.layer_scale1",),
            mlps=(f"{block}.layer_scale2",),
            activations=(f"{mlp}.act_fn",) if gated else blocks.bends.activations,
            products=(f"{mlp}.down_proj",) if gated else (),
        )
        return replace(
            blocks,
            block=sites,
            bends=bends,
            before={"embed": Tap("embeddings", "out", (width,))},
            after={"final.normalized": Tap("layernorm", "out", (width,))},
            vision=Vision(
                rows="patches", height=height, width=across, patch=config.patch_size, any_size=True
            ),
        )

    @staticmethod
    def toy(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> Any:
        """Return the config of a tiny DINOv2 of images of 4 x 4 patches."""
        from transformers import Dinov2Config

        del vocab, positions
        return Dinov2Config(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            mlp_ratio=3,
            image_size=32,
            patch_size=8,
        )
