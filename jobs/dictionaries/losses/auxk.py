"""AuxK: dead latents learn to predict what the live ones leave over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jobs.dictionaries.contract import Forward


def auxk(forward: Forward) -> Tensor:
    """Return ``mean_r ‖e_r − ê_r‖² / Var(e)``, a scalar; 0 where no latent is dead.

    ``e = y − x̂`` without gradient; ``ê`` decodes, without bias, the ``min(E/2, dead)`` largest
    pre-activations of dead latents in each row, after ReLU. ``Var(e) = mean_r ‖e_r − mean e‖²``.
    Only the dead rows of the weights are gathered, so the cost is that of a dictionary of their number.

    Notes
    -----
    Source: Gao et al. (2406.04093), appendix A.2; weight 1/32 there. A zero variance gives 0.
    """
    owner, dead = forward.dictionary, forward.dead
    error_RD = (forward.y - forward.x_hat).detach()
    variance = (error_RD - error_RD.mean(dim=0)).square().sum(dim=1).mean()
    if len(dead) == 0 or float(variance) == 0.0:
        return error_RD.new_zeros(())
    dtype = owner.compute_dtype if error_RD.dtype == torch.float32 else error_RD.dtype
    pre_RA = owner.dense_pre(forward.x, dead, dtype)
    code_RA = torch.relu(_row_largest(pre_RA, max(1, owner.widths.out_width // 2)))
    guess_RD = (code_RA @ owner.w_dec_LD[dead].to(dtype)).to(error_RD.dtype)
    return (error_RD - guess_RD).square().sum(dim=1).mean() / variance


def _row_largest(pre_RA: Tensor, k: int) -> Tensor:
    """Return the matrix with all but the k largest entries of each row set to 0."""
    if pre_RA.shape[1] <= k:
        return pre_RA
    top = pre_RA.topk(k, dim=1, sorted=False)
    return torch.zeros_like(pre_RA).scatter(1, top.indices, top.values)
