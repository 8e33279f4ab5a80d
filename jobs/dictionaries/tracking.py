"""Where a run's figures go besides its own log: trackers by name, each behind its own package.

A run's log in its result folder is always kept; a tracker is asked for by name, and refused before anything starts where
its package is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Protocol

from jobs.results import Result
from store.registry import Registry

TRACKERS = Registry("tracker", "jobs.dictionaries.trackers")


class Track(Protocol):
    """One run of a tracker."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of a step; steps rise, and after a resume may come again."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class Tracker(Protocol):
    """A frozen config without settings of ours, filed in `TRACKERS`; the package's environment variables hold."""

    kind: ClassVar[str]

    def open(self, name: str, folder: str, config: Mapping[str, Any]) -> Track:
        """Begin a run, or go on with the one of that name.

        Parameters
        ----------
        name
            Of the result: ``train-1a2b3c4d``.
        folder
            The result's.
        config
            The recipe, JSON values.
        """
        ...


def trackers_of(names: Sequence[str]) -> list[Tracker]:
    """Return trackers by name.

    Raises
    ------
    InvalidInputError
        ``unknown-name``, ``missing-package``.
    """
    return [TRACKERS.get(name)() for name in names]


class Tracks:
    """All trackers of one run, closed together."""

    def __init__(
        self, trackers: Sequence[Tracker], result: Result, config: Mapping[str, Any]
    ) -> None:
        self._stack = ExitStack()
        self._open: list[Track] = []
        for tracker in trackers:
            track = tracker.open(result.path.name, str(result.path), config)
            self._stack.callback(track.close)
            self._open.append(track)

    def log(self, entry: Mapping[str, Any]) -> None:
        """Hand on an entry of a history."""
        figures = {
            name: float(value)
            for name, value in entry.items()
            if isinstance(value, int | float) and name != "step"
        }
        for track in self._open:
            track.log(int(entry["step"]), figures)

    def close(self) -> None:
        """Close all of them."""
        self._stack.close()
