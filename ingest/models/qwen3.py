"""Qwen3: Llama's layout with a norm on every head's q and k.

``attn.q`` and ``attn.k`` are after those norms and before rotation, so that rotating them gives ``attn.rot_q`` and
``attn.rot_k`` as elsewhere. Heads may be wider together than the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ingest.models.contract import ADAPTERS, Anatomy, Bends, Tap, whole
from ingest.models.llama import decoder, refuse_unusual, windows_by_layer

if TYPE_CHECKING:
    from torch import Tensor


@ADAPTERS.register("qwen3")
@dataclass(frozen=True, slots=True)
class Qwen3:
    """`Family` of `Qwen3Model` and `Qwen3ForCausalLM`.

    Source: transformers 5, ``models/qwen3/modeling_qwen3.py``.
    """

    kind: ClassVar[str]
    spare: ClassVar[tuple[str, ...]] = ()
    tokens: ClassVar[str] = "bytes"

    @staticmethod
    def anatomy(config: Any) -> Anatomy:
        """Return where the sites lie, below `Qwen3Model`."""
        refuse_unusual(config)
        plain = decoder(config, windows_by_layer(config))
        block, norms = behind_their_norms(plain.block)
        bends = plain.bends or Bends()
        bends = replace(bends, norms=(*bends.norms, *norms))
        return replace(plain, block=block, bends=bends)

    @staticmethod
    def toy(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> Any:
        """Return the config of a tiny Qwen3, two query heads a key head, heads twice as wide as the stream's share."""
        from transformers import Qwen3Config

        return Qwen3Config(
            vocab_size=vocab,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 2),
            head_dim=2 * width // heads,
            intermediate_size=3 * width,
            max_position_embeddings=positions,
            bos_token_id=0,
            eos_token_id=0,
        )


def behind_their_norms(
    block: Mapping[str, Tap], view: Callable[[Tensor], Tensor] = whole
) -> tuple[dict[str, Tap], tuple[str, ...]]:
    """Return a Llama's sites with q and k as they leave the norms of their heads, and the paths of those norms.

    Parameters
    ----------
    view
        What makes ``[B, T, H, dh]`` of what a norm puts out.
    """
    sites, paths = dict(block), []
    for name in ("q", "k"):
        path = f"layers.{{l}}.self_attn.{name}_norm"
        note = "after its norm, before the rotary embedding"
        sites[f"attn.{name}"] = Tap(path, "out", block[f"attn.{name}"].shape, view, note=note)
        paths.append(path)
    return sites, tuple(paths)
