"""A pull on dead latents with thresholds: towards the rows that come closest to firing them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from jobs.dictionaries.sparsifiers.jump import Jump

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.dictionaries.contract import Forward


def pre_act(forward: Forward) -> Tensor:
    """Return ``mean_r Σ_i∈dead ReLU(θ_i − π_ri) · n_i``, a scalar; 0 where no latent is dead.

    Source: Anthropic, "Circuits Updates", January 2025, where the sum runs over all latents; over dead ones it costs
    a dictionary of their number.
    """
    owner, dead = forward.dictionary, forward.dead
    if len(dead) == 0:
        return forward.x.new_zeros(())
    jump = owner.sparsifier
    assert isinstance(jump, Jump)
    dtype = owner.compute_dtype if forward.x.dtype == torch.float32 else forward.x.dtype
    pre_RA = owner.dense_pre(forward.x, dead, dtype)
    short_RA = torch.relu(jump.theta[dead].to(dtype) - pre_RA)
    norm_A = owner.w_dec_LD[dead].norm(dim=1).detach()
    total: Tensor = (short_RA.sum(dim=0).to(norm_A.dtype) * norm_A).sum()
    return total / len(forward.x)
