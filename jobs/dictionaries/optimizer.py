"""Adam for dictionaries whose decoder rows may stay on the unit sphere.

The order is fixed: take the part of the gradient along a row away, clip the whole gradient, step, and put
the rows back on the sphere. Without the projection Adam's moments carry a component that the renormalising
undoes, which acts like a falling learning rate.

Dimensions: L latents, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from jobs.dictionaries.adam_8bit import Adam8bit
from jobs.dictionaries.contract import require
from jobs.dictionaries.ranks import ALONE, Ranks

FIRST_DECAY = 0.9
EPS = 1e-8
OF_LATENTS = ("w_enc_LD", "w_dec_LD", "b_enc_L")
"""Parameters with a row for each latent, which ranks may share out."""


class UnitAdam:
    """Adam (Kingma and Ba, 1412.6980) without weight decay; the rows of ``unit`` keep norm 1.

    Parameters
    ----------
    named
        Parameters by name.
    unit
        The one of them whose rows have norm 1; None: none.
    clip_norm
        Largest norm of the whole gradient.
    second_decay
        Decay of the second moment.
    kind
        ``adam``, or ``adam_8bit``: see ``Adam8bit``.
    shared_out
        Processes that each hold some rows of the weights of latents; the rest is the same on all.
    """

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        *,
        unit: str | None,
        clip_norm: float,
        second_decay: float,
        kind: str = "adam",
        shared_out: Ranks = ALONE,
    ) -> None:
        require("optimizer", kind, "adam or adam_8bit", holds=kind in {"adam", "adam_8bit"})
        self._named = dict(named)
        self._unit_LD = named[unit] if unit is not None else None
        self._clip_norm, self._ranks = clip_norm, shared_out
        betas = (FIRST_DECAY, second_decay)
        parameters = list(named.values())
        self._adam: torch.optim.Optimizer
        if kind == "adam":
            self._adam = torch.optim.Adam(parameters, betas=betas, eps=EPS, fused=True)
        else:
            self._adam = Adam8bit(parameters, betas=betas, eps=EPS)
        self.steps = 0

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """Apply the gradients and clear them; returns the norm they had after the projection.

        A norm that is not finite leaves weights and moments as they were.
        """
        for parameter in self._named.values():
            if parameter.grad is None:  # nothing of the batch reached it
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self._named.values() if p.grad is not None]
        if self._unit_LD is not None and self._unit_LD.grad is not None:
            project_(self._unit_LD.grad, self._unit_LD)
        norm = self._norm()
        if not math.isfinite(norm):
            self._adam.zero_grad(set_to_none=True)
            return norm
        if norm > self._clip_norm:
            torch._foreach_mul_(gradients, self._clip_norm / norm)
        for group in self._adam.param_groups:
            group["lr"] = lr
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        if self._unit_LD is not None:
            self._unit_LD.div_(self._unit_LD.norm(dim=1, keepdim=True))
        self.steps += 1
        return norm

    def _norm(self) -> float:
        """Return the norm of the whole gradient, over all ranks' latents."""
        norms = {n: p.grad.norm() for n, p in self._named.items() if p.grad is not None}
        if self._ranks.world == 1:
            return float(torch.linalg.vector_norm(torch.stack(list(norms.values()))))
        held = torch.stack([norm.square() for n, norm in norms.items() if n in OF_LATENTS]).sum()
        same = [norm.square() for n, norm in norms.items() if n not in OF_LATENTS]
        return float((self._ranks.sum(held) + torch.stack(same).sum()).sqrt())

    @torch.no_grad()
    def forget(self, name: str, rows_A: Tensor) -> None:
        """Set the moments of some rows of a parameter to 0."""
        if isinstance(self._adam, Adam8bit):
            self._adam.forget(self._named[name], rows_A)
            return
        state = self._adam.state[self._named[name]]
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in state:
                state[moment][rows_A] = 0

    def tensors(self) -> dict[str, Tensor]:
        """Return the moments by name, for checkpoints."""
        return {
            f"adam.{kind}.{name}": tensor
            for name, parameter in self._named.items()
            for kind, tensor in self._adam.state[parameter].items()
            if kind != "step"
        }

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Undo ``tensors``: take moments over as they were after ``steps`` steps."""
        for name, parameter in self._named.items():
            mine = {
                key.split(".")[1]: tensor.to(parameter.device)
                for key, tensor in tensors.items()
                if key.startswith("adam.") and key.split(".", 2)[2] == name
            }
            if mine:
                self._adam.state[parameter] = {"step": torch.tensor(float(steps)), **mine}
        self.steps = steps


def project_(gradient_LD: Tensor, unit_LD: Tensor) -> None:
    """Remove from each gradient row its part along the unit row, in place."""
    along_L1 = torch.linalg.vecdot(gradient_LD, unit_LD).unsqueeze(1)
    gradient_LD.addcmul_(along_L1, unit_LD, value=-1)
