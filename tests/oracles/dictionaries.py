"""Objectives of dictionaries as their papers write them: dense codes, float64, autograd all the way.

Selection is given as a mask; straight-through estimators are written with detached terms, so nothing of the library's
own backward passes is used. Dimensions: R rows, D width, L latents.
"""

from __future__ import annotations

import torch

from jobs.dictionaries.sparsifiers.gate import Gate
from jobs.dictionaries.sparsifiers.jump import Jump


def dense_objective(dictionary, forward, *, aux_weight=1 / 32):
    """Return the objective of a batch whose active pairs are those of ``forward``."""
    own, x, y = dictionary, forward.x, forward.y
    read = x - own.b_dec_D if own.centred else x
    pre = read @ own.encoder() + own.b_enc_L
    mask = torch.zeros_like(pre)
    mask[forward.pattern.row, forward.pattern.latent] = 1
    code, total = code_and_penalty(own, pre, mask, forward)
    skip = 0 if own.w_skip_DE is None else x @ own.w_skip_DE
    decoder = own.w_dec_LD * getattr(own, "_may_write_LE", 1)
    errors = []
    for bound in own.prefixes:
        hat = code[:, :bound] @ decoder[:bound] + own.b_dec_D + skip
        errors.append((y - hat).square().sum(1).mean() / forward.variance)
    total = total + torch.stack(errors).mean()
    weights = [weight for weight, loss in own.losses if loss.__name__ == "auxk"]
    if weights and len(forward.dead):
        assert weights == [aux_weight]
        total = total + aux_weight * auxiliary(own, pre, decoder, (y - hat).detach(), forward.dead)
    return total


def code_and_penalty(own, pre, mask, forward):
    """Return the dense code and what the penalty and the gate add to the objective."""
    rows, weight = len(pre), 0.0
    if own.penalty is not None:
        weight = own.penalty.weight_at(forward.when)
    sparsifier = own.sparsifier
    if isinstance(sparsifier, Jump):
        theta, width = sparsifier.log_theta_L.exp(), sparsifier.bandwidth
        on = (pre > theta).to(pre.dtype).detach()
        near = (((pre - theta).abs() < width / 2) & (pre > 0)).to(pre.dtype).detach() / width
        moved = theta - theta.detach()  # zero, with the gradient of θ
        code = pre * on - theta.detach() * near * moved
        steps = on - near * moved
        return code, weight * steps.sum() / rows
    if isinstance(sparsifier, Gate):
        gate = torch.relu(pre)
        strength = (pre - own.b_enc_L) * sparsifier.r_L.exp() + sparsifier.b_mag_L
        code = torch.relu(strength) * (pre > 0).to(pre.dtype).detach()
        told = gate @ own.w_dec_LD.detach() + own.b_dec_D.detach()
        aside = (forward.y - told).square().sum(1).mean() / forward.variance
        return code, weight * gate.sum() / rows + aside
    code = torch.relu(pre) * mask
    if own.penalty is None:
        return code, 0.0
    norms = sum(part.norm(dim=1) for part in own.w_dec_LD.split(list(own.widths.outputs), dim=1))
    return code, weight * (code * norms).sum() / rows


def auxiliary(own, pre, decoder, error, dead):
    """AuxK: dead latents predict the error from the width/2 largest of their pre-activations."""
    live = torch.full_like(pre, -torch.inf)
    live[:, dead] = pre[:, dead]
    top = live.topk(min(error.shape[1] // 2, len(dead)), dim=1)
    chosen = torch.zeros_like(pre).scatter(1, top.indices, torch.relu(top.values))
    spread = (error - error.mean(0)).square().sum(1).mean()
    return (error - chosen @ decoder).square().sum(1).mean() / spread
