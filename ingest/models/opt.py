"""OPT: a decoder with learned positions, a ReLU MLP, and queries scaled before attention sees them.

``attn.q`` is before that scaling. The MLP works on the tokens of a batch one behind the other, ``[B * T, D]``. The one size
whose norms follow its halves (350m) has ``resid_mid`` and ``resid_post`` behind those norms, and embeds in a narrower space:
``embed`` is what enters the stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ingest.models.contract import ADAPTERS, Anatomy, AttentionSpec, Bends, Tap
from ingest.models.views import heads_of


@ADAPTERS.register("opt")
@dataclass(frozen=True, slots=True)
class Opt:
    """`Family` of `OPTModel` and `OPTForCausalLM`.

    Source: transformers 5, ``models/opt/modeling_opt.py``.
    """

    kind: ClassVar[str]
    spare: ClassVar[tuple[str, ...]] = ()
    tokens: ClassVar[str] = "bytes"

    @staticmethod
    def anatomy(config: Any) -> Anatomy:
        """Return where the sites lie, below `OPTModel`."""
        width, inner, heads = config.hidden_size, config.ffn_dim, config.num_attention_heads
        head = width // heads
        per_head = ((heads, head), heads_of(heads, head))
        block = "decoder.layers.{l}"
        attn, norm = f"{block}.self_attn", f"{block}.self_attn_layer_norm"
        before = config.do_layer_norm_before
        middle = Tap(f"{block}.final_layer_norm", "in", (width,), within=block)
        final = before and not config._remove_final_layer_norm
        top = Tap("decoder.final_layer_norm", "out", (width,))
        projected = config.word_embed_proj_dim != width
        norms = (
            norm,
            f"{block}.final_layer_norm",
            *(("decoder.final_layer_norm",) if final else ()),
        )
        return Anatomy(
            layers=config.num_hidden_layers,
            width=width,
            causal=True,
            max_positions=config.max_position_embeddings,
            attention=lambda _layer: AttentionSpec(
                heads=heads, kv_heads=heads, head_width=head, scale=head**-0.5, causal=True
            ),
            before={
                "embed": Tap(
                    "decoder.project_in" if projected else "decoder.embed_tokens", "out", (width,)
                )
            },
            block={
                "resid_pre": Tap(block, "in", (width,)),
                "attn.q": Tap(f"{attn}.q_proj", "out", *per_head, note="before it is scaled"),
                "attn.k": Tap(f"{attn}.k_proj", "out", *per_head),
                "attn.v": Tap(f"{attn}.v_proj", "out", *per_head),
                "attn.z": Tap(f"{attn}.out_proj", "in", *per_head),
                "attn.out": Tap(f"{attn}.out_proj", "out", (width,), also=(attn,)),
                "resid_mid": middle if before else Tap(norm, "out", (width,)),
                "mlp.in": Tap(f"{block}.fc1", "in", (width,), within=block),
                "mlp.pre": Tap(f"{block}.fc1", "out", (inner,), within=block),
                "mlp.post": Tap(f"{block}.fc2", "in", (inner,), within=block),
                "mlp.out": Tap(f"{block}.fc2", "out", (width,), within=block),
                "resid_post": Tap(block, "out", (width,)),
            },
            after={"final.normalized": top} if final else {},
            bends=Bends(
                norms=norms,
                activations=(f"{block}.activation_fn",),
                attentions=(attn,),
                adds=(f"{attn}.out_proj",),
                mlps=(f"{block}.fc2",),
            ),
        )

    @staticmethod
    def toy(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> Any:
        """Return the config of a tiny OPT; token 0 begins and ends texts."""
        from transformers import OPTConfig

        return OPTConfig(
            vocab_size=vocab,
            hidden_size=width,
            word_embed_proj_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            ffn_dim=4 * width,
            max_position_embeddings=positions,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
