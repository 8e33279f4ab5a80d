"""How planted models are trained: AdamW on batches drawn from a known process, by one thread.

So equal settings give equal weights on one class of hardware; workers on others need the folder that one of them wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Draw = Callable[[int, int], Tensor]
"""(step, sequences) → token ids ``int64[B, T]``, −1 behind a sequence's end."""


def untrained(**settings: Any) -> Any:
    """Return a plain model of some settings in evaluation mode; the global generator is not moved."""
    from ingest.models.planted.network import PlainConfig, PlainForCausalLM

    with torch.random.fork_rng(devices=[]):
        return PlainForCausalLM(PlainConfig(**settings)).eval()


def trained(
    model: Any,
    draw: Draw,
    *,
    steps: int,
    batch: int,
    rate: float,
    decay: float = 0.0,
    seed: int = 0,
) -> Any:
    """Return a model after some steps on the loss of next tokens.

    Parameters
    ----------
    rate, decay
        Of AdamW, held throughout: a run of fewer steps is the beginning of a longer one.
    seed
        Decides the first weights; the global generator is neither used nor moved.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                torch.nn.init.normal_(module.weight, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    model.train()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums of more depend on how many there are
    try:
        for step in range(steps):
            losses, counted = losses_of(model, draw(step, batch))
            loss = (losses * counted).sum() / counted.sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    finally:
        torch.set_num_threads(threads)
    return model.eval()


def losses_of(model: Any, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return −ln p of every token after the first, ``[B, T − 1]``, and which of them there are."""
    real_BT = ids_BT >= 0
    ids_BT = ids_BT.clamp_min(0)
    logits = model(input_ids=ids_BT, attention_mask=real_BT.long()).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none"
    )
    return losses.view(ids_BT.shape[0], -1), real_BT[:, 1:]
