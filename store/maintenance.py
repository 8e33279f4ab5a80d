"""What ends things: groups dropped, parts retired, and what nobody may read any more deleted.

Dropping and retiring are records, created once: every reader obeys them from then on, no byte is touched. ``collect``
(``gc``) deletes, and only what no reader can reach: attempts no commit names, temporary files, assets without a manifest,
what was dropped or retired, and indexes that hold rows of such parts or that a larger one replaces. It waits out a grace,
because a writer at work looks like a dead one, and a reader that opened the store before may still read what was dropped
since. A writer or reader that pauses for longer than the grace gets an error, never wrong rows.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from store import layout
from store.assets import MANIFEST
from store.commits import (
    create_retired,
    exists,
    latest_commit,
    list_commits,
    list_retired,
    load_commit,
)
from store.coverage import retired_since
from store.errors import InvalidInputError, NotFoundError, StoreError
from store.index_care import index_leavings
from store.posix import TEMPORARY
from store.reader import Store
from store.records import make_record
from store.schema import NAME, check_reason
from store.storage import Storage
from store.urls import open_storage

GRACE_SECONDS = 7 * 86_400.0
"""Older leavings are taken for dead: no part takes a week."""
MOST_SKEW_SECONDS = 3600.0
"""Clocks that lie farther apart cannot tell old from new."""
_BATCH = 1000
_PIECES = 20  # MiB: more than one part of a multipart upload
_NEAR_SECONDS = 60.0


def drop(store: Store, group: str, reason: str) -> None:
    """Take a group out of a store; its name is never used again.

    Raises
    ------
    InvalidInputError
        ``drop-tokens``: they are the store's rows.
    NotFoundError
        ``group-missing``.
    """
    live = store.live()
    if group == "tokens":
        raise InvalidInputError(
            f"the group tokens of {store.url} was to be dropped; its rows are what every other group is aligned to. "
            "Nothing was changed. Retire parts, or delete the whole store.",
            kind="drop-tokens",
        )
    live.view.group(group)
    body = {"group": group, "reason": check_reason(reason)}
    data, _ = make_record("dropped", store.id, body)
    live.view.storage.create(layout.dropped_key(group), data)


def retire(store: Store, parts: Iterable[int], reason: str, *, group: str = "tokens") -> list[int]:
    """Take parts out of a group, or out of the whole store where the group is tokens; return those that were new.

    Row ids never move: what is left keeps its numbers. A ring store retires its oldest parts as it grows.

    Raises
    ------
    NotFoundError
        ``part-missing``: a part was never committed. Nothing was changed.
    """
    live = store.live()
    view = live.view
    view.group(group)
    check_reason(reason)
    wanted = sorted(set(parts))
    gone = list_retired(view.storage, group)
    committed = list_commits(view.storage, group)
    missing = [
        part
        for part in wanted
        if part not in committed
        and part not in gone
        and not exists(view.storage, layout.commit_key(group, part))  # a listing may be late
    ]
    if missing:
        raise NotFoundError(
            f"part {missing[0]} of group {group!r} was to be retired; {store.url} holds parts "
            f"{_span(sorted(committed))} of it. Nothing was changed. Name committed parts.",
            kind="part-missing",
            group=group,
            part=missing[0],
        )
    new = [part for part in wanted if part not in gone]
    view.storage.settle(layout.commits_prefix(group))  # what retires a part must not outlive it
    for part in new:
        create_retired(view.storage, store.id, group, part, reason)
    view.storage.settle(layout.retired_prefix(group))  # those that others retired just now
    return new


def _span(parts: Sequence[int]) -> str:
    return f"{parts[0]} to {parts[-1]}" if parts else "none"


# -- deleting --------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Collected:
    """What ``collect`` deleted, or would."""

    keys: list[str] = field(default_factory=list)
    bytes: int = 0
    young: int = 0
    """Leavings younger than the grace, left alone."""

    def to_json(self) -> dict[str, Any]:
        """Return the account for programs."""
        return {"objects": len(self.keys), "bytes": self.bytes, "young": self.young}


def collect(
    store: Store,
    *,
    grace_seconds: float = GRACE_SECONDS,
    dry_run: bool = False,
    clock: Callable[[], float] = time.time,
) -> Collected:
    """Delete what no reader of the store can reach and nobody has touched within the grace.

    Parameters
    ----------
    grace_seconds
        0 deletes leavings of any age: right where no writer and no reader is at work, and only there.
    dry_run
        Say what would go; delete nothing, write nothing: ages are told by ``clock``, not by the storage's own.
    clock
        Now, in seconds since 1970.

    Raises
    ------
    StoreError
        ``clock-skew``: this machine's clock and the storage's lie more than an hour apart, so that ages mean nothing.
    """
    storage = store.view.storage
    now = clock() if dry_run else _storage_now(storage, clock)
    found = Collected()
    for leaving in _leavings(store.live()):
        touched = leaving.since if leaving.since is not None else _last_touched(storage, leaving)
        if touched is None or now - touched < grace_seconds:
            found.young += len(leaving.keys)
            continue
        for key in leaving.keys:
            with contextlib.suppress(StoreError):  # temporary files have no legal key
                found.bytes += storage.size(key)
            found.keys.append(key)
    if not dry_run:
        for low in range(0, len(found.keys), _BATCH):
            storage.delete(found.keys[low : low + _BATCH])
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Leaving:
    """Objects that go together or not at all: the writer of an attempt is at work while any of them is young."""

    keys: list[str]
    since: float | None = None
    """When a record ended them; None: their own age counts."""


def _storage_now(storage: Storage, clock: Callable[[], float]) -> float:
    """Return what time the storage says it is; raise where that is far from our own."""
    key = f"assets/probe-{secrets.token_hex(8)}"
    storage.put(key, b"")
    try:
        there = storage.modified(key)
    finally:
        storage.delete([key])
    if abs(there - clock()) > MOST_SKEW_SECONDS:
        raise StoreError(
            f"the clock of {storage.url} and this machine's lie {abs(there - clock()):,.0f} s apart; ages cannot be told. "
            "Nothing was deleted. Set the clocks.",
            kind="clock-skew",
        )
    return there


def _last_touched(storage: Storage, leaving: _Leaving) -> float | None:
    """Return when the youngest of some objects was written; None where somebody else removed them all."""
    times = []
    for key in leaving.keys:
        with contextlib.suppress(NotFoundError):
            times.append(storage.modified(key))
    return max(times, default=None)


def _leavings(store: Store) -> Iterator[_Leaving]:
    """Yield what no reader can reach."""
    storage, view = store.view.storage, store.view
    for name in filter(NAME.fullmatch, storage.folders("groups")):
        dropped = layout.dropped_key(name)
        if name in view.groups:
            yield from _of_group(store, name)
        elif exists(storage, dropped):
            kept = {layout.group_key(name), dropped}
            keys = [key for key in storage.keys(f"groups/{name}") if key not in kept]
            yield _Leaving(keys=keys, since=storage.modified(dropped))
    for asset in filter(NAME.fullmatch, storage.folders("assets")):
        if not exists(storage, f"assets/{asset}/{MANIFEST}"):
            yield _Leaving(keys=list(storage.keys(f"assets/{asset}")))
    for keys, since in index_leavings(view):
        yield _Leaving(keys=keys, since=since)
    for key in storage.keys(""):
        if "/parts/" not in key and key.rpartition("/")[2].startswith(TEMPORARY):
            yield _Leaving(keys=[key])


def _of_group(store: Store, name: str) -> Iterator[_Leaving]:
    storage = store.view.storage
    for folder in storage.folders(f"groups/{name}/parts"):
        if not re.fullmatch(r"[0-9]{8}", folder):
            continue
        prefix, part = f"groups/{name}/parts/{folder}", int(folder)
        since = retired_since(storage, name, part)
        if since is not None:
            yield _Leaving(keys=list(storage.keys(prefix)), since=since)
            continue
        named = _named_attempts(store, name, part)
        if named is None:
            continue
        for attempt in storage.folders(prefix):
            if attempt not in named:
                yield _Leaving(keys=list(storage.keys(f"{prefix}/{attempt}")))


def _named_attempts(store: Store, name: str, part: int) -> set[str] | None:
    """Return the attempt a part's last record names, if any; None where it cannot be read: then nothing is sure.

    What earlier records name was purged.
    """
    storage = store.view.storage
    n = latest_commit(storage, name, part)
    try:
        return {load_commit(storage, store.id, name, part, n).attempt} if n >= 0 else set()
    except StoreError:
        return None


# -- looking at the storage ------------------------------------------------------------------------------------


def doctor(url: str, *, clock: Callable[[], float] = time.time) -> list[dict[str, Any]]:
    """Try out what a store needs of a storage, under a key of its own that is removed again.

    Returns
    -------
    One ``{check, ok, found}`` for each: a record is created once; what is written is listed, sized and read back,
    whole and by ranges; an object in many pieces is whole; deleted is gone; the clock is near ours.
    """
    storage = open_storage(url)
    folder = storage.local_path("x")
    made = folder is not None and not folder.parent.exists()
    root = f"doctor-{secrets.token_hex(8)}"
    checks: list[tuple[str, Callable[[], str]]] = [
        ("created once", lambda: _created_once(storage, f"{root}/record")),
        ("listed at once", lambda: _listed(storage, root)),
        ("read by ranges", lambda: _ranges(storage, f"{root}/ranges")),
        ("written in pieces", lambda: _pieces(storage, f"{root}/pieces")),
        ("deleted is gone", lambda: _deleted(storage, f"{root}/gone")),
        ("clock", lambda: _clock(storage, f"{root}/clock", clock)),
    ]
    found = []
    try:
        for name, check in checks:
            try:
                wrong = check()
            except StoreError as error:
                wrong = str(error)
            found.append({"check": name, "ok": not wrong, "found": wrong or "as it should be"})
    finally:
        with contextlib.suppress(StoreError):
            storage.delete(list(storage.keys(root)))
        if folder is not None and made:
            with contextlib.suppress(OSError):  # somebody else put something there
                folder.parent.rmdir()
    return found


def _created_once(storage: Storage, key: str) -> str:
    if not storage.create(key, b"one"):
        return "a new record was said to be taken"
    if storage.create(key, b"two"):
        return "a taken record was written again: several writers would overwrite one another"
    return "" if storage.get(key) == b"one" else "a record changed when it was created again"


def _listed(storage: Storage, root: str) -> str:
    storage.put(f"{root}/a/b", b"x")
    keys, folders = set(storage.keys(root)), storage.folders(root)
    there = f"{root}/a/b" in keys and "a" in folders
    return "" if there else f"a new object is not listed: {sorted(keys)}, {folders}"


def _ranges(storage: Storage, key: str) -> str:
    data = bytes(range(256)) * 64
    storage.put(key, data)
    one, two = bytearray(300), bytearray(7)
    storage.read_into(key, [(100, one), (len(data) - 7, two)])
    right = one == data[100:400] and two == data[-7:] and storage.size(key) == len(data)
    return "" if right else "ranges came back wrong"


def _pieces(storage: Storage, key: str) -> str:
    stream = storage.stream(key)
    piece = bytes(1 << 20)
    try:
        for _ in range(_PIECES):
            stream.write(piece)
        with contextlib.suppress(NotFoundError):
            storage.size(key)
            return "an object was seen before it was finished"
        written = stream.finish()
    finally:
        stream.abandon()
    right = storage.size(key) == written.size == _PIECES << 20
    return "" if right else "an object written in pieces has another size"


def _deleted(storage: Storage, key: str) -> str:
    storage.put(key, b"x")
    storage.delete([key])
    try:
        storage.get(key)
    except NotFoundError:
        return ""
    return "a deleted object was read"


def _clock(storage: Storage, key: str, clock: Callable[[], float]) -> str:
    storage.put(key, b"")
    apart = abs(storage.modified(key) - clock())
    return "" if apart < _NEAR_SECONDS else f"the clocks lie {apart:,.0f} s apart; gc goes by them"
