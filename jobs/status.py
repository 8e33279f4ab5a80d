"""How far a store's groups are and how fast they grow, read from what is committed: works from any terminal.

Nothing but commit records is read. Each tells when it was made and how long its worker computed and waited for the
store (``ingest/pace.py``); groups written by other programs tell neither, and then only counts are known.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from store import Store
from store.commits import Commit
from store.records import read_record

RECENT = 64
"""Commits the rate is taken over."""
FRESH_GAPS = 4.0
"""The time left is told while the last commit is younger than so many usual gaps (of a second at least)."""
QUIET_SECONDS = 60.0
"""A group counts as worked on if its last commit is younger than this, or than five times the usual gap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How fast some commits came."""

    rows_per_second: float | None
    store_share: float | None
    """Share of the workers' time in which the model waited for the store."""
    last: datetime | None
    gap_seconds: float


def status(store: Store, *, now: datetime | None = None) -> dict[str, Any]:
    """Return how far each group is, as JSON.

    Returns
    -------
    ``{url, store, tokens_sealed, groups: [{name, parts, of_parts, rows, of_rows, sealed, failed: [{part, error}],
    left, state, rows_per_second, store_share, seconds_left, last}]}``. ``state`` is ``complete``, ``working`` or
    ``idle``; ``left`` are parts neither done nor given up. Where the tokens are not sealed, ``of_parts`` and
    ``of_rows`` are those so far.
    """
    store = store.refresh()
    view = store.view
    names = list(store.groups)
    rows = (
        {part: view.commit("tokens", part).rows for part in view.parts("tokens")} if names else {}
    )
    sealed = bool(names) and view.sealed("tokens") is not None
    moment = now or datetime.now(UTC)
    return {
        "url": store.url,
        "store": store.id,
        "tokens_sealed": sealed,
        "groups": [_group(store, name, rows, moment, ends=sealed) for name in names],
    }


def _group(
    store: Store, name: str, tokens: dict[int, int], now: datetime, *, ends: bool
) -> dict[str, Any]:
    view = store.view
    commits = [view.commit(name, part) for part in view.parts(name)]
    done, total = sum(commit.rows for commit in commits), sum(tokens.values())
    sealed = view.sealed(name) is not None
    left_rows = sum(tokens.values()) - sum(tokens.get(commit.part, 0) for commit in commits)
    pace = pace_of(commits)
    failed = _failed(store, name, {commit.part for commit in commits})
    left = 0 if sealed else len(tokens) - len(commits) - len(failed)
    left_rows -= sum(tokens.get(one["part"], 0) for one in failed)
    state = "complete" if sealed else "idle" if ends and not left else _state(pace, now)
    rate = pace.rows_per_second
    recent = pace.last is not None and (now - pace.last).total_seconds() < FRESH_GAPS * max(
        pace.gap_seconds, 1.0
    )
    return {
        "name": name,
        "parts": len(commits),
        "of_parts": len(tokens),
        "rows": done,
        "of_rows": total,
        "sealed": sealed,
        "failed": failed,
        "left": left,
        "state": state,
        "rows_per_second": rate,
        "store_share": pace.store_share,
        "seconds_left": left_rows / rate
        if state == "working" and rate and ends and recent
        else None,
        "last": None if pace.last is None else pace.last.isoformat(timespec="seconds"),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class _Told:
    """What a commit says of how it was made."""

    rows: int
    finished: datetime
    seconds: float
    store_seconds: float


def _told(commit: Commit) -> _Told | None:
    """Return what a commit tells, or None where it is another program's and tells less, or otherwise."""
    held = commit.provenance
    try:
        finished = datetime.fromisoformat(str(held["finished"]))
        seconds, waited = float(held["seconds"]), float(held["store_seconds"])
    except (KeyError, ValueError, TypeError):
        return None
    if finished.tzinfo is None:
        return None
    return _Told(rows=commit.rows, finished=finished, seconds=seconds, store_seconds=waited)


def pace_of(commits: Sequence[Commit]) -> Pace:
    """Return how fast the latest commits came."""
    told = sorted(filter(None, map(_told, commits)), key=lambda one: one.finished)[-RECENT:]
    if not told:
        return Pace(rows_per_second=None, store_share=None, last=None, gap_seconds=0.0)
    told = told[_last_run([one.finished for one in told]) :]
    times = [one.finished for one in told]
    span = (times[-1] - times[0]).total_seconds()
    # The first one's rows were made before the span began.
    rows = sum(one.rows for one in told[1:])
    worked = sum(one.seconds for one in told)
    waited = sum(one.store_seconds for one in told)
    return Pace(
        rows_per_second=rows / span if span > 0 else None,
        store_share=waited / worked if worked > 0 else None,
        last=times[-1],
        gap_seconds=span / max(len(told) - 1, 1),
    )


def _last_run(times: Sequence[datetime]) -> int:
    """Return where the last run begins: behind the last pause."""
    gaps = [(b - a).total_seconds() for a, b in itertools.pairwise(times)]
    pause = max(QUIET_SECONDS, 5 * statistics.median(gaps)) if gaps else 0.0
    return max((place + 1 for place, gap in enumerate(gaps) if gap > pause), default=0)


def _state(pace: Pace, now: datetime) -> str:
    if pace.last is None:
        return "idle"
    quiet = (now - pace.last).total_seconds()
    return "working" if quiet < max(QUIET_SECONDS, 5 * pace.gap_seconds) else "idle"


def _failed(store: Store, name: str, done: set[int]) -> list[dict[str, Any]]:
    """Return the parts that a run gave up and no later one committed, with the error."""
    storage, found = store.view.storage, {}
    for key in sorted(storage.keys(f"groups/{name}/failed")):
        record = read_record(storage.get(key), "failed", store.id, key)
        if record["part"] not in done:
            found[record["part"]] = record["error"]
    return [{"part": part, "error": error} for part, error in sorted(found.items())]


def describe(found: dict[str, Any]) -> str:
    """Return a status as text."""
    lines = [f"{found['url']}  store {found['store']}"]
    if not found["groups"]:
        lines.append("nothing is committed yet")
    elif not found["tokens_sealed"]:
        lines.append(
            "the tokens are still being written, or their writing was interrupted: totals may grow"
        )
    for group in found["groups"]:
        lines.append(f"{group['name']:<12} {_line(group)}")
        lines += [f"    part {one['part']} failed: {one['error']}" for one in group["failed"]]
    return "\n".join(lines)


def _line(group: dict[str, Any]) -> str:
    said = [
        f"{group['parts']:,} of {group['of_parts']:,} parts",
        f"{group['rows']:,} of {group['of_rows']:,} rows",
        group["state"],
    ]
    if group["left"] or group["failed"]:
        said.append(f"{len(group['failed'])} failed, {group['left']} left")
    if group["rows_per_second"]:
        said.append(f"{group['rows_per_second']:,.0f} rows/s")
    if group["store_share"] is not None:
        said.append(f"{group['store_share']:.0%} of the workers' time waiting for the store")
    if group["seconds_left"] is not None:
        said.append(f"{group['seconds_left']:,.0f} s left")
    return ", ".join(said)
