"""Plain: a decoder of our own for planted circuits, with or without norms and MLPs, loaded by transformers like any other.

Learned positions, as many query as key heads, no bias but in norms. Its modules are in `ingest.models.planted.network`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ingest.models.contract import ADAPTERS, Anatomy, AttentionSpec, Bends, Tap
from ingest.models.views import heads_of


@ADAPTERS.register("plain")
@dataclass(frozen=True, slots=True)
class Plain:
    """`Family` of planted models: ours, with or without norms and MLPs, with whatever weights are written into them."""

    kind: ClassVar[str]
    spare: ClassVar[tuple[str, ...]] = ()
    tokens: ClassVar[str] = "bytes"
    network: ClassVar[str] = "ingest.models.planted.network"

    @staticmethod
    def anatomy(config: Any) -> Anatomy:
        """Return where the sites lie, below `PlainModel`."""
        width, inner, heads = (
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
        )
        head = config.head_dim
        per_head = ((heads, head), heads_of(heads, head))
        block = "layers.{l}"
        attn, mlp = f"{block}.attn", f"{block}.mlp"
        halves = {
            "resid_mid": Tap(f"{block}.mlp_norm", "in", (width,)),
            "mlp.in": Tap(mlp, "in", (width,)),
            "mlp.pre": Tap(f"{mlp}.up", "out", (inner,)),
            "mlp.post": Tap(f"{mlp}.down", "in", (inner,)),
            "mlp.out": Tap(f"{mlp}.down", "out", (width,), also=(mlp,)),
        }
        norms = (f"{block}.attn_norm", *((f"{block}.mlp_norm",) if inner else ()), "norm")
        return Anatomy(
            layers=config.num_hidden_layers,
            width=width,
            causal=True,
            max_positions=config.max_position_embeddings,
            attention=lambda _layer: AttentionSpec(
                heads=heads, kv_heads=heads, head_width=head, scale=head**-0.5, causal=True
            ),
            before={"embed": Tap("embed", "out", (width,))},
            block={
                "resid_pre": Tap(block, "in", (width,)),
                "attn.q": Tap(f"{attn}.q", "out", *per_head),
                "attn.k": Tap(f"{attn}.k", "out", *per_head),
                "attn.v": Tap(f"{attn}.v", "out", *per_head),
                "attn.z": Tap(f"{attn}.o", "in", *per_head),
                "attn.out": Tap(f"{attn}.o", "out", (width,), also=(attn,)),
                **(halves if inner else {}),
                "resid_post": Tap(block, "out", (width,)),
            },
            after={"final.normalized": Tap("norm", "out", (width,))} if config.norms else {},
            bends=Bends(
                norms=norms if config.norms else (),
                activations=(f"{mlp}.act",) if inner else (),
                attentions=(attn,),
                adds=(f"{attn}.o",),
                mlps=(f"{mlp}.down",) if inner else (),
            ),
        )

    @staticmethod
    def toy(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> Any:
        """Return the config of a tiny one with norms and MLPs; token 0 begins and ends texts."""
        from ingest.models.planted.network import PlainConfig

        return PlainConfig(
            vocab_size=vocab,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            head_dim=width // heads,
            intermediate_size=3 * width,
            max_position_embeddings=positions,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
