"""A causal model goes on from prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


def say(
    model: nn.Module,
    ids_BT: Tensor,
    mask_BT: Tensor,
    *,
    tokens: int,
    temperature: float,
    end: int | None,
    pad: int,
) -> Tensor:
    """Return prompts with what a model says behind them, int64 ``[B, T + N]``, padded behind what ends a text.

    Parameters
    ----------
    ids_BT, mask_BT
        Prompts, padded in front.
    tokens
        New ones at most.
    temperature
        0 takes the most likely token; else draws come of torch's own generator.
    end
        Token that ends a text; None where nothing does.
    """
    from transformers import GenerationConfig

    warm = temperature > 0
    settings = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=warm,
        temperature=temperature if warm else None,
        top_k=0 if warm else None,
        top_p=1.0 if warm else None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    talker: Any = model
    # A checkpoint's own settings (penalties, nuclei) would fill what is left open, and no recipe holds them.
    own, talker.generation_config = talker.generation_config, settings
    try:
        with torch.inference_mode():
            made: Tensor = talker.generate(
                input_ids=ids_BT, attention_mask=mask_BT, generation_config=settings
            )
    finally:
        talker.generation_config = own
    return made
