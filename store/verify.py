"""Checksums, identities, counts and orphans of a whole store; reports, never repairs in silence."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from store import layout, tables
from store.assets import MANIFEST, check_asset
from store.checksum import extend
from store.commits import Commit, exists, list_commits
from store.digest import digest
from store.errors import CorruptError, NotFoundError, StoreError
from store.index_care import check_index
from store.index_records import index_keys
from store.layout import CHUNK_ROWS
from store.pins import load_pin
from store.posix import TEMPORARY
from store.schema import NAME, Column, Group
from store.storage import Storage
from store.tombstones import list_tombstones, load_tombstone
from store.view import View

if TYPE_CHECKING:
    from store.reader import Store


_CRC_BYTES = 8 << 20


@dataclass(kw_only=True)
class Report:
    """What a verification found.

    ``problems`` and ``orphans`` are JSON values; orphans (files no record names: what a killed or a working
    writer has written so far) are harmless: no reader ever looks at them, and gc removes old ones.
    """

    groups: int = 0
    parts: int = 0
    rows: int = 0
    checked_bytes: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    failed_parts: list[str] = field(default_factory=list)
    digest: str | None = None

    @property
    def ok(self) -> bool:
        """Whether every committed byte is what its commit says."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return the report for programs."""
        return {
            "ok": self.ok,
            "groups": self.groups,
            "parts": self.parts,
            "rows": self.rows,
            "checked_bytes": self.checked_bytes,
            "problems": self.problems,
            "orphans": self.orphans,
            "failed_parts": self.failed_parts,
            "digest": self.digest,
        }


