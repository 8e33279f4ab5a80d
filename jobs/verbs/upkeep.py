"""``gc``, ``drop``, ``retire``, ``tombstone``, ``purge``, ``compact`` and ``doctor``."""

from __future__ import annotations

import re
from pathlib import Path

from jobs import config as settings
from jobs.errors import UsageError
from jobs.values import counted
from jobs.verbs.contract import Answer, Context

_MOST_PARTS = 1_000_000
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def gc(config: settings.Gc, _context: Context) -> Answer:
    """Delete leavings."""
    from store import open as open_store
    from store.maintenance import collect

    found = collect(
        open_store(config.url), grace_seconds=seconds(config.older_than), dry_run=config.dry_run
    )
    done = "would be deleted" if config.dry_run else "deleted"
    text = f"{len(found.keys):,} objects, {found.bytes:,} bytes {done}"
    if found.young:
        text += f"; {found.young:,} younger than {config.older_than} left alone"
    return Answer({**found.to_json(), "dry_run": config.dry_run}, text)


def drop(config: settings.Drop, _context: Context) -> Answer:
    """Drop a group."""
    from store import open as open_store
    from store.maintenance import drop as drop_group

    store = open_store(config.url)
    drop_group(store, config.group, config.reason)
    text = f"group {config.group} of {store.url} is dropped; `actlake gc` frees its bytes"
    return Answer({"url": store.url, "dropped": config.group}, text)


def retire(config: settings.Retire, _context: Context) -> Answer:
    """Retire parts."""
    from store import open as open_store
    from store.maintenance import retire as retire_parts

    store = open_store(config.url)
    new = retire_parts(store, numbers(config.parts), config.reason, group=config.group)
    text = f"{counted(len(new), 'part')} of {config.group} of {store.url} retired; `actlake gc` frees their bytes"
    return Answer({"url": store.url, "group": config.group, "retired": new}, text)


def tombstone(config: settings.Tombstone, _context: Context) -> Answer:
    """Remove documents."""
    from store import open as open_store
    from store.purge import add_tombstone

    store = open_store(config.url)
    before, documents = store.view.tombstones, sorted(set(config.documents))
    made = add_tombstone(store, documents, config.reason)
    since = "were removed already" if made in before else "are removed from now on"
    text = (
        f"{counted(len(documents), 'document')} of {store.url} {since}, for readers that open it and for new pins; "
        f"to delete the bytes: actlake purge {store.url} --reason …"
    )
    return Answer({"url": store.url, "tombstone": made, "documents": documents}, text)


def purge(config: settings.Purge, _context: Context) -> Answer:
    """Delete the bytes of removed documents."""
    from store import open as open_store
    from store.purge import purge as purge_store

    store = open_store(config.url)
    found = purge_store(store, config.reason)
    rows, size = sum(one.rows for one in found), sum(one.deleted_bytes for one in found)
    lines = [
        f"{counted(len(found), 'part')} of {store.url} purged, {rows:,} rows gone, {size:,} bytes deleted"
    ]
    left = [attempt for one in found for attempt in one.left]
    if left:
        lines.append(
            f"{counted(len(left), 'attempt')} of writers that are at work or died may still hold them; `actlake gc` deletes "
            f"those when they are old: {', '.join(left[:3])}"
        )
    parts = [{"part": o.part, "rows": o.rows, "groups": list(o.groups)} for o in found]
    answer = {"url": store.url, "parts": parts, "deleted_bytes": size, "left": left}
    return Answer(answer, "\n".join(lines))


def compact(config: settings.Compact, context: Context) -> Answer:
    """Make indexes, or delete them."""
    from store import open as open_store
    from store.compact import Compacted, discard
    from store.compact import compact as make_indexes

    store = open_store(config.url)
    if config.remove:
        gone = discard(store, config.groups)
        text = f"{counted(len(gone), 'index', 'indexes')} of {store.url} are deleted; `actlake gc` frees their bytes"
        return Answer({"url": store.url, "deleted": gone}, text)

    def line(one: Compacted) -> str:
        if not one.parts:
            return f"{one.group} {one.table}: nothing to join, its parts are few or large"
        return (
            f"{one.group} {one.table}: {one.rows:,} rows of {one.parts:,} parts in {one.files:,} files, "
            f"{one.written:,} of them new"
        )

    scratch = Path(config.scratch) if config.scratch else None
    found = make_indexes(store, config.groups, scratch=scratch, progress=context.progress)
    return Answer([one.to_json() for one in found], "\n".join(map(line, found)))


def doctor(config: settings.Doctor, _context: Context) -> Answer:
    """Try a storage out."""
    from store.maintenance import doctor as examine

    found = examine(config.url)
    lines = [f"{'ok ' if one['ok'] else 'BAD'} {one['check']:<18} {one['found']}" for one in found]
    good = all(one["ok"] for one in found)
    return Answer({"url": config.url, "ok": good, "checks": found}, "\n".join(lines), 1 - good)


def seconds(text: str) -> float:
    """Read ``7d``, ``12h``, ``30m`` or ``0``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if found is None:
        raise UsageError(
            f"--older-than is {text!r}; it takes an age as 7d, 12h, 30m or 0. Nothing was deleted.",
            kind="bad-number",
        )
    return float(found[1]) * _UNITS[found[2]]


def numbers(text: str) -> list[int]:
    """Read ``3,7`` or ``0-99``."""
    ranges = []
    for item in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,8})(?:-(\d{1,8}))?\s*", item)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise UsageError(
                f"--parts is {text!r}; it takes part numbers as 3,7 or 0-99. Nothing was changed.",
                kind="bad-number",
            )
        ranges.append(range(int(match[1]), int(match[2] or match[1]) + 1))
    if sum(map(len, ranges)) > _MOST_PARTS:
        raise UsageError(
            f"--parts is {text!r}, {sum(map(len, ranges)):,} parts; at most {_MOST_PARTS:,} are taken at once. Nothing was "
            "changed. Name fewer.",
            kind="bad-number",
        )
    return [number for one in ranges for number in one]
