"""Llama: a pre-norm decoder with rotary positions, grouped key heads and a gated MLP.

``attn.q`` and ``attn.k`` are before rotation, ``attn.rot_q`` and ``attn.rot_k`` after it, as attention sees
them. k and v have the key heads G only: key head g serves the query heads ``g * H / G`` and following.
``mlp.pre`` is the gate before its activation, ``mlp.pre_linear`` what it multiplies, ``mlp.post`` their product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ingest.errors import ModelError
from ingest.models.contract import ADAPTERS, Anatomy, AttentionSpec, Bends, Tap
from ingest.models.views import heads_of, positions_first

# Their frequencies depend on the length of the sequence: no one set of them describes a column.
BY_LENGTH = ("dynamic", "longrope")


@ADAPTERS.register("llama")
@dataclass(frozen=True, slots=True)
class Llama:
    """`Family` of `LlamaModel` and `LlamaForCausalLM`.

    Source: transformers 5, ``models/llama/modeling_llama.py``.
    """

    kind: ClassVar[str]
    spare: ClassVar[tuple[str, ...]] = ()
    tokens: ClassVar[str] = "bytes"

    @staticmethod
    def anatomy(config: Any) -> Anatomy:
        """Return where the sites lie, below `LlamaModel`."""
        refuse_unusual(config)
        return decoder(config)

    @staticmethod
    def toy(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> Any:
        """Return the config of a tiny Llama, two query heads a key head; token 0 begins and ends texts."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=vocab,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 2),
            intermediate_size=3 * width,
            max_position_embeddings=positions,
            bos_token_id=0,
            eos_token_id=0,
        )


def decoder(config: Any, window: Callable[[int], int | None] = lambda _layer: None) -> Anatomy:
    """Return where the sites lie in a decoder laid out like `LlamaModel`.

    Parameters
    ----------
    window
        Block → how far it sees back, itself included; None for all the way.
    """
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys, head = _heads(config)
    per_query = ((queries, head), heads_of(queries, head))
    per_key = ((keys, head), heads_of(keys, head))
    turned = "after the rotary embedding, as attention sees it"
    block = "layers.{l}"
    attn, mlp = f"{block}.self_attn", f"{block}.mlp"
    return Anatomy(
        layers=config.num_hidden_layers,
        width=width,
        causal=True,
        max_positions=config.max_position_embeddings,
        attention=lambda layer: AttentionSpec(
            heads=queries,
            kv_heads=keys,
            head_width=head,
            scale=head**-0.5,
            causal=True,
            window=window(layer),
        ),
        rotary="rotary_emb",
        before={"embed": Tap("embed_tokens", "out", (width,))},
        block={
            "resid_pre": Tap(block, "in", (width,)),
            "attn.q": Tap(f"{attn}.q_proj", "out", *per_query, note="before the rotary embedding"),
            "attn.k": Tap(f"{attn}.k_proj", "out", *per_key, note="before the rotary embedding"),
            "attn.v": Tap(f"{attn}.v_proj", "out", *per_key),
            "attn.rot_q": Tap(attn, "query", (queries, head), positions_first, note=turned),
            "attn.rot_k": Tap(attn, "key", (keys, head), positions_first, note=turned),
            "attn.z": Tap(f"{attn}.o_proj", "in", *per_query),
            "attn.out": Tap(f"{attn}.o_proj", "out", (width,), also=(attn,)),
            "resid_mid": Tap(f"{block}.post_attention_layernorm", "in", (width,)),
            "mlp.in": Tap(mlp, "in", (width,)),
            "mlp.pre": Tap(f"{mlp}.gate_proj", "out", (inner,)),
            "mlp.pre_linear": Tap(f"{mlp}.up_proj", "out", (inner,)),
            "mlp.post": Tap(f"{mlp}.down_proj", "in", (inner,)),
            "mlp.out": Tap(f"{mlp}.down_proj", "out", (width,), also=(mlp,)),
            "resid_post": Tap(block, "out", (width,)),
        },
        after={"final.normalized": Tap("norm", "out", (width,))},
        bends=Bends(
            norms=(f"{block}.input_layernorm", f"{block}.post_attention_layernorm", "norm"),
            activations=(f"{mlp}.act_fn",),
            products=(f"{mlp}.down_proj",),
            attentions=(attn,),
            adds=(f"{attn}.o_proj",),
            mlps=(f"{mlp}.down_proj",),
        ),
    )


def windows_by_layer(config: Any) -> Callable[[int], int | None]:
    """Return how far each block sees back, where a config lists ``layer_types``."""

    def window(layer: int) -> int | None:
        near = config.layer_types[layer] == "sliding_attention"
        return int(config.sliding_window) if near else None

    return window


def refuse_unusual(config: Any) -> None:
    """Raise for settings that transformers takes and the sites cannot describe.

    Raises
    ------
    ModelError
        ``unsupported-family``, or ``model-broken`` where the heads do not divide.
    """
    rope = dict(config.rope_parameters or {})
    kind, share = rope.get("rope_type", "default"), rope.get("partial_rotary_factor", 1.0)
    if kind in BY_LENGTH or share != 1.0:
        raise ModelError(
            f"this {config.model_type} model has rope_type={kind!r} and partial_rotary_factor={share}; "
            f"supported are all rope types but {', '.join(BY_LENGTH)}, whose frequencies depend on a "
            "sequence's length, and a factor of 1. Nothing was loaded.",
            kind="unsupported-family",
        )
    _heads(config)


def _heads(config: Any) -> tuple[int, int, int]:
    """Return query heads, key heads and the width of a head."""
    queries, keys = config.num_attention_heads, config.num_key_value_heads
    if keys <= 0 or queries % keys:
        raise ModelError(
            f"this {config.model_type} model has {queries} query heads for {keys} key heads; each key head "
            "must serve the same number of query heads. Nothing was loaded. Check num_attention_heads and "
            "num_key_value_heads in config.json.",
            kind="model-broken",
        )
    return queries, keys, getattr(config, "head_dim", None) or config.hidden_size // queries
