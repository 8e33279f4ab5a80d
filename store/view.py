"""What one reader sees of a store: groups, committed parts, records, verified tables and shards.

A view lists names when it first needs them and keeps the answer, so two reads through one view agree; a pin
fixes the answer for ever. Records, tables and shards are checked when first touched and then trusted. Threads
may share a view.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from store import layout, tables
from store.commits import Commit, check_commit, exists, list_retired, load_commit
from store.coverage import Coverage, live_parts
from store.errors import NotFoundError, StoreError
from store.groups import load_group, load_sealed, resolve
from store.objects import Objects, check_whole
from store.pins import load_pin
from store.schema import NAME, Column, Group
from store.shard_reader import RowReader, SomeRows
from store.storage import Storage, each
from store.tombstones import Tombstones, list_tombstones, visible_rows, visible_table

_OPEN_SHARDS = 256  # readers kept, each with its index and one bit a chunk
_OPEN_TABLES = 64
_AT_ONCE = 1024  # records asked for together
_KEPT_RECORDS = 1 << 16  # 3 KB each: a store of a million parts must not fill the memory
Array = np.ndarray[Any, np.dtype[Any]]


class View:
    """Groups and commits of a store, live or pinned."""

    def __init__(
        self, storage: Storage, store_id: str, stride_rows: int, pin: str | None = None
    ) -> None:
        self.storage = storage
        self.store_id = store_id
        self.stride_rows = stride_rows
        self.pin = pin
        pinned = None if pin is None else load_pin(storage, store_id, pin)
        self._pinned = None if pinned is None else pinned.commits
        marks = list_tombstones(storage) if pinned is None else pinned.tombstones
        self._tombstones = Tombstones(storage, marks)
        self._groups: dict[str, Group] | None = None
        self._parts: dict[str, dict[int, int]] = {}
        self._stored: dict[tuple[str, int], Commit] = {}
        self._commits: dict[tuple[str, int], Commit] = {}
        self._visible: dict[int, Array | None] = {}
        self._sealed: dict[str, dict[str, Any] | None] = {}
        self._shards: OrderedDict[tuple[str, str], RowReader] = OrderedDict()
        self._tables: OrderedDict[str, Any] = OrderedDict()
        self._retired: dict[str, set[int]] = {}
        self.objects = Objects(storage, store_id, stride_rows, self.group)
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return View, (self.storage, self.store_id, self.stride_rows, self.pin)

    # -- groups and parts ------------------------------------------------------------------------------

    @property
    def groups(self) -> dict[str, Group]:
        """The groups, by name, tokens first; dropped ones are absent."""
        if self._groups is None:
            names = (
                self.storage.folders("groups")
                if self._pinned is None
                else sorted({name for name, _ in self._pinned})
            )
            self._groups = {
                name: load_group(self.storage, self.store_id, name)
                for name in sorted(names, key=lambda name: (name != "tokens", name))
                if NAME.fullmatch(name) is not None  # other programs leave folders of their own
                and exists(self.storage, layout.group_key(name))
                and not exists(self.storage, layout.dropped_key(name))
            }
        return self._groups

    def group(self, name: str) -> Group:
        """Return a group, or raise ``group-missing`` with the known ones."""
        if name not in self.groups:
            if self._pinned is not None and any(name == group for group, _ in self._pinned):
                raise NotFoundError(
                    f"group {name!r}, which pin {self.pin} lists, was dropped from {self.storage.url}. "
                    "Nothing was read. Open the store without the pin.",
                    kind="purged",
                    group=name,
                )
            raise NotFoundError(
                f"there is no group {name!r} in {self.storage.url}; it holds: "
                f"{', '.join(self.groups) or 'no group yet'}. Nothing was changed.",
                kind="group-missing",
            )
        return self.groups[name]

    def sealed(self, name: str) -> dict[str, Any] | None:
        """Return ``{parts, rows}`` where the group is complete."""
        if name not in self._sealed:
            self._sealed[name] = load_sealed(self.storage, self.store_id, name)
        return self._sealed[name]

    def retired(self, name: str) -> set[int]:
        """Return the parts no reader sees: retired in the group itself or in tokens."""
        if name not in self._retired:
            self._retired[name] = list_retired(self.storage, name) | list_retired(
                self.storage, "tokens"
            )
        return self._retired[name]

    def parts(self, name: str) -> dict[int, int]:
        """Return part → n of the group's committed parts, ascending; parts behind a seal are ignored.

        A group of states has no part of which rows were removed: the state was made of them, too.

        Raises
        ------
        CorruptError
            ``part-missing``: a record is gone. Tokens are written in part order, so a gap in them is damage,
            and so is a part a seal counts that is not there.
        """
        group = self.group(name)
        if name not in self._parts:
            if self._pinned is not None:
                pinned = self._pinned.items()
                found = dict(sorted((part, n) for (group, part), (n, _) in pinned if group == name))
            else:
                found = live_parts(
                    self.storage,
                    name,
                    sealed=self.sealed(name),
                    ends=self.sealed("tokens"),
                    retired=self.retired(name),
                    tokens=None if name == "tokens" else self.parts("tokens"),
                )
            if group.states:
                found = {part: n for part, n in found.items() if self.visible(part) is None}
            self._parts[name] = found
        return self._parts[name]

    def commit(self, name: str, part: int) -> Commit:
        """Return the record of one part, checked against the pin and against the tokens it was made from.

        Its ``rows`` are those that may be read; ``table``, ``shard`` and ``kept`` count them in the same way.
        """
        key = (name, part)
        found = self._commits.get(key)
        if found is None:
            found = self.stored_commit(name, part)
            kept = self.kept(found) if self.hides(part) else None
            found = found if kept is None else replace(found, rows=len(kept))
            self._keep(self._commits, key, found)
        return found

    def commits(self, name: str, parts: Iterable[int] | None = None) -> Iterator[Commit]:
        """Yield the records of some parts of a group (default: all), in part order; see ``commit``."""
        wanted = list(self.parts(name) if parts is None else parts)
        for low in range(0, len(wanted), _AT_ONCE):
            some = wanted[low : low + _AT_ONCE]
            yield from each(self.storage, lambda part: self.commit(name, part), some)

    def stored_commit(self, name: str, part: int) -> Commit:
        """Return the record as it is stored, checked."""
        key = (name, part)
        found = self._stored.get(key)
        if found is None:
            n = self.parts(name).get(part)
            if n is None and self.group(name).states and self.visible(part) is not None:
                raise NotFoundError(
                    f"the state of part {part} in group {name!r} of {self.storage.url} was made of rows that were removed "
                    "since; a part that lost documents keeps no state. Nothing was read. Compute it from the rows that are left.",
                    kind="removed-since",
                    group=name,
                    part=part,
                )
            if n is None:
                raise NotFoundError(
                    f"part {part} of group {name!r} is not committed in {self.storage.url}. Nothing was "
                    "changed. Run the ingest command of that group again to complete it.",
                    kind="part-missing",
                    group=name,
                    part=part,
                )
            if self._pinned is not None:
                self._check_kept(name, part, n)
            found = load_commit(self.storage, self.store_id, name, part, n)
            self._check_commit(found)
            self._keep(self._stored, key, found)
        return found

    def _keep(self, held: dict[tuple[str, int], Commit], key: tuple[str, int], one: Commit) -> None:
        with self._lock:
            held[key] = one
            if len(held) > _KEPT_RECORDS:
                del held[next(iter(held))]  # the first that came

    def _check_kept(self, name: str, part: int, n: int) -> None:
        """Raise ``purged`` where what a pin saw is gone, retired or replaced by a later commit."""
        gone = part in self.retired(name) or not exists(
            self.storage, layout.commit_key(name, part, n)
        )
        if gone or exists(self.storage, layout.commit_key(name, part, n + 1)):
            raise self._purged(name, part, "gone" if gone else "replaced by a later one")

    def _purged(self, name: str, part: int, what: str) -> NotFoundError:
        return NotFoundError(
            f"the commit of part {part} of group {name!r} that pin {self.pin} lists is {what}. Nothing was "
            "read. Open the store without the pin.",
            kind="purged",
            group=name,
            part=part,
        )

    def _check_commit(self, commit: Commit) -> None:
        if self._pinned is not None:
            want = self._pinned[commit.group, commit.part][1]
            if commit.hash != want:
                raise self._purged(
                    commit.group, commit.part, f"another now ({want[:12]} → {commit.hash[:12]})"
                )
        check_commit(commit, self.group(commit.group), self.stride_rows)
        if commit.group != "tokens":
            self._check_tokens(commit)

    def _check_tokens(self, commit: Commit) -> None:
        """Raise unless a commit was made from the tokens, and without the documents, that this view sees."""
        place = f"part {commit.part} of group {commit.group!r}"
        where = {"group": commit.group, "part": commit.part}
        tokens = self.stored_commit("tokens", commit.part)
        if commit.tokens in self.earlier_tokens(commit.part):
            raise StoreError(
                f"documents are being purged from {place}, or a purge was interrupted: the group still holds "
                "them. It was not used. Run `actlake purge` again to complete it.",
                kind="purge-unfinished",
                **where,
            )
        if commit.tokens != tokens.hash and not self.objects.was_replaced(tokens):
            raise StoreError(
                f"{place} was computed from other tokens ({str(commit.tokens)[:12]}) than the store "
                f"now holds ({tokens.hash[:12]}). It was not used. Make the group again.",
                kind="tokens-mismatch",
                **where,
            )
        if commit.tokens != tokens.hash or not set(commit.without) <= set(self.tombstones):
            raise StoreError(
                f"documents were removed from {place} after this reader listed what is removed; it holds nothing for "
                "their rows. It was not used. Open the store again.",
                kind="removed-since",
                **where,
            )

    def coverage(self, name: str) -> Coverage:
        """Return how far a group reaches."""
        parts = self.parts(name)
        return Coverage(
            parts=len(parts),
            rows=sum(commit.rows for commit in self.commits(name)),
            sealed=self.sealed(name) is not None,
            tokens_parts=len(self.parts("tokens")),
        )

    # -- objects ---------------------------------------------------------------------------------------

    def table(self, commit: Commit, path: str) -> Any:
        """Return one Parquet object of a commit as an Arrow table, verified, without rows that were removed."""
        key = commit.prefix + path
        with self._lock:
            if key not in self._tables:
                self._tables[key] = self._shown(
                    commit, path, self.objects.stored_table(commit, path)
                )
                if len(self._tables) > _OPEN_TABLES:
                    self._tables.popitem(last=False)
            self._tables.move_to_end(key)
            return self._tables[key]

    def _shown(self, commit: Commit, path: str, data: Any) -> Any:
        visible = self.visible(commit.part)
        if visible is not None:
            tokens = self.table(commit, "tokens.parquet") if path == "documents.parquet" else None
            data = visible_table(data, path, visible, tokens)
        if path in {"tokens.parquet", "scalars.parquet"}:
            kept = self.kept(commit)
            check_whole(data, path, commit, commit.slots if kept is None else len(kept))
        return data

    def lazy_sources(self, group: str, path: str, parts: Iterable[int] | None = None) -> list[Any]:
        """Return the verified files (or bytes) of one table over some parts (default: all), in part order."""
        sources: list[Any] = []
        for part in self.parts(group) if parts is None else parts:
            commit = self.commit(group, part)
            if self.visible(part) is not None:
                sources.append(tables.encode(self.table(commit, path)))
                continue
            data = self.objects.check(commit, path)
            local = self.storage.local_path(commit.prefix + path)
            sources.append(local or data or self.storage.get(commit.prefix + path))
        return sources

    def shard(self, commit: Commit, column: Column) -> RowReader:
        """Return the open shard of a dense column, its rows counted without those that were removed."""
        key = (commit.prefix, column.name)
        with self._lock:
            found = self._shards.get(key)
        if found is None:  # without the lock: others open theirs meanwhile
            opened, slots = self.objects.open_shard(commit, column), self.slots(commit)
            found = opened if slots is None else SomeRows(opened, slots)
        with self._lock:
            found = self._shards.setdefault(key, found)
            self._shards.move_to_end(key)
            if len(self._shards) > _OPEN_SHARDS:
                self._shards.popitem(last=False)
        return found

    def kept(self, commit: Commit) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        """Return the ids of the rows that may be read of a part, ascending; None where it holds all the tokens had."""
        if not self.group(commit.group).masked:
            return self.visible(commit.part)
        return np.asarray(tables.column(self.table(commit, "rows.parquet"), "row"), np.int64)

    def slots(self, commit: Commit) -> Array | None:
        """Return where the rows that may be read lie in the part's shards; None where that is all of them."""
        visible = self.visible(commit.part)
        if visible is None:
            return None
        if not self.group(commit.group).masked:
            return visible - commit.part * self.stride_rows
        held = tables.column(self.objects.stored_table(commit, "rows.parquet"), "row")
        return np.flatnonzero(np.isin(held, visible))

    def visible(self, part: int) -> Array | None:
        """Return the ids of the rows of a part that no tombstone and no purge took away; None where that is all."""
        if not self.hides(part):
            return None
        if part not in self._visible:
            tokens = self.stored_commit("tokens", part)
            data = self.objects.stored_table(tokens, "tokens.parquet")
            ids = visible_rows(data, self._tombstones.documents(part))
            self._visible[part] = None if len(ids) == tokens.slots else ids
        return self._visible[part]

    def hiding(self, part: int) -> tuple[str, ...]:
        """Return the tombstones of this view that remove rows of a part."""
        if not len(documents := self._tombstones.documents(part)):
            return ()
        data = self.objects.stored_table(self.stored_commit("tokens", part), "tokens.parquet")
        held = np.intersect1d(documents, tables.column(data, "doc_id"))
        return self._tombstones.naming(part, held)

    def unpurged(self, part: int) -> bool:
        """Return whether objects of a part still hold rows that were removed."""
        visible = self.visible(part)
        if visible is None:
            return False
        tokens = self.stored_commit("tokens", part)
        return len(visible) < tokens.slots - tokens.purged

    def earlier_tokens(self, part: int) -> set[str]:
        """Return the hashes of the tokens commits of a part that a purge replaced."""
        last = self.parts("tokens").get(part, 0)
        if not last or not self.stored_commit("tokens", part).purged:
            return set()
        earlier = (load_commit(self.storage, self.store_id, "tokens", part, n) for n in range(last))
        return {commit.hash for commit in earlier}

    def hides(self, part: int) -> bool:
        """Return whether rows of a part may have been removed; where not, nothing need be read to know."""
        return self.parts("tokens").get(part, 0) > 0 or len(self._tombstones.documents(part)) > 0

    @property
    def tombstones(self) -> tuple[str, ...]:
        """The ids of the tombstones this view obeys, sorted."""
        return self._tombstones.ids

    @property
    def removed(self) -> dict[str, Array]:
        """What the tombstones of this view say; see ``Tombstones.entries``."""
        return self._tombstones.entries

    # -- columns ---------------------------------------------------------------------------------------

    def resolve(self, address: str) -> tuple[Group, Column]:
        """Return the column behind ``group:site``, or behind ``site`` where only one group has it."""
        if ":" in address:
            self.group(address.rpartition(":")[0])
        return resolve(self.groups, address, self.storage.url)

    def entries(self, groups: Sequence[str]) -> list[tuple[str, int, int, str]]:
        """Return (group, part, n, commit hash) of all parts of some groups, sorted."""
        return sorted(
            (name, commit.part, self.parts(name)[commit.part], commit.hash)
            for name in groups
            for commit in self.commits(name)
        )
