"""GPT-2: a pre-norm decoder with learned positions and one matrix for q, k and v.

``embed`` is the token embedding alone; ``blocks.0.resid_pre`` has the position added. ``attn.q``,
``attn.k`` and ``attn.v`` are thirds of one tensor, so keeping one keeps all three in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ingest.models.contract import ADAPTERS, Anatomy, AttentionSpec, Bends, Tap
from ingest.models.views import heads_of, heads_of_slice


@ADAPTERS.register("gpt2")
@dataclass(frozen=True, slots=True)
class GPT2:
    """`Family` of `GPT2Model` and the `GPT2…` models with a head.

    Source: transformers 5, ``models/gpt2/modeling_gpt2.py``.
    """

    kind: ClassVar[str]
    spare: ClassVar[tuple[str, ...]] = ()
    tokens: ClassVar[str] = "bytes"

    @staticmethod
    def anatomy(config: Any) -> Anatomy:
        """Return where the sites lie, below `GPT2Model`."""
        width, count = config.n_embd, config.n_head
        inner = config.n_inner if config.n_inner is not None else 4 * width
        head = width // count
        shape = (count, head)
        block = "h.{l}"
        attn, mlp = f"{block}.attn", f"{block}.mlp"
        return Anatomy(
            layers=config.n_layer,
            width=width,
            causal=True,
            max_positions=config.n_positions,
            attention=lambda layer: _attention(config, layer),
            before={"embed": Tap("wte", "out", (width,))},
            block={
                "resid_pre": Tap(block, "in", (width,)),
                "attn.q": Tap(f"{attn}.c_attn", "out", shape, heads_of_slice(0, *shape)),
                "attn.k": Tap(f"{attn}.c_attn", "out", shape, heads_of_slice(width, *shape)),
                "attn.v": Tap(f"{attn}.c_attn", "out", shape, heads_of_slice(2 * width, *shape)),
                "attn.z": Tap(f"{attn}.c_proj", "in", shape, heads_of(*shape)),
                "attn.out": Tap(f"{attn}.c_proj", "out", (width,), also=(attn,)),
                "resid_mid": Tap(f"{block}.ln_2", "in", (width,)),
                "mlp.in": Tap(mlp, "in", (width,)),
                "mlp.pre": Tap(f"{mlp}.c_fc", "out", (inner,)),
                "mlp.post": Tap(f"{mlp}.c_proj", "in", (inner,)),
                "mlp.out": Tap(f"{mlp}.c_proj", "out", (width,), also=(mlp,)),
                "resid_post": Tap(block, "out", (width,)),
            },
            after={"final.normalized": Tap("ln_f", "out", (width,))},
            bends=Bends(
                norms=(f"{block}.ln_1", f"{block}.ln_2", "ln_f"),
                activations=(f"{mlp}.act",),
                attentions=(attn,),
                adds=(f"{attn}.c_proj",),
                mlps=(f"{mlp}.c_proj",),
            ),
        )

    @staticmethod
    def toy(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> Any:
        """Return the config of a tiny GPT-2; token 0 begins and ends texts."""
        from transformers import GPT2Config

        return GPT2Config(
            vocab_size=vocab,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            n_positions=positions,
            bos_token_id=0,
            eos_token_id=0,
        )


def _attention(config: Any, layer: int) -> AttentionSpec:
    head = config.n_embd // config.n_head
    scale = head**-0.5 if config.scale_attn_weights else 1.0
    if config.scale_attn_by_inverse_layer_idx:
        scale /= layer + 1
    return AttentionSpec(
        heads=config.n_head, kv_heads=config.n_head, head_width=head, scale=scale, causal=True
    )
