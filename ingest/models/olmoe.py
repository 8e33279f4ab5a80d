"""OLMoE: Llama's layout with a norm on q and k and, in place of the MLP, a few of many experts for every token.

``router.logits`` are the scores of all experts, which the model does not go on with: it goes on with ``router.topk``, the
experts chosen, best first, and ``router.weights``, what their outputs are multiplied by. Neurons of experts are no sites: no
module puts out a token's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ingest.errors import ModelError
from ingest.models.contract import ADAPTERS, Anatomy, Tap
from ingest.models.llama import decoder, refuse_unusual
from ingest.models.views import heads_of


@ADAPTERS.register("olmoe")
@dataclass(frozen=True, slots=True)
class Olmoe:
    """`Family` of `OlmoeModel` and `OlmoeForCausalLM`.

    Gradients are exact ones only: experts' activations are no modules that a rule could reach.

    Source: transformers 5, ``models/olmoe/modeling_olmoe.py``.
    """

    kind: ClassVar[str]
    spare: ClassVar[tuple[str, ...]] = ()
    tokens: ClassVar[str] = "bytes"

    @staticmethod
    def anatomy(config: Any) -> Anatomy:
        """Return where the sites lie, below `OlmoeModel`."""
        refuse_unusual(config)
        _refuse_clipped(config)
        plain = decoder(config)
        attn = "layers.{l}.self_attn"
        sites: dict[str, Tap] = {}
        for name, tap in plain.block.items():
            if name in {"attn.q", "attn.k"}:
                view, note = heads_of(*tap.shape), "after its norm, before the rotary embedding"
                sites[name] = Tap(f"{attn}.{name[-1]}_norm", "out", tap.shape, view, note=note)
            elif not name.startswith("mlp."):
                sites[name] = tap
            elif name == "mlp.in":
                sites |= experts(config, "layers.{l}.mlp")
        return replace(plain, block=sites, bends=None)

    @staticmethod
    def toy(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> Any:
        """Return the config of a tiny OLMoE, 3 of 8 experts for every token; token 0 begins and ends texts."""
        from transformers import OlmoeConfig

        return OlmoeConfig(
            vocab_size=vocab,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 2),
            intermediate_size=width,
            num_experts=8,
            num_experts_per_tok=3,
            max_position_embeddings=positions,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )


def experts(config: Any, module: str) -> dict[str, Tap]:
    """Return the sites of a mixture of experts, the module that routes and the experts below it."""
    width, chosen = config.hidden_size, (config.num_experts_per_tok,)
    gate = f"{module}.gate"
    return {
        "mlp.in": Tap(module, "in", (width,)),
        "router.logits": Tap(
            gate, "out", (config.num_experts,), within=module, fixed=True, note="of all experts"
        ),
        "router.weights": Tap(
            gate, "out", chosen, within=module, item=1, note="of the experts chosen, in their order"
        ),
        "router.topk": Tap(
            gate, "out", chosen, within=module, item=2, dtype="int16", note="experts, best first"
        ),
        "mlp.out": Tap(module, "out", (width,)),
    }


def _refuse_clipped(config: Any) -> None:
    if config.clip_qkv is not None:
        raise ModelError(
            f"this {config.model_type} model clips q, k and v in place (clip_qkv={config.clip_qkv}), so that what their sites "
            "hold depends on when it is looked at. Nothing was loaded.",
            kind="unsupported-family",
        )
