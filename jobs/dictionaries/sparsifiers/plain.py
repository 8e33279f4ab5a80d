"""What sparsifiers share that keep pre-activations as they are: their positive part, and one threshold for all."""

from __future__ import annotations

import torch
from torch import Tensor

from jobs.dictionaries.contract import Frozen


def positive_part(pre_N: Tensor) -> Tensor:
    """Return ``ReLU(π)`` at the pairs."""
    return torch.relu(pre_N)


def one_threshold(bias_L: Tensor) -> Frozen:
    """Return the pre-activations as they are, with a threshold that is to be set for all latents."""
    return Frozen(torch.ones_like(bias_L), bias_L, None)
