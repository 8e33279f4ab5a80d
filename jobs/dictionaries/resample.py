"""Dead latents start afresh, each from a row that was rebuilt badly.

Dimensions: R rows, D width, L latents, A dead ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jobs.dictionaries import schedule
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.contract import Forward, derive_seed
from jobs.dictionaries.ranks import whole_rows
from jobs.dictionaries.sparsifiers.gate import Gate
from jobs.dictionaries.sparsifiers.jump import Jump

if TYPE_CHECKING:
    from jobs.dictionaries.dictionary import Dictionary
    from jobs.dictionaries.optimizer import UnitAdam

ENCODER_SHARE = 0.2
"""Norm of a fresh encoder row over the mean of the live ones."""


@torch.no_grad()
def resample(
    dictionary: Dictionary,
    optimizer: UnitAdam,
    age_L: Tensor,
    forward: Forward,
    cfg: TrainConfig,
) -> int:
    """Give every dead latent a new direction, in place; returns how many there were.

    Rows of the batch are drawn with probability by the square of their squared error, each at most once. The decoder
    row becomes the row's error, at norm 1 (or the live rows' mean norm); the encoder row the same direction at a fifth of
    the live encoder rows' mean norm; the bias 0; the thresholds what they started as; moments and age 0. Only where the
    latents read what they rebuild is the encoder given the direction; a transcoder's reads the row itself.

    Notes
    -----
    Source: Bricken et al., "Towards Monosemanticity" (2023), appendix; there the decoder row is the row, not its error.
    """
    dead_A = (age_L >= schedule.dead_window(cfg)).nonzero().squeeze(1)
    others = dictionary.share.latent_ranks.collect(torch.tensor([len(dead_A)]))
    counts = [int(count) for count in others]
    if sum(counts) == 0:
        return 0
    ranks = dictionary.share.row_ranks
    error_RE = whole_rows(forward.y - forward.x_hat.detach(), ranks)
    x_RD = whole_rows(forward.x, ranks)
    loss_R = error_RE.square().sum(dim=1).double().cpu()
    if float(loss_R.square().sum()) == 0:
        return 0
    seed = derive_seed(cfg.seed, "dictionary/resample", forward.when.step)
    generator = torch.Generator().manual_seed(seed)
    weight_R = loss_R.square().clamp(min=1e-12 * float(loss_R.max()) ** 2)
    wanted = min(sum(counts), len(x_RD))
    drawn = torch.multinomial(weight_R, wanted, generator=generator).to(age_L.device)
    first = sum(counts[: dictionary.share.latent_ranks.rank])
    rows_A = drawn[first : first + len(dead_A)]  # latents of other ranks get other rows
    dead_A = dead_A[: len(rows_A)]
    live_L = torch.ones_like(age_L, dtype=torch.bool)
    live_L[dead_A] = False
    target_AE = torch.nn.functional.normalize(error_RE[rows_A], dim=1)
    dictionary.w_dec_LD[dead_A] = target_AE * _mean_norm(dictionary.w_dec_LD[live_L])
    read_AD = target_AE if dictionary.centred else x_RD[rows_A]
    fresh_AD = torch.nn.functional.normalize(read_AD, dim=1)
    scale = ENCODER_SHARE * _mean_norm(dictionary.w_enc_LD[live_L])
    dictionary.w_enc_LD[dead_A] = fresh_AD * scale
    dictionary.b_enc_L[dead_A] = 0
    if isinstance(dictionary.sparsifier, Gate | Jump):
        dictionary.sparsifier.restart(dead_A)
    for name, parameter in dictionary.named_parameters():
        if parameter.shape[0] == dictionary.latents and "b_dec" not in name and "skip" not in name:
            optimizer.forget(name, dead_A)
    age_L[dead_A] = 0
    return len(dead_A)


def _mean_norm(rows_LD: Tensor) -> float:
    return float(rows_LD.norm(dim=1).mean()) if len(rows_LD) else 1.0
