"""Removing documents: a tombstone hides their rows from readers, a purge takes their bytes.

Nothing else changes: row ids, slots and all other values stay. Each affected part gets a commit n + 1, tokens first, then
every group, whose objects lack the removed rows: tables do without them, shards hold zeros in their slots, coded rows of
the others are copied as they lie. The new part is read back before anyone sees it: it says what the old one says without
those rows, or is not made. Then the old objects are deleted. A purge that was interrupted, or that a writer of the old
tokens came in behind, is completed by the next one.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from store import layout, tables
from store.attempts import Attempt
from store.commits import Commit, create_retired, exists, latest_commit, load_commit
from store.errors import CorruptError, NotFoundError, StoreError, UnavailableError
from store.index_care import forget
from store.layout import CHUNK_ROWS
from store.records import sha256
from store.schema import NAME, Column, check_reason
from store.tombstones import tombstone_key
from store.view import View

if TYPE_CHECKING:
    from store.reader import Store

Array = np.ndarray[Any, np.dtype[Any]]


def add_tombstone(store: Store, doc_ids: Iterable[int], reason: str) -> str:
    """Remove documents from what readers see from now on; a pin made before still shows them. Return the tombstone's id.

    Documents that are removed already stay so; where all of them are, the id is that of a tombstone that removed one.

    Raises
    ------
    NotFoundError
        ``document-missing``: the store holds no such document. Nothing was changed.
    """
    check_reason(reason)
    view = store.live().view
    wanted = np.unique(np.array([operator.index(doc) for doc in doc_ids], np.int64))
    before = view.removed
    found = [
        (int(doc), part)
        for part, held in _documents(view)
        for doc in np.setdiff1d(np.intersect1d(wanted, held), before["doc_id"])
    ]
    known = {doc for doc, _ in found} | set(before["doc_id"].tolist())
    if missing := sorted(set(wanted.tolist()) - known) or not len(wanted):
        raise NotFoundError(
            f"documents {missing if len(wanted) else 'none'} were to be removed; {store.url} holds no such "
            "documents. Nothing was changed. The table `documents` lists their doc_id.",
            kind="document-missing",
        )
    if not found:
        at = int(before["tombstone"][np.isin(before["doc_id"], wanted)][0])
        return view.tombstones[at]
    docs, parts = zip(*sorted(found), strict=True)
    seen = (
        max(*view.parts("tokens"), *view.retired("tokens"), -1) + 1
    )  # a document may go on in parts that are still to come
    columns = {
        "doc_id": list(docs),
        "part": list(parts),
        "seen_parts": [seen] * len(docs),
        "reason": [reason] * len(docs),
    }
    data = tables.encode(tables.table(columns, tables.TOMBSTONE))
    tombstone = sha256(data)
    view.storage.create(tombstone_key(tombstone), data)
    return tombstone


def _documents(view: View) -> Iterator[tuple[int, Array]]:
    """Yield the parts of the tokens that are there, and the ids of the documents each holds, shown or not."""
    for part in view.parts("tokens"):
        commit = view.stored_commit("tokens", part)
        yield part, tables.column(view.objects.stored_table(commit, "documents.parquet"), "doc_id")
    for part in sorted(view.retired("tokens")):
        with contextlib.suppress(NotFoundError, CorruptError):
            yield part, _retired_documents(view, part)


def _retired_documents(view: View, part: int) -> Array:
    """Return the ids of the documents of a retired part; raise where its bytes are gone or damaged."""
    n = max(latest_commit(view.storage, "tokens", part), 0)
    commit = load_commit(view.storage, view.store_id, "tokens", part, n)
    return tables.column(view.objects.stored_table(commit, "documents.parquet"), "doc_id")


def _retired_with(view: View, removed: Array) -> Iterator[int]:
    """Yield the retired parts that hold, or may hold, bytes of some documents."""
    for part in sorted(view.retired("tokens")):
        try:
            held = bool(np.isin(_retired_documents(view, part), removed).any())
        except (NotFoundError, CorruptError):  # some of it is deleted: nobody may read the rest
            names = view.storage.folders("groups")
            held = any(any(view.storage.keys(f"groups/{n}/parts/{part:08d}")) for n in names)
        if held:
            yield part


@dataclass(frozen=True, kw_only=True, slots=True)
class Purged:
    """What a purge took out of one part."""

    part: int
    rows: int
    """Rows whose bytes are gone from the tokens and every group."""
    groups: tuple[str, ...]
    """Groups that were written anew, or lost their state of the part."""
    deleted_bytes: int
    left: tuple[str, ...]
    """Attempts of writers that are at work or died; they may hold the rows. gc deletes them when they are old."""


def purge(store: Store, reason: str) -> list[Purged]:
    """Delete the bytes of every document that a tombstone removed, and return what went, part by part.

    What nobody may read any more (retired parts, dropped groups) is deleted in those parts without waiting for gc, and
    so are the indexes that hold copies of them; `actlake compact` makes new ones.

    Raises
    ------
    StoreError
        ``purge-incomplete``: some parts could not be purged, the others were.
    """
    check_reason(reason)
    view = store.live().view
    if not view.tombstones:
        return []
    retired = view.retired("tokens")
    parts = {part for part in view.parts("tokens") if view.hides(part)}
    parts |= set(_retired_with(view, view.removed["doc_id"]))
    found, failed = list[Purged](), dict[int, StoreError]()
    for part in sorted(parts):
        try:
            found.append(_purged(store, part, reason))
        except StoreError:  # another purge may have been at it: look again, once
            try:
                found.append(_purged(store, part, reason))
            except StoreError as error:
                failed[part] = error
    view = store.live().view
    forget(view, parts | view.retired("tokens"))
    if retired != view.retired("tokens"):
        _seal_complete(store.live())
    if failed:
        raise _incomplete(store, failed) from next(iter(failed.values()))
    return [one for one in found if one.groups or one.deleted_bytes]


def _seal_complete(store: Store) -> None:
    """Seal the groups that waited for a part which is retired now."""
    for name in store.view.groups:
        if name != "tokens" and store.view.sealed(name) is None:
            with contextlib.suppress(StoreError):  # it is damaged, which verify says
                store.seal(name)


def _incomplete(store: Store, failed: Mapping[int, StoreError]) -> StoreError:
    part, error = next(iter(failed.items()))
    passing = all(isinstance(one, UnavailableError) for one in failed.values())
    return (UnavailableError if passing else StoreError)(
        f"documents were to be purged from {store.url}; {len(failed)} parts could not be ({', '.join(map(str, failed))[:60]}), "
        f"and still hold their bytes. All other parts were purged. Mend those, then purge again. Part {part}: "
        f"{error.message}",
        kind="purge-incomplete",
        part=part,
    )


def _purged(store: Store, part: int, reason: str) -> Purged:
    """Purge one part."""
    view, groups, rows = store.live().view, [], 0
    if part in view.parts("tokens"):
        visible, slots = view.visible(part), view.stored_commit("tokens", part).slots
        rows = 0 if visible is None else slots - len(visible)
        if rows == slots:
            create_retired(view.storage, view.store_id, "tokens", part, reason)
        elif rows:
            groups = list(_brought_up(view, part, reason))  # behind a purge that was interrupted
            if view.unpurged(part):
                _rewrite(view, "tokens", view.stored_commit("tokens", part), reason)
                groups = ["tokens", *_brought_up(store.live().view, part, reason)]
    view = store.live().view
    keys = list(_unreachable(view, part))
    size = 0
    for key in keys:
        with contextlib.suppress(
            StoreError
        ):  # temporary files have no legal key; another purge may have been faster
            size += view.storage.size(key)
    view.storage.delete(keys)
    return Purged(
        part=part,
        rows=rows,
        groups=tuple(groups),
        deleted_bytes=size,
        left=tuple(_left(view, part)),
    )


def _brought_up(view: View, part: int, reason: str) -> Iterator[str]:
    """Write anew, and yield, the groups whose commit of a part was made from tokens that were purged since.

    A commit of tokens the store never had stays as it is: no reader takes it.
    """
    earlier = view.earlier_tokens(part)
    for name, group in view.groups.items():
        commit = _latest(view, name, part)
        shown = not group.states and part not in view.retired(name)
        if commit is not None and shown and commit.tokens in earlier:
            _rewrite(view, name, commit, reason)
            yield name


def _latest(view: View, name: str, part: int) -> Commit | None:
    """Return the last commit of a part, whether a reader takes it or not."""
    n = latest_commit(view.storage, name, part)
    return None if n < 0 else load_commit(view.storage, view.store_id, name, part, n)


def _unreachable(view: View, part: int) -> Iterator[str]:
    """Yield the objects of a part that no reader may read: of earlier commits, dropped groups, retired parts, states."""
    storage = view.storage
    live = part in view.parts("tokens")
    purged = live and view.visible(part) is not None and not view.unpurged(part)
    for name in filter(NAME.fullmatch, storage.folders("groups")):
        prefix = f"groups/{name}/parts/{part:08d}"
        group = view.groups.get(name)
        if group is None or part in view.retired(name) or (group.states and purged):
            # A group that is being declared has no commit yet, and is none of these.
            ended = group is not None or exists(storage, layout.dropped_key(name))
            yield from storage.keys(prefix) if ended else ()
            continue
        for n in range(latest_commit(storage, name, part)):
            old = load_commit(storage, view.store_id, name, part, n)
            yield from storage.keys(old.prefix)


def _left(view: View, part: int) -> Iterator[str]:
    """Yield the attempts of a part that no reader takes and that are no purge's to delete."""
    for name in view.groups:
        commit = _latest(view, name, part)
        current = view.stored_commit("tokens", part).hash if part in view.parts("tokens") else ""
        taken = commit is not None and (name == "tokens" or commit.tokens == current)
        prefix = f"groups/{name}/parts/{part:08d}"
        for attempt in view.storage.folders(prefix):
            if commit is None or not taken or attempt != commit.attempt:
                yield f"{prefix}/{attempt}"


