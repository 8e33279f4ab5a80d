"""Who works on which part: hands out, tries again elsewhere, steals from stragglers. Pure: no cluster, no clock.

The shell (``work.py``, ``crew.py``) says what happened and when; this decides. A part may be worked on twice, because commits are
create-only: the first to commit wins and the other's attempt is dropped.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

TRIES = 3
AHEAD = 2
"""Parts a worker holds at most: the one it works on and the next, so that it never waits for the driver."""
SLOW = 2.0
"""A part is a straggler once it took this many times the median of those done."""
SLOW_SECONDS = 5.0
"""And this long: shorter ones are not worth a second try."""
BROKEN = 2
"""Tries in a row that may fail on one worker: then it may be the worker (a device in a bad state) and is replaced."""
BARREN = 12
"""Tries (and as many for each worker) that may fail in a row before the run is given up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a try failed: an error's kind and its first line."""

    kind: str
    line: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.line}"


@dataclass(kw_only=True, slots=True)
class _Held:
    """A part in a worker's hands; ``since`` is when it came to the head of the line, None while it waits."""

    part: int
    since: float | None


@dataclass(kw_only=True, slots=True)
class _Tries:
    """What became of a part so far."""

    failures: list[Failure] = field(default_factory=list)
    failed_on: set[int] = field(default_factory=set)


class Schedule:
    """The state of a run over some parts.

    Parameters
    ----------
    parts
        What is to be done, in the order of handing out.
    tries
        Times a part may fail, wherever, before it is given up.

    Attributes
    ----------
    given_up
        Part → its last failure.
    """

    def __init__(self, parts: Sequence[int], *, tries: int = TRIES) -> None:
        self._todo: deque[int] = deque(parts)
        self._tries = tries
        self._of = {part: _Tries() for part in parts}
        self._left = set(parts)
        self._hands: dict[int, list[_Held]] = {}
        self._in_a_row: dict[int, int] = {}
        self._seconds: list[float] = []
        self._barren = 0
        self._last: Failure | None = None
        self.given_up: dict[int, Failure] = {}

    # -- what the shell asks ---------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether every part is done or given up."""
        return not self._left

    @property
    def hopeless(self) -> bool:
        """Whether so many tries failed in a row that going on makes no sense."""
        return self._barren >= BARREN * (1 + len(self._hands))

    @property
    def left(self) -> list[int]:
        """Parts neither done nor given up, ascending."""
        return sorted(self._left)

    @property
    def workers(self) -> list[int]:
        """Workers that may be given parts."""
        return list(self._hands)

    def last_failure(self) -> Failure | None:
        """Return the failure that was met last, of a part or of a worker that had none."""
        return self._last

    def holders(self, part: int) -> list[int]:
        """Return the workers that have a part in hand."""
        return [w for w, held in self._hands.items() if any(h.part == part for h in held)]

    def next_for(self, worker: int, now: float) -> int | None:
        """Return the part a worker should be sent now, or None.

        New parts first, then parts that failed elsewhere; an idle worker then gets a second copy of what waits
        behind another's part or of a straggler.
        """
        held = self._hands[worker]
        if len(held) >= (AHEAD if len(self._todo) > len(self._hands) else 1):
            return None
        part = self._new_part(worker)
        if part is None and not held:
            part = self._stolen(worker, now)
        if part is not None:
            held.append(_Held(part=part, since=None if held else now))
        return part

    # -- what the shell tells --------------------------------------------------------------------------

    def join(self, worker: int) -> None:
        """Take in a worker that is up."""
        self._hands[worker], self._in_a_row[worker] = [], 0

    def leave(self, worker: int, failure: Failure | None) -> None:
        """Let go of a worker.

        Parameters
        ----------
        failure
            Why it died: the part it worked on counts as a failed try, the ones behind do not. None where it was sent
            away.
        """
        held = self._hands.pop(worker, [])
        if failure is not None and held:
            self._count_failure(worker, held[0].part, failure)
        elif failure is not None:
            self._barren += 1
            self._last = failure
        for item in held:
            self._back(item.part)

    def done(self, worker: int, part: int, now: float) -> bool:
        """Note a part done; return whether it is so for the first time."""
        seconds = self._drop(worker, part, now)
        self._barren = self._in_a_row[worker] = 0
        if part not in self._left:
            return False
        if seconds is not None:
            self._seconds.append(seconds)
        self._left.discard(part)
        return True

    def failed(self, worker: int, part: int, failure: Failure, now: float) -> bool:
        """Note a try that failed: the part is tried again, elsewhere where there is an elsewhere.

        Returns
        -------
        Whether the worker should be replaced.
        """
        self._drop(worker, part, now)
        self._in_a_row[worker] += 1
        if part in self._left:
            self._count_failure(worker, part, failure)
            self._back(part)
        return self._in_a_row[worker] >= BROKEN

    def dropped(self, worker: int, part: int, now: float) -> None:
        """Note that a worker stopped working on a part because it was told to."""
        self._drop(worker, part, now)
        self._back(part)

    # -- inside ----------------------------------------------------------------------------------------

    def _new_part(self, worker: int) -> int | None:
        for _ in range(len(self._todo)):
            part = self._todo.popleft()
            if part not in self._left:
                continue
            elsewhere = set(self._hands) - self._of[part].failed_on
            if worker in elsewhere or not elsewhere:
                return part
            self._todo.append(part)
        return None

    def _stolen(self, worker: int, now: float) -> int | None:
        waiting, running = [], []
        for other, held in self._hands.items():
            for item in held:
                if other == worker or not self._may_copy(item.part):
                    continue
                if item.since is None:
                    waiting.append(item.part)
                elif self._slow(now - item.since):
                    running.append((item.since, item.part))
        if waiting:
            return min(waiting)
        return min(running)[1] if running else None

    def _may_copy(self, part: int) -> bool:
        # What failed once may end whoever tries it: no two at a time.
        return part in self._left and len(self.holders(part)) == 1 and not self._of[part].failures

    def _slow(self, seconds: float) -> bool:
        if not self._seconds:
            return False
        return seconds > max(SLOW_SECONDS, SLOW * statistics.median(self._seconds))

    def _drop(self, worker: int, part: int, now: float) -> float | None:
        """Take a part out of a worker's hands; return how long it worked on it, where that is known."""
        held = self._hands.get(worker, [])
        found = next((item for item in held if item.part == part), None)
        if found is None:
            return None
        held.remove(found)
        if held and held[0].since is None:
            held[0].since = now
        return None if found.since is None else now - found.since

    def _count_failure(self, worker: int, part: int, failure: Failure) -> None:
        self._barren += 1
        self._last = failure
        if part not in self._left:
            return
        tries = self._of[part]
        tries.failures.append(failure)
        tries.failed_on.add(worker)
        if len(tries.failures) >= self._tries:
            self._left.discard(part)
            self.given_up[part] = failure

    def _back(self, part: int) -> None:
        """Queue a part again, unless it is settled, queued or in other hands."""
        if part in self._left and part not in self._todo and not self.holders(part):
            self._todo.append(part)
