"""A dictionary while it learns: weights, moments, ages, threshold, and one step of all of them.

The state is small and explicit so that a checkpoint holds all of it and a resumed run gives the same bits.

Dimensions: R rows, D width, L latents.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ingest.models.dtypes import multiplies_bfloat16
from jobs.codebook import Codebook
from jobs.codes import CodeOps
from jobs.dictionaries import schedule
from jobs.dictionaries.calibration import Calibration
from jobs.dictionaries.contract import Dictionary, Forward, TrainConfig
from jobs.dictionaries.optimizer import UnitAdam


@dataclass(frozen=True)
class StepReport:
    """What one step saw. With ``finite`` false nothing was changed."""

    loss: float
    fvu: float
    """Squared error of the batch over the variance of the run's rows."""
    l0: float
    dead: int
    lr: float
    gradient_norm: float
    finite: bool


class Learner:
    """All state of one dictionary in training, and its step."""

    def __init__(
        self,
        cfg: TrainConfig,
        calibration: Calibration,
        *,
        precision: str,
        device: str = "cpu",
        ops: CodeOps | None = None,
    ) -> None:
        self.cfg, self.calibration, self.precision = cfg, calibration, precision
        width = len(calibration.median)
        self.dictionary: Dictionary = cfg.build_variant().build(width, seed=cfg.seed)
        self.dictionary.to(device)
        self.dictionary.compute_dtype = getattr(torch, precision)
        self.dictionary.ops = ops or self.dictionary.ops
        with torch.no_grad():
            self.dictionary.b_dec_D.copy_(calibration.median * calibration.scale)
        self.optimizer = UnitAdam(
            dict(self.dictionary.named_parameters()),
            unit="w_dec_LD",
            clip_norm=cfg.clip_norm,
            second_decay=schedule.second_decay(cfg),
        )
        self.age_L = torch.zeros(self.dictionary.latents, dtype=torch.int64, device=device)
        self.step, self.rows, self.threshold = 0, 0, math.nan

    def learn(self, x_RD: Tensor) -> StepReport:
        """Take one step on raw rows [R, D], unless the loss or its gradient is not finite."""
        dead = (self.age_L >= schedule.dead_window(self.cfg)).nonzero().squeeze(1)
        x_RD = x_RD.to(self.age_L.device) * self.calibration.scale
        forward = self.dictionary(x_RD, variance=self.calibration.variance, dead=dead)
        loss = self.dictionary.loss(forward)
        lr = schedule.learning_rate(self.cfg, self.step)
        value, norm = float(loss.detach()), math.nan
        if math.isfinite(value):
            loss.backward()  # type: ignore[no-untyped-call]
            norm = self.optimizer.step(lr)
        if math.isfinite(norm):
            self._note(forward)
        return self._report(forward, value, lr, norm)

    @torch.no_grad()
    def _note(self, forward: Forward) -> None:
        rows, active = len(forward.x), forward.value > 0
        self.age_L += rows
        self.age_L[forward.pattern.latent[active]] = 0
        lowest = float(forward.value[active].min()) if bool(active.any()) else 0.0
        if self.step <= schedule.threshold_start(self.cfg):
            self.threshold = lowest
        decay = self.cfg.threshold_decay
        self.threshold = decay * self.threshold + (1 - decay) * lowest
        self.step += 1
        self.rows += rows

    @torch.no_grad()
    def _report(self, forward: Forward, loss: float, lr: float, norm: float) -> StepReport:
        error = (forward.x - forward.x_hat).square().sum(dim=1).mean()
        return StepReport(
            loss=loss,
            fvu=float(error) / forward.variance,
            l0=int((forward.value > 0).sum()) / len(forward.x),
            dead=len(forward.dead),
            lr=lr,
            gradient_norm=norm,
            finite=math.isfinite(loss) and math.isfinite(norm),
        )

    @torch.no_grad()
    def codebook(self, threshold: float, **meta: Any) -> Codebook:
        """Return the frozen form with θ = ``threshold`` in scaled units.

        With ``c`` the input scale: ``W_enc`` and ``W_dec`` stay, ``b_enc ← (b_enc − W_encᵀ b_dec)/c``,
        ``b_dec ← b_dec/c``, ``θ ← θ/c``; reconstruction and active set are those of training.
        """
        own, scale = self.dictionary, self.calibration.scale
        folded_L = own.b_enc_L.double() - own.w_enc_LD.double() @ own.b_dec_D.double()
        return Codebook(
            W_enc_DL=own.w_enc_LD.t(),
            b_enc_L=folded_L / scale,
            W_dec_LD=own.w_dec_LD / own.w_dec_LD.norm(dim=1, keepdim=True),
            b_dec_D=own.b_dec_D / scale,
            threshold=threshold / scale,
            meta=meta,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state by name, for checkpoints."""
        weights = {f"weight.{name}": p.detach() for name, p in self.dictionary.named_parameters()}
        kept = {"age": self.age_L, "median": self.calibration.median}
        return {**weights, **kept, **self.optimizer.tensors()}

    def scalars(self) -> dict[str, Any]:
        """Return the rest of the state, JSON values."""
        facts = _numbers(self.calibration)
        counted = {"step": self.step, "rows": self.rows, "threshold": self.threshold}
        return {**counted, "precision": self.precision, "calibration": facts}

    @classmethod
    def restore(
        cls,
        cfg: TrainConfig,
        tensors: dict[str, Tensor],
        scalars: dict[str, Any],
        *,
        device: str = "cpu",
        ops: CodeOps | None = None,
    ) -> Learner:
        """Undo ``tensors`` and ``scalars``."""
        calibration = Calibration(median=tensors["median"], **scalars["calibration"])
        self = cls(cfg, calibration, precision=scalars["precision"], device=device, ops=ops)
        with torch.no_grad():
            for name, parameter in self.dictionary.named_parameters():
                parameter.copy_(tensors[f"weight.{name}"])
        self.optimizer.restore(tensors, scalars["step"])
        self.age_L.copy_(tensors["age"])
        self.step, self.rows = scalars["step"], scalars["rows"]
        self.threshold = scalars["threshold"]
        return self


def _numbers(calibration: Calibration) -> dict[str, Any]:
    return {name: value for name, value in asdict(calibration).items() if name != "median"}


def resolve_precision(wanted: str, device: str) -> str:
    """Return ``float32`` or ``bfloat16``; ``auto`` is bfloat16 where the hardware multiplies it.

    Explicit bfloat16 tensors were 2.2 times as fast as float32 at 4096 x 384 x 6144 on a CPU with
    AVX512-BF16, and 5 to 10 times on one with AMX.
    """
    if wanted != "auto":
        return wanted
    return "bfloat16" if multiplies_bfloat16(device) else "float32"
