"""Weights & Biases: one run a result, in project ``actlake`` unless WANDB_PROJECT says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import wandb

from jobs.dictionaries.tracking import TRACKERS, Track


@TRACKERS.register("wandb")
@dataclass(frozen=True, kw_only=True, slots=True)
class WandB:
    """Figures by step; a run that is taken up again goes on under the same id."""

    kind: ClassVar[str]

    def open(self, name: str, folder: str, config: Mapping[str, Any]) -> Track:
        """Begin or resume the run; files are kept in the result's folder."""
        settings: dict[str, Any] = {"id": name, "name": name, "dir": folder, "config": dict(config)}
        project = wandb.setup().settings.project or "actlake"
        return _Run(wandb.init(project=project, resume="allow", reinit="create_new", **settings))


class _Run:
    def __init__(self, run: Any) -> None:
        self._run = run
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({**figures, "step": step})

    def close(self) -> None:
        self._run.finish()