def verify(
    store: Store,
    *,
    groups: Sequence[str] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Report:
    """Read and check every byte that some groups (default: all) and the records commit to.

    Parameters
    ----------
    progress
        Called with a group's name and the bytes checked so far, after each part.

    Returns
    -------
    Report
        Every problem, with group, part, column and chunk; and the digest where there is none.
    """
    store = store.refresh()
    report = Report()
    names = _guard(report, _names, store) or []
    for name in names:
        if groups is None or name in groups:
            report.groups += 1
            _guard(report, _verify_group, store.view, name, report, progress)
    _verify_records(store, report)
    report.orphans = sorted(_orphans(store.view, names))
    if report.ok and names:
        wanted = [name for name in names if groups is None or name in groups]
        report.digest = _guard(report, digest, store.view, wanted)
    return report


def _guard(report: Report, check: Callable[..., Any], *arguments: Any) -> Any:
    """Run a check; what it raises is a problem of the report."""
    try:
        return check(*arguments)
    except StoreError as error:
        report.problems.append(error.to_json())
        return None


def _verify_group(
    view: View, name: str, report: Report, progress: Callable[[str, int], None] | None
) -> None:
    group = view.group(name)
    rows, unread = 0, False
    for part in view.parts(name):
        commit = _guard(report, view.commit, name, part)
        if commit is None:
            unread = True
            continue
        report.parts += 1
        rows += commit.slots
        _guard(report, _verify_rows, view, commit)
        for path in commit.objects:
            _guard(report, _verify_object, view, group, commit, path, report)
        if progress is not None:
            progress(name, report.checked_bytes)
    report.rows += rows if name == "tokens" else 0
    _guard(report, _verify_seal, view, name, None if unread else rows)
    for key in index_keys(view.storage, name):
        _guard(report, check_index, view, key)
    report.failed_parts += sorted(view.storage.keys(f"groups/{name}/failed"))


def _verify_rows(view: View, commit: Commit) -> None:
    """Check that tokens number their rows as the format says, and that other groups cover the part's rows."""
    good = _numbered(view, commit) if commit.group == "tokens" else _covered(view, commit)
    if not good:
        raise CorruptError(
            f"part {commit.part} of group {commit.group!r} does not hold the rows its commit says. Make "
            "the group again under another name.",
            kind="rows-differ",
            group=commit.group,
            part=commit.part,
        )


def _numbered(view: View, commit: Commit) -> bool:
    """Return whether tokens have the row ids of their part, and its sequences hold them, one behind the other."""
    base = commit.part * view.stride_rows
    row = tables.column(view.objects.stored_table(commit, "tokens.parquet"), "row")
    data = view.objects.stored_table(commit, "sequences.parquet")
    first, rows = (tables.column(data, name).astype(np.int64) for name in ("first_row", "rows"))
    inside = (rows > 0).all() and len(row) == commit.slots - commit.purged == rows.sum()
    if not inside or not np.array_equal(tables.column(data, "seq_id"), first):
        return False
    held = np.repeat(first - np.cumsum(rows) + rows, rows) + np.arange(len(row))
    low, high = (row[0], row[-1]) if len(row) else (base, base)
    ascending = bool((np.diff(row) > 0).all())
    return np.array_equal(held, row) and base <= low <= high < base + commit.slots and ascending


def _covered(view: View, commit: Commit) -> bool:
    """Return whether a group's part has a slot for each of the tokens (or of its sample), and a line in its tables."""
    tokens = view.commit("tokens", commit.part)
    base = commit.part * view.stride_rows
    masked = view.group(commit.group).masked
    held = (
        tables.column(view.objects.stored_table(commit, "rows.parquet"), "row")
        if masked
        else base + np.arange(tokens.slots)
    )
    if commit.slots != len(held):
        return False
    if "scalars.parquet" not in commit.objects:
        return True
    row = tables.column(view.objects.stored_table(commit, "scalars.parquet"), "row")
    kept = view.kept(commit)
    wanted = held if kept is None else kept
    # Where documents were removed, a table may still have their rows, or was written without them.
    return bool(
        np.isin(row, held).all() and np.isin(wanted, row).all() and (np.diff(row) > 0).all()
    )


def _verify_object(view: View, group: Group, commit: Commit, path: str, report: Report) -> None:
    for column in group.columns.values():
        if column.kind == "dense" and path == layout.shard_path(column.name, 1 + len(column.shape)):
            _verify_shard(view, commit, column, path, report)
            return
    view.objects.check(commit, path)
    report.checked_bytes += commit.objects[path].size


def _verify_shard(view: View, commit: Commit, column: Column, path: str, report: Report) -> None:
    """Check a shard chunk by chunk, so that each bad chunk is named, then as a whole."""
    item = commit.objects[path]
    reader = view.objects.open_shard(commit, column)
    bad = len(report.problems)
    out = np.empty((CHUNK_ROWS, *column.shape), column.stored)
    for chunk in range(-(-commit.slots // CHUNK_ROWS)):
        _guard(report, reader.read_chunk, chunk, out)
    report.checked_bytes += item.size
    if len(report.problems) == bad and _crc(view, commit.prefix + path, item.size) != item.crc32c:
        raise CorruptError(
            f"the shard of group {commit.group!r}, part {commit.part}, column {column.name!r} was changed "
            "outside its chunks and index (its values are intact). Restore it from a copy.",
            kind="object-damaged",
            group=commit.group,
            part=commit.part,
            column=column.name,
        )


def _crc(view: View, key: str, size: int) -> str:
    crc, buffer = 0, np.empty(min(size, _CRC_BYTES), np.uint8)
    for low in range(0, size, _CRC_BYTES):
        piece = buffer[: min(_CRC_BYTES, size - low)]
        view.storage.read_into(key, [(low, piece)])
        crc = extend(crc, piece)
    return f"{crc:08x}"


def _verify_seal(view: View, name: str, rows: int | None) -> None:
    """Check that what a seal counts is there; ``rows`` is None where some part could not be counted."""
    sealed = view.sealed(name)
    parts = view.parts(name)
    gone = view.retired(name)
    if view.group(name).states:  # no state is shown that was made of rows that were removed
        gone = gone | {part for part in view.parts("tokens") if view.visible(part) is not None}
    retired = {part for part in gone if sealed and part < sealed["parts"]}
    if retired or rows is None:  # how many rows they had is gone with them, or said already
        rows = sealed["rows"] if sealed is not None else rows
    counted = len(parts) + len(retired)
    if sealed is not None and (sealed["parts"], sealed["rows"]) != (counted, rows):
        raise CorruptError(
            f"group {name!r} is sealed with {sealed['parts']} parts and {sealed['rows']} rows; "
            f"{len(parts)} parts with {rows} rows are committed. Restore the missing records.",
            kind="seal-broken",
            group=name,
        )
    extra = sorted(set(list_commits(view.storage, name)) - set(parts) - gone)
    if extra and view.pin is None:
        raise CorruptError(
            f"group {name!r} has commits of parts {extra[:8]}, which the tokens do not have (they are "
            "sealed before them, or a tokens record is gone). Readers ignore them. Restore the tokens "
            "record from a copy, if there was one.",
            kind="beyond-seal",
            group=name,
        )


def _names(store: Store) -> list[str]:
    return list(store.groups)


def _verify_pin(store: Store, key: str) -> None:
    load_pin(store.view.storage, store.id, key.removeprefix("pins/").removesuffix(".json"))


def _verify_records(store: Store, report: Report) -> None:
    storage = store.view.storage
    for key in list(storage.keys("pins")):
        if key.endswith(".json"):
            _guard(report, _verify_pin, store, key)
    for tombstone in list_tombstones(storage):
        _guard(report, load_tombstone, storage, tombstone)
    for asset in filter(NAME.fullmatch, storage.folders("assets")):
        if exists(storage, f"assets/{asset}/{MANIFEST}"):
            report.checked_bytes += _guard(report, check_asset, storage, asset) or 0
    for asset in sorted(_named_assets(store, _guard(report, _names, store) or [])):
        if not exists(storage, f"assets/{asset}/{MANIFEST}"):
            _guard(report, check_asset, storage, asset)


def _named_assets(store: Store, groups: Sequence[str]) -> set[str]:
    """Return the assets that recipes and readable commits name."""
    named = {
        str(store.groups[group].recipe.get(name) or "")
        for group in groups
        for name in ("tokenizer", "dictionary", "truth")
    }
    for group in groups:
        with contextlib.suppress(StoreError):
            commits = (store.view.commit(group, part) for part in store.view.parts(group))
            named |= {str(commit.provenance.get("model") or "") for commit in commits}
    return {asset for asset in named if re.fullmatch(r"[0-9a-f]{64}", asset)}


def _orphans(view: View, groups: Sequence[str]) -> Iterator[str]:
    """Yield attempt folders that no commit names, assets without a manifest, and temporary files."""
    storage = view.storage
    for name in groups:
        for folder in storage.folders(f"groups/{name}/parts"):
            if re.fullmatch(r"[0-9]{8}", folder):
                yield from _orphan_attempts(view, name, int(folder))
    for asset in filter(NAME.fullmatch, storage.folders("assets")):
        if not exists(storage, f"assets/{asset}/{MANIFEST}") and _holds(storage, f"assets/{asset}"):
            yield f"assets/{asset}"
    for key in storage.keys(""):
        if "/parts/" not in key and key.rpartition("/")[2].startswith(TEMPORARY):
            yield key


def _orphan_attempts(view: View, name: str, part: int) -> Iterator[str]:
    """Yield a part's attempts that its record does not name; none where the record cannot be read.

    A writer at work has an attempt here too, until it commits.
    """
    named = None
    try:
        named = view.commit(name, part).attempt
    except NotFoundError:
        if exists(view.storage, layout.commit_key(name, part)):
            return
    except StoreError:
        return
    prefix = f"groups/{name}/parts/{part:08d}"
    for attempt in view.storage.folders(prefix):
        if attempt != named and _holds(view.storage, f"{prefix}/{attempt}"):
            yield f"{prefix}/{attempt}"


def _holds(storage: Storage, prefix: str) -> bool:
    """Return whether there is anything in a folder: who dies before its first file leaves an empty one."""
    return next(iter(storage.keys(prefix)), None) is not None
