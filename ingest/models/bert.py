"""BERT: a post-norm encoder (MiniLM, RoBERTa-like layouts with model type ``bert``).

Each half of a block adds its output to the stream and normalises the sum, so no module sees the
plain sum: ``resid_mid`` and ``resid_post`` are after the norm, and ``mlp.in`` equals
``resid_mid``. ``embed`` is the word embedding alone; positions, segments and their norm come
before ``blocks.0.resid_pre``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ingest.errors import ModelError
from ingest.models.contract import ADAPTERS, Anatomy, AttentionSpec, Bends, Tap
from ingest.models.views import heads_of


@ADAPTERS.register("bert")
@dataclass(frozen=True, slots=True)
class Bert:
    """`Family` of `BertModel` and the `BertFor…` models.

    Source: transformers 5, ``models/bert/modeling_bert.py``.
    """

    kind: ClassVar[str]
    spare: ClassVar[tuple[str, ...]] = ("pooler.", "bert.pooler.")
    tokens: ClassVar[str] = "wordpiece"

    @staticmethod
    def anatomy(config: Any) -> Anatomy:
        """Return where the sites lie, below `BertModel`."""
        _refuse_unusual(config)
        width, inner, count = (
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
        )
        head = width // count
        per_head = ((count, head), heads_of(count, head))
        block = "encoder.layer.{l}"
        attn = f"{block}.attention"
        return Anatomy(
            layers=config.num_hidden_layers,
            width=width,
            causal=bool(config.is_decoder),
            max_positions=config.max_position_embeddings,
            attention=lambda _layer: AttentionSpec(
                heads=count,
                kv_heads=count,
                head_width=head,
                scale=head**-0.5,
                causal=bool(config.is_decoder),
            ),
            before={"embed": Tap("embeddings.word_embeddings", "out", (width,))},
            block={
                "resid_pre": Tap(block, "in", (width,)),
                "attn.q": Tap(f"{attn}.self.query", "out", *per_head),
                "attn.k": Tap(f"{attn}.self.key", "out", *per_head),
                "attn.v": Tap(f"{attn}.self.value", "out", *per_head),
                "attn.z": Tap(f"{attn}.output.dense", "in", *per_head),
                "attn.out": Tap(f"{attn}.output.dense", "out", (width,)),
                "resid_mid": Tap(
                    f"{attn}.output",
                    "out",
                    (width,),
                    also=(attn, f"{attn}.output.LayerNorm"),
                    note="after the attention's LayerNorm",
                ),
                "mlp.in": Tap(f"{block}.intermediate", "in", (width,)),
                "mlp.pre": Tap(f"{block}.intermediate.dense", "out", (inner,)),
                "mlp.post": Tap(f"{block}.output.dense", "in", (inner,)),
                "mlp.out": Tap(f"{block}.output.dense", "out", (width,)),
                "resid_post": Tap(
                    block,
                    "out",
                    (width,),
                    also=(f"{block}.output", f"{block}.output.LayerNorm"),
                    note="after the block's final LayerNorm",
                ),
            },
            bends=Bends(
                norms=(
                    "embeddings.LayerNorm",
                    f"{attn}.output.LayerNorm",
                    f"{block}.output.LayerNorm",
                ),
                activations=(f"{block}.intermediate.intermediate_act_fn",),
                attentions=(f"{attn}.self",),
                adds=(f"{attn}.output.dense",),
                mlps=(f"{block}.output.dense",),
            ),
        )

    @staticmethod
    def toy(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> Any:
        """Return the config of a tiny BERT."""
        from transformers import BertConfig

        return BertConfig(
            vocab_size=vocab,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            max_position_embeddings=positions,
            pad_token_id=0,
        )


def _refuse_unusual(config: Any) -> None:
    # transformers 5 drops relative positions and would load such a model wrongly without a word.
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if positions != "absolute" or getattr(config, "chunk_size_feed_forward", 0):
        raise ModelError(
            f"this bert model has position_embedding_type={positions!r} and "
            f"chunk_size_feed_forward={getattr(config, 'chunk_size_feed_forward', 0)}; only "
            "'absolute' and 0 are supported. Nothing was loaded.",
            kind="unsupported-family",
        )
