"""Penalties on how much is active: the codes' sum, weighted by what a unit of each writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.dictionaries.contract import Forward


def l1(forward: Forward) -> Tensor:
    """Return ``mean_r Σ_i f_ri · n_i``, a scalar, with ``n_i = Σ_s ‖d_i^s‖`` over the outputs s.

    Source: Anthropic, "Circuits Updates", April 2024; the sum over outputs: "Sparse Crosscoders", October 2024.
    """
    return _weighted(forward, forward.value)


def gate_l1(forward: Forward) -> Tensor:
    """Return ``mean_r Σ_i ReLU(π_ri) · n_i`` of the gate's pre-activations, a scalar.

    Source: Rajamanoharan et al. (2404.16014), equation 8.
    """
    return _weighted(forward, torch.relu(forward.pre))


def _weighted(forward: Forward, value_N: Tensor) -> Tensor:
    owner = forward.dictionary
    if not (owner.unit and len(owner.widths.outputs) == 1):
        norm_L = owner.source_norms().sum(dim=1)
        value_N = value_N * norm_L[forward.pattern.latent]
    return value_N.sum() / len(forward.x)
