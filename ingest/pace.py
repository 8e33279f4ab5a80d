"""How fast a worker goes, told in the provenance of what it commits: no service, no clock in any data.

A record cannot hold the cost of its own commit, so each holds that of the commit before: over a run nothing is
lost but the last one's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime


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
            self._store += self._clock() - began

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

    def _add_work(self) -> None:
        if self._since is not None:
            now = self._clock()
            self._work += now - self._since
            self._since = now
