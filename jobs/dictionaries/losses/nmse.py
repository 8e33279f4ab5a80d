"""Normalised reconstruction error."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.dictionaries.contract import Forward


def nmse(forward: Forward) -> Tensor:
    """Return ``mean_r ‖x_r − x̂_r‖² / V`` with ``V = E‖x − E x‖²`` over the run's rows, a scalar.

    V is one number for the whole run, so no batch weighs more than another.
    """
    return (forward.x_hat - forward.x).square().sum(dim=1).mean() / forward.variance
