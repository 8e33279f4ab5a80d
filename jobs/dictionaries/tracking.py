"""Where a run's figures go besides its own log: trackers by name, each behind its own package.

A run's log in its result folder is always kept; a tracker is asked for by name, and refused before anything starts where
its package is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Protocol, Self

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
    """All trackers of one run, closed together; one that fails is left out from then on, and the run's own log says so."""

    def __init__(
        self, trackers: Sequence[Tracker], result: Result, config: Mapping[str, Any]
    ) -> None:
        self._result = result
        self._open: dict[str, Track] = {}
        try:
            for tracker in trackers:
                self._open[tracker.kind] = tracker.open(result.path.name, str(result.path), config)
        except BaseException:
            self.close()
            raise

    def log(self, entry: Mapping[str, Any]) -> None:
        """Hand on an entry of a history."""
        figures = {
            name: float(value)
            for name, value in entry.items()
            if isinstance(value, int | float) and name != "step"
        }
        for kind, track in list(self._open.items()):
            try:
                track.log(int(entry["step"]), figures)
            except Exception as error:  # noqa: BLE001 - whatever a tracker's package raises, training goes on
                del self._open[kind]
                self._result.log({"tracker": kind, "lost": f"{type(error).__name__}: {error}"})

    def close(self) -> None:
        """Close all of them."""
        with ExitStack() as stack:
            for track in self._open.values():
                stack.callback(track.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
