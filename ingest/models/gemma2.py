"""Gemma 2: Llama's layout with a second norm behind each half, soft-capped scores and every other block near-sighted.

``attn.post_norm`` and ``mlp.post_norm`` are what the halves add to the stream; ``attn.out`` and ``mlp.out`` are before those
norms. ``embed`` is scaled by the square root of the width. Attention that caps its scores has no fused kernel in PyTorch:
``auto`` computes it as ``eager``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ingest.errors import ModelError
from ingest.models.contract import ADAPTERS, Anatomy, AttentionSpec, Bends, Tap
from ingest.models.llama import decoder, refuse_unusual, windows_by_layer

if TYPE_CHECKING:
    from torch import Tensor


@ADAPTERS.register("gemma2")
@dataclass(frozen=True, slots=True)
class Gemma2:
    """`Family` of `Gemma2Model` and `Gemma2ForCausalLM`.

    Source: transformers 5, ``models/gemma2/modeling_gemma2.py``.
    """

    kind: ClassVar[str]
    spare: ClassVar[tuple[str, ...]] = ()
    tokens: ClassVar[str] = "bytes"

    @staticmethod
    def anatomy(config: Any) -> Anatomy:
        """Return where the sites lie, below `Gemma2Model`."""
        refuse_unusual(config)
        return gemma(config, config.attn_logit_softcapping)

    @staticmethod
    def toy(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> Any:
        """Return the config of a tiny Gemma 2 whose first block sees 16 tokens back; token 0 begins and ends texts."""
        from transformers import Gemma2Config

        return Gemma2Config(
            **tiny(vocab=vocab, layers=layers, width=width, heads=heads, positions=positions),
            attn_logit_softcapping=2.0,
            final_logit_softcapping=30.0,
        )


def gemma(config: Any, softcap: float | None = None) -> Anatomy:
    """Return where the sites lie in a decoder laid out like `Gemma2Model`, whose scores may be capped."""
    if getattr(config, "use_bidirectional_attention", None):
        raise ModelError(
            f"this {config.model_type} model attends both ways (use_bidirectional_attention); supported is attention to what "
            "came before. Nothing was loaded.",
            kind="unsupported-family",
        )
    plain = decoder(config, windows_by_layer(config))
    block = "layers.{l}"
    behind = {
        "attn.out": ("attn.post_norm", f"{block}.post_attention_layernorm"),
        "mlp.out": ("mlp.post_norm", f"{block}.post_feedforward_layernorm"),
    }
    sites: dict[str, Tap] = {}
    for name, tap in plain.block.items():
        sites[name] = tap
        if name in behind:
            added, path = behind[name]
            sites[added] = Tap(path, "out", tap.shape, note="what is added to the stream")
    sites["resid_mid"] = Tap(f"{block}.pre_feedforward_layernorm", "in", (config.hidden_size,))
    whole, bends = plain.attention, plain.bends or Bends()
    assert whole is not None

    def attention(layer: int) -> AttentionSpec:
        return replace(
            whole(layer),
            scale=config.query_pre_attn_scalar**-0.5,
            softcap=softcap,
        )

    return replace(
        plain,
        block=sites,
        attention=attention,
        bends=replace(
            bends,
            norms=(
                *bends.norms,
                f"{block}.pre_feedforward_layernorm",
                f"{block}.post_feedforward_layernorm",
            ),
            adds=(f"{block}.post_attention_layernorm",),
            mlps=(f"{block}.post_feedforward_layernorm",),
            gain=one_more,
        ),
    )


def one_more(norm: Any) -> Tensor:
    """Return what a norm of Gemma's multiplies by: one more than its weight, in float32."""
    gain: Tensor = 1.0 + norm.weight.float()
    return gain


def tiny(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> dict[str, Any]:
    """Return what the configs of tiny Gemmas have in common; heads are twice as wide as the stream's share."""
    near = ["sliding_attention", "full_attention"]
    return {
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "head_dim": 2 * width // heads,
        "query_pre_attn_scalar": width,
        "intermediate_size": 3 * width,
        "max_position_embeddings": positions,
        "sliding_window": 16,
        "layer_types": [near[layer % 2] for layer in range(layers)],
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
