"""How many latents are active, with the step's pseudo-derivative."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.dictionaries.sparsifiers.jump import Jump

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.dictionaries.contract import Forward


def l0(forward: Forward) -> Tensor:
    """Return ``mean_r Σ_i 1[π_ri > θ_i]``, a scalar. Source: Rajamanoharan et al. (2407.14435), equation 9."""
    jump = forward.dictionary.sparsifier
    assert isinstance(jump, Jump)
    return jump.active(forward.pre, forward.pattern).sum() / len(forward.x)
