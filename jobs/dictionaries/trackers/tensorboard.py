"""TensorBoard's event files, in folder ``tensorboard`` of the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tensorboardX import SummaryWriter

from jobs.dictionaries.tracking import TRACKERS, Track


@TRACKERS.register("tensorboard")
@dataclass(frozen=True, kw_only=True, slots=True)
class TensorBoard:
    """Scalars by step; package tensorboardX, which writes TensorBoard's format."""

    kind: ClassVar[str]

    def open(self, name: str, folder: str, config: Mapping[str, Any]) -> Track:
        """Begin event files beside those there are."""
        del name, config
        return _Events(Path(folder) / "tensorboard")


class _Events:
    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