# -- writing a part anew ---------------------------------------------------------------------------------------


def _rewrite(view: View, name: str, old: Commit, reason: str) -> None:
    """Commit n + 1 of a part of a group: what its objects hold of the rows that may be read."""
    group, tokens = view.group(name), view.stored_commit("tokens", old.part)
    attempt = Attempt(
        storage=view.storage,
        store_id=view.store_id,
        group=group,
        part=old.part,
        stride_rows=view.stride_rows,
        n=old.n + 1,
    )
    try:
        kept = _put_objects(view, attempt, old)
        attempt.commit(
            old.slots,
            tokens=None if name == "tokens" else tokens.hash,
            summary=old.summary,
            provenance=old.provenance,
            position=old.position,
            without=() if name == "tokens" else view.hiding(old.part),
            check=lambda new: _check_same(view, old, new),
            replacing={"replaces": old.hash, "reason": reason, "purged": old.slots - kept},
        )
    except BaseException:
        attempt.drop()
        raise


def _check_same(view: View, old: Commit, new: Commit) -> None:
    """Raise unless a part written anew holds what the old one did of the rows that may be read, and nothing else."""
    slots = view.slots(old)
    assert slots is not None
    good = all(
        tables.same(view.table(old, path), view.objects.stored_table(new, path))
        for path in old.objects
        if path.endswith(".parquet") and path != "rows.parquet"
    )
    for column in view.group(old.group).columns.values():
        if good and column.kind == "dense":
            good = _same_rows(view, old, new, column, slots)
    if not good:
        raise StoreError(
            f"part {old.part} of group {old.group!r} of {view.storage.url}, written anew without the removed "
            "documents, does not read as it did. It was not made, nothing was deleted. Look at the disk and the memory of "
            "this machine, then purge again.",
            kind="purge-differs",
            group=old.group,
            part=old.part,
        )


