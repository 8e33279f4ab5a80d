"""The loop of a run: asks the schedule what to do, tells the crew, tells the schedule what happened. Knows no cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from jobs.errors import JobError
from jobs.runtimes.post import Report
from jobs.runtimes.schedule import Failure, Schedule

START_SECONDS = 120.0
"""How long to wait for a first worker; starting a process takes two, loading a model comes later."""
TICK_SECONDS = 0.5
"""How often to look for stragglers and interrupts where nothing happens."""


class Crew(Protocol):
    """Workers somewhere else, by number."""

    def hire(self) -> None:
        """Ask for one more worker."""

    def fire(self, number: int) -> None:
        """End a worker; nothing more is heard of it."""

    def send(self, number: int, part: int) -> None:
        """Give a worker a part."""

    def drop(self, number: int, part: int) -> None:
        """Tell a worker that a part is no longer wanted."""

    def answers(self, seconds: float) -> list[tuple[int, Any]]:
        """Wait for something to happen; return (worker, its report, its greeting or the failure that ended it)."""


def work(
    schedule: Schedule,
    crew: Crew,
    count: int,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[int, Any]]:
    """Yield (part, what it comes to) until all are done or given up.

    Parameters
    ----------
    count
        Workers that were hired.

    Raises
    ------
    ActlakeError
        What a worker met that every other would meet as well.
    JobError
        ``workers-fail``: nothing succeeds any more. ``no-workers``: none came up.
    """
    heard = clock()
    while not schedule.over:
        now = clock()
        for worker in schedule.workers:
            while (part := schedule.next_for(worker, now)) is not None:
                crew.send(worker, part)
        for worker, said in crew.answers(TICK_SECONDS):
            heard = clock()
            if isinstance(said, Failure):
                schedule.leave(worker, said)
                crew.hire()
            elif isinstance(said, Report):
                yield from _settle(schedule, crew, worker, said, heard)
            else:
                schedule.join(worker)
        _check_hope(schedule, clock() - heard, count)


def _settle(
    schedule: Schedule, crew: Crew, worker: int, report: Report, now: float
) -> Iterator[tuple[int, Any]]:
    if report.state == "refused":
        assert report.error is not None
        raise report.error
    if report.state == "dropped":
        schedule.dropped(worker, report.part, now)
    elif report.state == "failed":
        assert report.failure is not None
        if schedule.failed(worker, report.part, report.failure, now):
            schedule.leave(worker, None)
            crew.fire(worker)
            crew.hire()
    elif schedule.done(worker, report.part, now):
        for other in schedule.holders(report.part):
            crew.drop(other, report.part)
        yield report.part, report.value


def _check_hope(schedule: Schedule, silent_seconds: float, count: int) -> None:
    if schedule.hopeless:
        raise JobError(
            f"nothing succeeds any more; the last failure was {schedule.last_failure()}. {len(schedule.left)} parts are "
            "left, what was committed stands. Mend the cause and run the same again.",
            kind="workers-fail",
        )
    if not schedule.workers and silent_seconds > START_SECONDS:
        raise JobError(
            f"none of {count} workers came up in {START_SECONDS:.0f} s: the nodes' resources are in other hands, or "
            f"nodes are gone. {len(schedule.left)} parts are left, what was committed stands. See `ray status`.",
            kind="no-workers",
        )


def count(parts: int) -> str:
    """Return a number of parts in words."""
    return f"{parts} part" if parts == 1 else f"{parts} parts"


def parts_failed(given_up: Mapping[int, Failure]) -> JobError:
    """Return the error that ends a run some parts of which were given up."""
    said = "; ".join(f"part {part}: {why}" for part, why in sorted(given_up.items())[:5])
    return JobError(
        f"{count(len(given_up))} failed wherever tried: {said}. All others are done. Mend the cause and run the same "
        "again.",
        kind="parts-failed",
        parts={str(part): str(why) for part, why in sorted(given_up.items())},
    )
