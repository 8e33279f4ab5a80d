"""Normalised reconstruction error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.dictionaries.contract import Forward


def nmse(forward: Forward) -> Tensor:
    """Return ``mean_r ‖y_r − x̂_r‖² / V`` with ``V = E‖y − E y‖²`` over the run's rows, a scalar.

    V is one number for the whole run, so no batch weighs more than another. Where there are reconstructions by
    prefixes of the latents, their mean: so the weight of other losses does not depend on how many there are.
    """
    each = [(hat - forward.y).square().sum(dim=1).mean() for hat in forward.hats]
    error = each[0] if len(each) == 1 else torch.stack(each).mean()
    return error / forward.variance
