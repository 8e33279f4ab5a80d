"""Mamba: blocks of one half each, which mix positions through a state that runs along the sequence.

There is no attention. ``mixer.x`` and ``mixer.gate`` are the halves of what enters the mixer's convolution and its gate,
``mixer.conv`` what enters the state (after convolution and activation), ``mixer.dt``, ``mixer.b`` and ``mixer.c`` the step
(before it is spread over all channels), what writes to the state and what reads from it, ``mixer.post`` what was read, gated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ingest.models.contract import ADAPTERS, Anatomy, Tap

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@ADAPTERS.register("mamba")
@dataclass(frozen=True, slots=True)
class Mamba:
    """`Family` of `MambaModel` and `MambaForCausalLM`.

    Gradients are exact ones only: its activations are no modules that a rule could reach.

    Source: transformers 5, ``models/mamba/modeling_mamba.py``.
    """

    kind: ClassVar[str]
    spare: ClassVar[tuple[str, ...]] = ()
    tokens: ClassVar[str] = "bytes"

    @staticmethod
    def anatomy(config: Any) -> Anatomy:
        """Return where the sites lie, below `MambaModel`."""
        width, inner = config.hidden_size, config.intermediate_size
        rank, state = int(config.time_step_rank), config.state_size
        block = "layers.{l}"
        mixer = f"{block}.mixer"

        def part_of(module: str, start: int, count: int) -> Tap:
            return Tap(f"{mixer}.{module}", "out", (count,), some_features(start, count))

        return Anatomy(
            layers=config.num_hidden_layers,
            width=width,
            causal=True,
            max_positions=None,
            before={"embed": Tap("embeddings", "out", (width,))},
            block={
                "resid_pre": Tap(block, "in", (width,)),
                "mixer.in": Tap(mixer, "in", (width,)),
                "mixer.x": part_of("in_proj", 0, inner),
                "mixer.gate": part_of("in_proj", inner, inner),
                "mixer.conv": Tap(f"{mixer}.x_proj", "in", (inner,)),
                "mixer.dt": part_of("x_proj", 0, rank),
                "mixer.b": part_of("x_proj", rank, state),
                "mixer.c": part_of("x_proj", rank + state, state),
                "mixer.post": Tap(f"{mixer}.out_proj", "in", (inner,)),
                "mixer.out": Tap(f"{mixer}.out_proj", "out", (width,), also=(mixer,)),
                "resid_post": Tap(block, "out", (width,)),
            },
            after={"final.normalized": Tap("norm_f", "out", (width,))},
        )

    @staticmethod
    def toy(*, vocab: int, layers: int, width: int, heads: int, positions: int) -> Any:
        """Return the config of a tiny Mamba, as many states a channel as heads; it takes texts of any length."""
        from transformers import MambaConfig

        del positions
        return MambaConfig(
            vocab_size=vocab,
            hidden_size=width,
            num_hidden_layers=layers,
            state_size=heads,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )


def some_features(start: int, count: int) -> Callable[[Tensor], Tensor]:
    """Return the view of ``count`` features from ``start`` on."""
    return lambda value: value[..., start : start + count]
