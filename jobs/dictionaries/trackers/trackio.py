"""Trackio: one run a result, in project ``actlake``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import trackio

from jobs.dictionaries.tracking import TRACKERS, Track


@TRACKERS.register("trackio")
@dataclass(frozen=True, kw_only=True, slots=True)
class Trackio:
    """Figures by step; a run that is taken up again goes on under the same name."""

    kind: ClassVar[str]

    def open(self, name: str, folder: str, config: Mapping[str, Any]) -> Track:
        """Begin or resume the run."""
        del folder
        with redirect_stdout(sys.stderr):  # it greets; stdout is for one answer
            run = trackio.init(project="actlake", name=name, config=dict(config), resume="allow")
        return _Run(run)


class _Run:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._run.finish()
            with suppress(
                RuntimeError
            ):  # what it holds as current it ends, and says so, as the process does
                trackio.finish()
