"""``gc``, ``drop``, ``retire`` and ``doctor``."""

from __future__ import annotations

import re

from jobs import config as settings
from jobs.errors import UsageError
from jobs.verbs.contract import Answer, Context

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
    text = f"{len(new)} parts of {config.group} of {store.url} are retired; `actlake gc` frees their bytes"
    return Answer({"url": store.url, "group": config.group, "retired": new}, text)


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
    found: list[int] = []
    for item in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,8})(?:-(\d{1,8}))?\s*", item)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise UsageError(
                f"--parts is {text!r}; it takes part numbers as 3,7 or 0-99. Nothing was changed.",
                kind="bad-number",
            )
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found
