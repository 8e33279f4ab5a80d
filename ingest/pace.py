"""How fast a worker goes, told in the provenance of what it commits: no service, no clock in any data.

A record cannot hold the cost of its own commit, so each holds that of the commit before: over a run nothing is
lost but the last one's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """What harvesting some parts took, all of it."""

    work_seconds: float = 0.0
    waited_seconds: float = 0.0
    """Of these, in which the model stood still because the store was written."""
    storing_cpu_seconds: float = 0.0
    """CPU time of writing the store."""

    def __add__(self, other: Spent) -> Spent:
        return Spent(**{name: getattr(self, name) + getattr(other, name) for name in NAMES})

    def to_json(self) -> dict[str, float]:
        """Return the seconds by name."""
        return {name: getattr(self, name) for name in NAMES}


NAMES = tuple(field.name for field in fields(Spent))


class Pace:
    """Seconds a worker is at work, and those of them in which the model waited for the store.

    Parameters
    ----------
    clock
        Seconds that only grow.
    now
        The time of day, in UTC.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._clock, self._now = clock, now
        self._since: float | None = None
        self._work = self._store = 0.0
        self._spent = Spent()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the time inside as work."""
        self._since = self._clock()
        try:
            yield
        finally:
            self._add_work()
            self._since = None

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Count the time inside as waiting for the store."""
        began = self._clock()
        try:
            yield
        finally:
            waited = self._clock() - began
            self._store += waited
            self._spent += Spent(waited_seconds=waited)

    def stored(self, cpu_seconds: float) -> None:
        """Count CPU time of writing."""
        self._spent += Spent(storing_cpu_seconds=cpu_seconds)

    def lap(self) -> dict[str, str]:
        """Return ``{finished, seconds, store_seconds}`` since the lap before, and begin another.

        ``finished`` is the time of day in ISO 8601, the others are decimal numbers.
        """
        self._add_work()
        found = {
            "finished": self._now().isoformat(timespec="milliseconds"),
            "seconds": f"{self._work:.3f}",
            "store_seconds": f"{self._store:.3f}",
        }
        self._work = self._store = 0.0
        return found

    def spent(self) -> Spent:
        """Return what was spent since this was asked before."""
        self._add_work()
        found, self._spent = self._spent, Spent()
        return found

    def _add_work(self) -> None:
        if self._since is not None:
            now = self._clock()
            self._work += now - self._since
            self._spent += Spent(work_seconds=now - self._since)
            self._since = now
