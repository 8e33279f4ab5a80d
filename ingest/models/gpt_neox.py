"""GPT-NeoX (Pythia): attention and MLP side by side on one stream, q, k and v from one matrix, head by head.

Where both halves read the stream as it enters (``use_parallel_residual``), there is no stream between them and so no
``resid_mid``. ``attn.q``, ``attn.k`` and ``attn.v`` are thirds of one tensor's heads. Only the leading features of a head are
rotated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ingest.errors import ModelError
from ingest.models.contract import ADAPTERS, Anatomy, AttentionSpec, Bends, Tap
from ingest.models.llama import BY_LENGTH
from ingest.models.views import heads_of, positions_first

if TYPE_CHECKING:
    from torch import Tensor


@ADAPTERS.register("gpt_neox")
@dataclass(frozen=True, slots=True)
class GptNeoX:
    """`Family` of `GPTNeoXModel` and `GPTNeoXForCausalLM`, such as Pythia.

    Source: transformers 5, ``models/gpt_neox/modeling_gpt_neox.py``.
    """

    kind: ClassVar[str]
    spare: ClassVar[tuple[str, ...]] = ()
    tokens: ClassVar[str] = "bytes"

    @staticmethod
    def anatomy(config: Any) -> Anatomy:
        """Return where the sites lie, below `GPTNeoXModel`."""
        _refuse_unusual(config)
        width, inner, heads = (
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
        )
        head = width // heads
        shape = (heads, head)
        turned = "after the rotary embedding, as attention sees it"
        before = "before the rotary embedding"
        block = "layers.{l}"
        attn, mlp = f"{block}.attention", f"{block}.mlp"
        fused = f"{attn}.query_key_value"
        middle = {"resid_mid": Tap(f"{block}.post_attention_layernorm", "in", (width,))}
        return Anatomy(
            layers=config.num_hidden_layers,
            width=width,
            causal=True,
            max_positions=config.max_position_embeddings,
            attention=lambda _layer: AttentionSpec(
                heads=heads, kv_heads=heads, head_width=head, scale=head**-0.5, causal=True
            ),
            rotary="rotary_emb",
            before={"embed": Tap("embed_in", "out", (width,))},
            block={
                "resid_pre": Tap(block, "in", (width,)),
                "attn.q": Tap(fused, "out", shape, third_of_heads(0, *shape), note=before),
                "attn.k": Tap(fused, "out", shape, third_of_heads(1, *shape), note=before),
                "attn.v": Tap(fused, "out", shape, third_of_heads(2, *shape)),
                "attn.rot_q": Tap(attn, "query", shape, positions_first, note=turned),
                "attn.rot_k": Tap(attn, "key", shape, positions_first, note=turned),
                "attn.z": Tap(f"{attn}.dense", "in", shape, heads_of(*shape)),
                "attn.out": Tap(f"{attn}.dense", "out", (width,), also=(attn,)),
                **({} if config.use_parallel_residual else middle),
                "mlp.in": Tap(mlp, "in", (width,)),
                "mlp.pre": Tap(f"{mlp}.dense_h_to_4h", "out", (inner,)),
                "mlp.post": Tap(f"{mlp}.dense_4h_to_h", "in", (inner,)),
                "mlp.out": Tap(f"{mlp}.dense_4h_to_h", "out", (width,), also=(mlp,)),
                "resid_post": Tap(block, "out", (width,)),
            },
            after={"final.normalized": Tap("final_layer_norm", "out", (width,))},
            bends=Bends(
                norms=(
                    f"{block}.input_layernorm",
                    f"{block}.post_attention_layernorm",
                    "final_layer_norm",
                ),
                activations=(f"{mlp}.act",),
                attentions=(attn,),
                adds=(f"{attn}.dense",),
                mlps=(f"{mlp}.dense_4h_to_h",),
            ),
        )

    @staticmethod
    def toy(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> Any:
        """Return the config of a tiny GPT-NeoX that rotates half of each head; token 0 begins and ends texts."""
        from transformers import GPTNeoXConfig

        return GPTNeoXConfig(
            vocab_size=vocab,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            max_position_embeddings=positions,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.5,
            },
            bos_token_id=0,
            eos_token_id=0,
        )


def third_of_heads(which: int, count: int, head_width: int) -> Callable[[Tensor], Tensor]:
    """Return the view ``[..., H * 3 * dh] → [..., H, dh]`` of every head's q, k or v (0, 1, 2)."""
    cut = heads_of(count, 3 * head_width)
    return lambda value: cut(value)[..., which * head_width : (which + 1) * head_width]


def _refuse_unusual(config: Any) -> None:
    kind = dict(config.rope_parameters or {}).get("rope_type", "default")
    if kind in BY_LENGTH:
        raise ModelError(
            f"this gpt_neox model has rope_type={kind!r}, whose frequencies depend on a sequence's length, so no one set of "
            "them describes a column. Nothing was loaded.",
            kind="unsupported-family",
        )
