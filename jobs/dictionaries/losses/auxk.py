"""AuxK: dead latents learn to predict what the live ones leave over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jobs.dictionaries.ranks import summed

if TYPE_CHECKING:
    from jobs.dictionaries.contract import Forward
    from jobs.dictionaries.ranks import Share


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
    share = owner.share
    error_RD = (forward.y - forward.x_hat).detach()
    variance = _variance(error_RD, share)
    number = torch.tensor([len(dead)], device=dead.device)
    if share.latents is not None:
        number = share.ranks.sum(number)
    if int(number) == 0 or variance == 0.0:
        return error_RD.new_zeros(())
    dtype = owner.compute_dtype if error_RD.dtype == torch.float32 else error_RD.dtype
    pre_RA = owner.dense_pre(forward.x, dead, dtype)
    code_RA = torch.relu(_row_largest(pre_RA, max(1, owner.widths.out_width // 2), share))
    guess_RD = (code_RA @ owner.w_dec_LD[dead].to(dtype)).to(error_RD.dtype)
    if share.latents is not None:
        guess_RD = summed(guess_RD, share.ranks)
    return (error_RD - guess_RD).square().sum(dim=1).mean() / variance


def _variance(error_RD: Tensor, share: Share) -> float:
    """Return ``mean_r ‖e_r − mean e‖²`` over the rows of all ranks."""
    if share.ranks.world == 1 or share.latents is not None:
        return float((error_RD - error_RD.mean(dim=0)).square().sum(dim=1).mean())
    rows = share.rows(len(error_RD))
    sums = error_RD.double().sum(dim=0)
    squares = error_RD.double().square().sum().unsqueeze(0)
    total = share.ranks.sum(torch.cat([sums, squares]))
    return float(total[-1] / rows - (total[:-1] / rows).square().sum())


def _row_largest(pre_RA: Tensor, k: int, share: Share) -> Tensor:
    """Return the matrix with all but the k largest entries of each row, over all ranks' latents, set to 0."""
    if share.latents is not None and share.ranks.world > 1:
        return pre_RA * (pre_RA.detach() >= _floor(pre_RA.detach(), k, share))
    if pre_RA.shape[1] <= k:
        return pre_RA
    top = pre_RA.topk(k, dim=1, sorted=False)
    return torch.zeros_like(pre_RA).scatter(1, top.indices, top.values)


def _floor(pre_RA: Tensor, k: int, share: Share) -> Tensor:
    """Return the k-th largest entry of each row over all ranks, [R, 1]; -inf where there are fewer."""
    rows = len(pre_RA)
    table_RK = pre_RA.new_full((rows, k), -torch.inf)
    few = min(k, pre_RA.shape[1])
    if few:
        table_RK[:, :few] = pre_RA.topk(few, dim=1).values
    every = torch.cat(share.ranks.collect(table_RK.t().contiguous())).t()
    return every.topk(k, dim=1).values[:, -1:]
