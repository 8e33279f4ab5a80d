"""The gate's own reconstruction, which teaches it which latents are worth opening."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from jobs.dictionaries.decoder import decode

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.dictionaries.contract import Forward


def gate_aux(forward: Forward) -> Tensor:
    """Return ``mean_r ‖y_r − ReLU(π_r) W_dec − b_dec‖² / V`` with a decoder that gets no gradient, a scalar.

    Source: Rajamanoharan et al. (2404.16014), equation 8.
    """
    owner = forward.dictionary
    opened_N = torch.relu(forward.pre)
    hat = decode(opened_N, owner.w_dec_LD.detach(), forward.pattern, owner.ops)
    error = hat + owner.b_dec_D.detach() - forward.y
    return error.square().sum(dim=1).mean() / forward.variance
