"""Adam for dictionaries whose decoder rows stay on the unit sphere.

The order is fixed: take the part of the gradient along a row away, clip the whole gradient, step, and put
the rows back on the sphere. Without the projection Adam's moments carry a component that the renormalising
undoes, which acts like a falling learning rate.

Dimensions: L latents, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FIRST_DECAY = 0.9
EPS = 1e-8


class UnitAdam:
    """Adam (Kingma and Ba, 1412.6980) without weight decay; the rows of ``unit_LD`` keep norm 1."""

    def __init__(
        self, named: dict[str, nn.Parameter], *, unit: str, clip_norm: float, second_decay: float
    ) -> None:
        self._named = named
        self._unit_LD = named[unit]
        self._clip_norm = clip_norm
        betas = (FIRST_DECAY, second_decay)
        self._adam = torch.optim.Adam(list(named.values()), betas=betas, eps=EPS, fused=True)
        self.steps = 0

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """Apply the gradients and clear them; returns the norm they had after the projection.

        A norm that is not finite leaves weights and moments as they were.
        """
        gradients = [p.grad for p in self._named.values() if p.grad is not None]
        if self._unit_LD.grad is not None:
            project_(self._unit_LD.grad, self._unit_LD)
        norm = float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients])))
        if not math.isfinite(norm):
            self._adam.zero_grad(set_to_none=True)
            return norm
        if norm > self._clip_norm:
            torch._foreach_mul_(gradients, self._clip_norm / norm)
        for group in self._adam.param_groups:
            group["lr"] = lr
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self._unit_LD.div_(self._unit_LD.norm(dim=1, keepdim=True))
        self.steps += 1
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Return the moments by name, for checkpoints."""
        kept = {}
        for name, parameter in self._named.items():
            state = self._adam.state[parameter]
            kept[f"adam.first.{name}"] = state["exp_avg"]
            kept[f"adam.second.{name}"] = state["exp_avg_sq"]
        return kept

    def restore(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Undo ``tensors``: take moments over as they were after ``steps`` steps."""
        for name, parameter in self._named.items():
            self._adam.state[parameter] = {
                "step": torch.tensor(float(steps)),
                "exp_avg": tensors[f"adam.first.{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"adam.second.{name}"].to(parameter.device),
            }
        self.steps = steps


def project_(gradient_LD: Tensor, unit_LD: Tensor) -> None:
    """Remove from each gradient row its part along the unit row, in place."""
    along_L1 = torch.linalg.vecdot(gradient_LD, unit_LD).unsqueeze(1)
    gradient_LD.addcmul_(along_L1, unit_LD, value=-1)
