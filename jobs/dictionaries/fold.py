"""From weights in training to the frozen form: scales, centring and decoder norms folded in.

Dimensions: D width read, E width rebuilt, L latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from jobs.codebook import Codebook
from jobs.dictionaries.calibration import Calibration
from jobs.dictionaries.dictionary import Dictionary
from jobs.dictionaries.ranks import ALONE, Ranks


@torch.no_grad()
def fold(
    dictionary: Dictionary,
    calibration: Calibration,
    threshold: float,
    meta: Mapping[str, Any],
    *,
    ranks: Ranks = ALONE,
) -> Codebook:
    """Return the codebook with the same active set and reconstruction on raw rows as training had on scaled ones.

    With ``c`` and ``k`` the scales of what is read and rebuilt, ``p = gain·π + bias`` the sparsifier's frozen map, and
    ``n_i = ‖d_i / k‖``: ``W_enc ← gain n c W_enc``, ``b_enc ← n (bias − gain W_encᵀ b_dec)`` where rows are centred,
    ``θ ← n θ``, ``W_dec ← W_dec / (k n)``, ``b_dec ← b_dec / k``, ``W_skip ← c W_skip / k``. A latent that writes nothing
    becomes one that never fires.

    Parameters
    ----------
    threshold
        For all latents, in the units that selection compares; unused where latents have their own.
    ranks
        Processes that each hold a run of the latents; every one gets the whole.
    """
    c_D, k_E = (scale.double() for scale in (calibration.scale_in, calibration.scale_out))
    own = dictionary
    frozen = own.sparsifier.frozen(own.b_enc_L.detach())
    gain_L, bias_L = frozen.gain.double().cpu(), frozen.bias.double().cpu()
    encoder_DL = own.encoder().detach().double().cpu()
    bias_E = own.b_dec_D.double().cpu()
    if own.centred:
        bias_L = bias_L - gain_L * (bias_E @ encoder_DL)
    theta_L, n_L = thresholds(own, calibration, threshold)
    rows_LE = own.w_dec_LD.double().cpu() / k_E
    silent_L = n_L == 0
    unit_LE = rows_LE / torch.where(silent_L, 1.0, n_L).unsqueeze(1)
    unit_LE[silent_L, 0] = 1.0
    if own.unit and len(calibration.scales_out) == 1:
        n_L = torch.full_like(
            n_L, 1 / calibration.scales_out[0]
        )  # but for rounding: one threshold stays one
    theta_L = torch.where(silent_L, 0.0, n_L * theta_L)
    skip = own.w_skip_DE
    encoder_DL = encoder_DL * c_D.unsqueeze(1) * (gain_L * n_L)
    bias_L = bias_L * n_L
    if ranks.world > 1:
        unit_LE, bias_L, theta_L = (
            torch.cat(ranks.collect(part)) for part in (unit_LE, bias_L, theta_L)
        )
        encoder_DL = torch.cat(ranks.collect(encoder_DL.t().contiguous())).t()
    return Codebook(
        W_enc_DL=encoder_DL,
        b_enc_L=bias_L,
        W_dec_LD=unit_LE,
        b_dec_D=bias_E / k_E,
        threshold=theta_L[0] if bool((theta_L == theta_L[0]).all()) else theta_L,
        meta=meta,
        W_skip_DE=None if skip is None else c_D.unsqueeze(1) * skip.double().cpu() / k_E,
    )


@torch.no_grad()
def thresholds(
    dictionary: Dictionary, calibration: Calibration, threshold: float
) -> tuple[Tensor, Tensor]:
    """Return θ of each latent in units of training, and what a unit of its code writes in raw units, float64 [L] each.

    ``threshold`` is for all latents, in the units that selection compares; unused where latents have their own.
    """
    own = dictionary
    theta_L = own.sparsifier.frozen(own.b_enc_L.detach()).theta
    if theta_L is None:
        norms_L = own.score.norms(own)
        theta_L = torch.full_like(own.b_enc_L, threshold, dtype=torch.float64)
        if norms_L is not None:
            theta_L = theta_L / norms_L.double().clamp(min=torch.finfo(torch.float32).tiny)
    if own.unit and len(calibration.scales_out) == 1:
        n_L = torch.full((len(theta_L),), 1 / calibration.scales_out[0], dtype=torch.float64)
    else:
        n_L = (own.w_dec_LD.double().cpu() / calibration.scale_out.double()).norm(dim=1)
    return theta_L.double().cpu(), n_L
