"""A dictionary while it learns: weights, moments, ages, threshold, and one step of all of them.

The state is small and explicit so that a checkpoint holds all of it and a resumed run gives the same bits.

Dimensions: R rows, D width read, E width rebuilt, L latents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ingest.models.dtypes import multiplies_bfloat16
from jobs.batches import Batch
from jobs.codebook import Codebook
from jobs.codes import CodeOps, CodeOpsByShare
from jobs.dictionaries import schedule
from jobs.dictionaries.average import Average
from jobs.dictionaries.calibration import Calibration
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.contract import Forward, Moment
from jobs.dictionaries.dictionary import Dictionary
from jobs.dictionaries.encoders.linear import LinearScores
from jobs.dictionaries.fold import fold, thresholds
from jobs.dictionaries.optimizer import UnitAdam
from jobs.dictionaries.ranks import ALONE, Ranks, Share
from jobs.dictionaries.resample import resample


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
        ranks: Ranks = ALONE,
        by: str = "rows",
    ) -> None:
        self.cfg, self.calibration, self.precision = cfg, calibration, precision
        self.ranks = ranks
        self.dictionary: Dictionary = cfg.build_variant().build(calibration.widths, seed=cfg.seed)
        if by == "latents" and ranks.world > 1:
            self.dictionary.keep_latents(ranks)
        else:
            self.dictionary.share = Share(ranks)
        self.share = self.dictionary.share
        self.dictionary.to(device)
        self.dictionary.compute_dtype = getattr(torch, precision)
        sparse = ops or self.dictionary.ops
        self.dictionary.ops = CodeOpsByShare(sparse, self.dictionary.compute_dtype)
        self._scale_D = calibration.scale_in.to(device)
        self._scale_E = calibration.scale_out.to(device)
        with torch.no_grad():
            self.dictionary.b_dec_D.copy_(calibration.median.to(device) * self._scale_E)
        named = dict(self.dictionary.named_parameters())
        self.optimizer = UnitAdam(
            named,
            unit="w_dec_LD" if self.dictionary.unit else None,
            clip_norm=cfg.clip_norm,
            second_decay=schedule.second_decay(cfg),
            kind=cfg.optimizer,
            shared_out=self.share.latent_ranks,
        )
        self.average = None if cfg.average is None else Average(named, cfg.average)
        self.age_L = torch.zeros(self.dictionary.latents, dtype=torch.int64, device=device)
        self.step, self.rows, self.threshold = 0, 0, math.nan

    @property
    def when(self) -> Moment:
        """Where the run is."""
        return Moment(self.step, self.cfg.steps)

    def scaled(self, x_RD: Tensor) -> Tensor:
        """Return rows that are read in the units of training."""
        return x_RD.to(self._scale_D.device).float() * self._scale_D

    def scaled_target(self, y_RE: Tensor) -> Tensor:
        """Return rows to rebuild in the units of training."""
        return y_RE.to(self._scale_E.device).float() * self._scale_E

    def learn(self, batch: Batch) -> StepReport:
        """Take one step on a batch of raw rows, unless the loss or its gradient is not finite."""
        dead = (self.age_L >= schedule.dead_window(self.cfg)).nonzero().squeeze(1)
        x_RD = self.scaled(batch.x)
        y_RE = None if batch.y is None else self.scaled_target(batch.y)
        g_RD = None if batch.g is None else batch.g.to(x_RD.device) / self._scale_D
        when = self.when
        forward = self.dictionary(
            x_RD, y_RE, g_RD, variance=self.calibration.variance, dead=dead, when=when
        )
        loss = self.dictionary.loss(forward)
        lr = schedule.learning_rate(self.cfg, self.step)
        value, norm = float(self._mean(loss.detach())), math.nan
        if math.isfinite(value):
            loss.backward()  # type: ignore[no-untyped-call]
            self._average_gradients()
            norm = self.optimizer.step(lr)
        report = self._report(forward, value, lr, norm)
        if report.finite:
            self._note(forward, report)
        return report

    def _mean(self, value: Tensor) -> Tensor:
        """Return the mean over ranks that hold equally many rows each."""
        ranks = self.share.row_ranks
        return ranks.sum(value) / ranks.world

    @torch.no_grad()
    def _average_gradients(self) -> None:
        """Give every rank the gradient of the whole batch."""
        if self.share.row_ranks.world == 1:
            return
        for parameter in self.dictionary.parameters():
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self._mean(grad)

    @torch.no_grad()
    def _note(self, forward: Forward, report: StepReport) -> None:
        rows, active = self.share.rows(len(forward.x)), forward.value > 0
        fired_L = torch.zeros_like(self.age_L)
        fired_L[forward.pattern.latent[active]] = 1
        self.age_L += rows
        self.age_L[self.share.row_ranks.largest(fired_L) > 0] = 0
        value_N = forward.value[active]
        own = value_N.min() if len(value_N) else value_N.new_tensor(math.inf)
        lowest = float(-self.ranks.largest(-own))
        lowest = lowest if math.isfinite(lowest) else 0.0
        if self.step <= schedule.threshold_start(self.cfg):
            self.threshold = lowest
        decay = self.cfg.threshold_decay
        self.threshold = decay * self.threshold + (1 - decay) * lowest
        if self.dictionary.penalty is not None:
            self.dictionary.penalty.note(report.l0, forward.when)
        if self.average is not None:
            self.average.note()
        self.step += 1
        self.rows += rows
        if schedule.resamples(self.cfg, self.step):
            resample(self.dictionary, self.optimizer, self.age_L, forward, self.cfg)

    @torch.no_grad()
    def _report(self, forward: Forward, loss: float, lr: float, norm: float) -> StepReport:
        error = (forward.y - forward.x_hat).square().sum(dim=1).mean().double()
        active = (forward.value > 0).sum().double() / len(forward.x)
        active = self.share.latent_ranks.sum(active)
        dead = torch.tensor([len(forward.dead)], device=active.device)
        error_and_l0 = self._mean(torch.stack([error, active])).tolist()
        return StepReport(
            loss=loss,
            fvu=error_and_l0[0] / forward.variance,
            l0=error_and_l0[1],
            dead=int(self.share.latent_ranks.sum(dead)),
            lr=lr,
            gradient_norm=norm,
            finite=math.isfinite(loss) and math.isfinite(norm),
        )

    def blocks(self, x_RD: Tensor) -> Iterator[tuple[int, Tensor, None]]:
        """Yield (first row, float32 scores [r, L]) of raw rows as selection without gradients compares them."""
        own = self.dictionary
        w_LD, b_L = own.w_enc_LD.detach(), own.b_enc_L.detach()
        norm_L = own.score.norms(own)
        if norm_L is not None:
            w_LD, b_L = w_LD * norm_L.unsqueeze(1), b_L * norm_L
        rows_RD = own.read(self.scaled(x_RD)).detach()
        for start, score_RL in LinearScores(
            rows_RD, w_LD, b_L, torch.float32, own.sections
        ).blocks():
            yield start, score_RL, None

    @property
    def needs_threshold(self) -> bool:
        """Whether one threshold for all latents is to be set before the dictionary is frozen."""
        return self.dictionary.sparsifier.frozen(self.dictionary.b_enc_L).theta is None

    def codebook(self, threshold: float, **meta: Any) -> Codebook:
        """Return the frozen form; ``threshold`` is in the units of ``blocks`` and unused where latents have their own."""
        own = self.dictionary
        return fold(own, self.calibration, threshold, meta, ranks=self.share.latent_ranks)

    def raw_threshold(self, threshold: float) -> float:
        """Return a threshold in units of raw codes, averaged over latents where they differ in theirs."""
        theta_L, n_L = thresholds(self.dictionary, self.calibration, threshold)
        return float((theta_L * n_L).mean())

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state by name, for checkpoints."""
        weights = {f"weight.{name}": p.detach() for name, p in self.dictionary.named_parameters()}
        kept = {"age": self.age_L, "median": self.calibration.median}
        means = {} if self.average is None else self.average.tensors()
        return {**weights, **kept, **means, **self.optimizer.tensors()}

    def scalars(self) -> dict[str, Any]:
        """Return the rest of the state, JSON values."""
        penalty = self.dictionary.penalty
        return {
            "step": self.step,
            "rows": self.rows,
            "threshold": self.threshold,
            "precision": self.precision,
            "calibration": self.calibration.to_json(),
            **({} if penalty is None else {"penalty": penalty.state()}),
        }

    @classmethod
    def restore(
        cls,
        cfg: TrainConfig,
        tensors: dict[str, Tensor],
        scalars: dict[str, Any],
        *,
        device: str = "cpu",
        ops: CodeOps | None = None,
        ranks: Ranks = ALONE,
        by: str = "rows",
    ) -> Learner:
        """Undo ``tensors`` and ``scalars``."""
        calibration = Calibration.from_json(scalars["calibration"], tensors["median"])
        precision = scalars["precision"]
        self = cls(
            cfg, calibration, precision=precision, device=device, ops=ops, ranks=ranks, by=by
        )
        with torch.no_grad():
            for name, parameter in self.dictionary.named_parameters():
                parameter.copy_(tensors[f"weight.{name}"])
        self.optimizer.restore(tensors, scalars["step"])
        if self.average is not None:
            self.average.restore(tensors)
        if self.dictionary.penalty is not None:
            self.dictionary.penalty.restore(scalars["penalty"])
        self.age_L.copy_(tensors["age"])
        self.step, self.rows = scalars["step"], scalars["rows"]
        self.threshold = scalars["threshold"]
        return self


def resolve_precision(wanted: str, device: str) -> str:
    """Return ``float32`` or ``bfloat16``; ``auto`` is bfloat16 where the hardware multiplies it.

    Explicit bfloat16 tensors were 2.2 times as fast as float32 at 4096 x 384 x 6144 on a CPU with
    AVX512-BF16, and 5 to 10 times on one with AMX.
    """
    if wanted != "auto":
        return wanted
    return "bfloat16" if multiplies_bfloat16(device) else "float32"