def _same_rows(view: View, old: Commit, new: Commit, column: Column, slots: Array) -> bool:
    """Return whether two shards hold the same bits in some slots, and the new one zeros in all others."""
    readers = [view.objects.open_shard(commit, column) for commit in (old, new)]
    before, after = (np.empty((CHUNK_ROWS, *column.shape), column.stored) for _ in readers)
    for low in range(0, old.slots, CHUNK_ROWS):
        high = min(low + CHUNK_ROWS, old.slots)
        for reader, rows in zip(readers, (before, after), strict=True):
            reader.read(low, high, rows[: high - low])
        gone = np.setdiff1d(np.arange(low, high), slots) - low
        before[gone] = 0
        if before[: high - low].tobytes() != after[: high - low].tobytes():
            return False
    return True


def _put_objects(view: View, attempt: Attempt, old: Commit) -> int:
    """Write every object of a part without the rows that were removed; return how many rows are left."""
    slots = view.slots(old)
    assert slots is not None
    group = view.group(old.group)
    for path in old.objects:
        if path.endswith(".parquet") and path != "rows.parquet":
            data = view.table(old, path)
            attempt.put(path, tables.encode(data), len(data))
    if "rows.parquet" in old.objects:  # slots are counted by it, so it stays as it is
        attempt.put("rows.parquet", view.storage.get(old.prefix + "rows.parquet"), old.slots)
    for column in group.columns.values():
        if column.kind == "dense":
            _put_shard(view, attempt, old, column, slots)
    return len(slots)


def _put_shard(view: View, attempt: Attempt, old: Commit, column: Column, slots: Array) -> None:
    reader, writer = view.objects.open_shard(old, column), attempt.shard(column)
    gone = np.setdiff1d(np.arange(old.slots), slots)
    for chunk in range(-(-old.slots // CHUNK_ROWS)):
        mine = gone[gone // CHUNK_ROWS == chunk] % CHUNK_ROWS
        writer.append_coded(reader.blanked(chunk, mine))
    writer.rows = old.slots
