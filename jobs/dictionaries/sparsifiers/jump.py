"""Jump: a latent is active above a threshold of its own, which learns through a smoothed step.

Dimensions: R rows, L latents, N pairs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from jobs.codes import Pattern
from jobs.dictionaries.contract import Frozen, Moment, Scores
from jobs.dictionaries.sparsifiers.relu import above


class Jump(nn.Module):
    """``f = π·1[π > θ]`` with a learned ``θ = exp(log_theta)`` of each latent.

    Parameters
    ----------
    latents
        L.
    theta
        First threshold, > 0, in scaled units.
    bandwidth
        Width ε of the window around θ in which pairs move it, > 0, in scaled units.
    slope
        Whether the step's pseudo-derivative reaches the pre-activations too.

    Notes
    -----
    Pseudo-derivatives with the rectangle K of width 1: ``∂f/∂θ = −(θ/ε) K((π−θ)/ε)``,
    ``∂H/∂θ = −(1/ε) K((π−θ)/ε)``, and with ``slope`` ``∂H/∂π = (1/ε) K((π−θ)/ε)``.
    Pairs with π <= 0 have none, which differs from the source only where θ < ε/2. Source: Rajamanoharan et al.,
    "Jumping Ahead" (2407.14435), equations 11 and 12; the slope: Anthropic, "Circuits Updates", January 2025.
    """

    def __init__(self, latents: int, *, theta: float, bandwidth: float, slope: bool) -> None:
        super().__init__()
        self.log_theta_L = nn.Parameter(torch.full((latents,), math.log(theta)))
        self.bandwidth, self.slope, self.first = bandwidth, slope, math.log(theta)

    @property
    def theta(self) -> Tensor:
        """Thresholds, [L]."""
        return self.log_theta_L.exp()

    def choose(self, scores: Scores, _when: Moment) -> Pattern:
        """Return the pairs above θ − ε/2: those that are active, and those that move θ."""
        return above(scores, self.theta.detach() - self.bandwidth / 2)

    def value(self, pre_N: Tensor, pattern: Pattern, _bias_L: Tensor) -> Tensor:
        """Return ``π·1[π > θ]``."""
        out: Tensor = _Jump.apply(pre_N, self.theta[pattern.latent], self.bandwidth)  # type: ignore[no-untyped-call]
        return out

    def active(self, pre_N: Tensor, pattern: Pattern) -> Tensor:
        """Return ``1[π > θ]`` with its pseudo-derivatives, [N]."""
        theta_N = self.theta[pattern.latent]
        out: Tensor = _Step.apply(pre_N, theta_N, self.bandwidth, self.slope)  # type: ignore[no-untyped-call]
        return out

    def frozen(self, bias_L: Tensor) -> Frozen:
        """Return the pre-activations as they are, with the learned thresholds."""
        return Frozen(torch.ones_like(bias_L), bias_L, self.theta.detach())

    @torch.no_grad()
    def restart(self, latents_A: Tensor) -> None:
        """Give latents their first threshold again."""
        self.log_theta_L[latents_A] = self.first


def _window(pre_N: Tensor, theta_N: Tensor, bandwidth: float) -> Tensor:
    return ((pre_N - theta_N).abs() < bandwidth / 2).to(pre_N.dtype) / bandwidth


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre_N: Tensor, theta_N: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre_N, theta_N)
        ctx.bandwidth = bandwidth
        return pre_N * (pre_N > theta_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre_N, theta_N = ctx.saved_tensors
        by_pre = grads[0] * (pre_N > theta_N)
        by_theta = -grads[0] * theta_N * _window(pre_N, theta_N, ctx.bandwidth)
        return by_pre, by_theta, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pre_N: Tensor,
        theta_N: Tensor,
        bandwidth: float,
        slope: bool,  # noqa: FBT001 - autograd passes it by place
    ) -> Tensor:
        ctx.save_for_backward(pre_N, theta_N)
        ctx.bandwidth, ctx.slope = bandwidth, slope
        return (pre_N > theta_N).to(pre_N.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre_N, theta_N = ctx.saved_tensors
        rise = grads[0] * _window(pre_N, theta_N, ctx.bandwidth)
        return (rise if ctx.slope else None), -rise, None, None
