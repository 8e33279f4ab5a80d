"""What one reader sees of a store: groups, committed parts, records, verified tables and shards.

A view lists names when it first needs them and keeps the answer, so two reads through one view agree; a pin
fixes the answer for ever. Records, tables and shards are checked when first touched and then trusted. Threads
may share a view.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from store import layout, tables
from store.checksum import crc32c
from store.commits import (
    Commit,
    exists,
    expected_objects,
    list_retired,
    load_commit,
    load_group,
    load_sealed,
)
from store.coverage import Coverage, live_parts
from store.errors import (
    CorruptError,
    InvalidInputError,
    NotFoundError,
    StoreError,
    UnsupportedVersionError,
)
from store.partials import check_partial_size, decode_partial, partial_path
from store.pins import load_pin
from store.schema import NAME, Column, Group
from store.shards import Scratch, ShardReader, identity
from store.storage import Storage

_OPEN_SHARDS = 256  # readers kept, each with its index and one bit a chunk
_OPEN_TABLES = 64


class View:
    """Groups and commits of a store, live or pinned."""

    def __init__(
        self, storage: Storage, store_id: str, stride_rows: int, pin: str | None = None
    ) -> None:
        self.storage = storage
        self.store_id = store_id
        self.stride_rows = stride_rows
        self.pin = pin
        self._pinned = None if pin is None else load_pin(storage, store_id, pin)
        self._groups: dict[str, Group] | None = None
        self._parts: dict[str, dict[int, int]] = {}
        self._commits: dict[tuple[str, int], Commit] = {}
        self._sealed: dict[str, dict[str, Any] | None] = {}
        self._shards: OrderedDict[tuple[str, str], ShardReader] = OrderedDict()
        self._tables: OrderedDict[str, Any] = OrderedDict()
        self._verified: set[str] = set()
        self._retired: dict[str, set[int]] = {}
        self._scratch = Scratch()
        self._lock = threading.RLock()
        if any(True for _ in storage.keys("tombstones")):
            raise UnsupportedVersionError(
                f"{storage.url} has documents marked as removed (tombstones/), which this version cannot "
                "leave out. Nothing was read. Upgrade actlake."
            )

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

        Raises
        ------
        CorruptError
            ``part-missing``: a record is gone. Tokens are written in part order, so a gap in them is damage,
            and so is a part a seal counts that is not there.
        """
        self.group(name)
        if name not in self._parts:
            if self._pinned is not None:
                found = {part: n for (group, part), (n, _) in self._pinned.items() if group == name}
            else:
                found = live_parts(
                    self.storage,
                    name,
                    sealed=self.sealed(name),
                    ends=self.sealed("tokens"),
                    retired=self.retired(name),
                    tokens=None if name == "tokens" else self.parts("tokens"),
                )
            self._parts[name] = dict(sorted(found.items()))
        return self._parts[name]

    def commit(self, name: str, part: int) -> Commit:
        """Return the record of one part, checked against the pin and against the tokens it was made from."""
        key = (name, part)
        if key not in self._commits:
            n = self.parts(name).get(part)
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
            commit = load_commit(self.storage, self.store_id, name, part, n)
            self._check_commit(commit)
            self._commits[key] = commit
        return self._commits[key]

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
        place = f"part {commit.part} of group {commit.group!r}"
        if self._pinned is not None:
            want = self._pinned[commit.group, commit.part][1]
            if commit.hash != want:
                raise self._purged(
                    commit.group, commit.part, f"another now ({want[:12]} → {commit.hash[:12]})"
                )
        if commit.rows > self.stride_rows:
            raise CorruptError(
                f"{place} claims {commit.rows} rows; a part numbers {self.stride_rows}. It was not used. "
                "`actlake verify` lists all damage.",
                kind="record-invalid",
                group=commit.group,
                part=commit.part,
            )
        if missing := sorted(expected_objects(self.group(commit.group)) - set(commit.objects)):
            raise CorruptError(
                f"the commit of {place} does not list {', '.join(missing)}. None of its rows were returned. "
                "Restore the record from a copy.",
                kind="object-missing",
                group=commit.group,
                part=commit.part,
            )
        if commit.recipe != self.group(commit.group).recipe_hash:
            raise CorruptError(
                f"{place} was committed under another recipe ({commit.recipe[:12]}). It was not used. "
                "`actlake verify` lists all damage.",
                kind="foreign-record",
                group=commit.group,
                part=commit.part,
            )
        if commit.group != "tokens":
            tokens = self.commit("tokens", commit.part)
            if commit.tokens != tokens.hash:
                raise StoreError(
                    f"{place} was computed from other tokens ({str(commit.tokens)[:12]}) than the store "
                    f"now holds ({tokens.hash[:12]}). It was not used. Make the group again.",
                    kind="tokens-mismatch",
                    group=commit.group,
                    part=commit.part,
                )

    def coverage(self, name: str) -> Coverage:
        """Return how far a group reaches."""
        parts = self.parts(name)
        return Coverage(
            parts=len(parts),
            rows=sum(self.commit(name, part).rows for part in parts),
            sealed=self.sealed(name) is not None,
            tokens_parts=len(self.parts("tokens")),
        )

    # -- objects ---------------------------------------------------------------------------------------

    def check(self, commit: Commit, path: str) -> bytes | None:
        """Verify a whole object once; return its bytes where this call read them."""
        key = commit.prefix + path
        if key in self._verified:
            return None
        item = commit.objects.get(path)
        place = f"{path} of group {commit.group!r}, part {commit.part}"
        where = {"path": key, "group": commit.group, "part": commit.part}
        tail = "None of its rows were returned. Restore the file from a copy."
        if item is None:
            raise CorruptError(
                f"{place} is not listed in its commit. {tail}", kind="object-missing", **where
            )
        try:
            data = self.storage.get(key)
        except NotFoundError as error:
            raise CorruptError(
                f"{place} is gone. {tail}", kind="object-missing", **where
            ) from error
        if len(data) != item.size:
            raise CorruptError(
                f"{place} has {len(data)} bytes where its commit says {item.size}. {tail}",
                kind="object-size",
                **where,
            )
        if f"{crc32c(data):08x}" != item.crc32c:
            raise CorruptError(
                f"{place} does not fit its crc32c. {tail}", kind="object-damaged", **where
            )
        self._verified.add(key)
        return data

    def table(self, commit: Commit, path: str) -> Any:
        """Return one Parquet object of a commit as an Arrow table, verified."""
        key = commit.prefix + path
        with self._lock:
            if key not in self._tables:
                data = self.check(commit, path) or self.storage.get(key)
                self._tables[key] = self._decoded(commit, path, data)
                if len(self._tables) > _OPEN_TABLES:
                    self._tables.popitem(last=False)
            self._tables.move_to_end(key)
            return self._tables[key]

    def _decoded(self, commit: Commit, path: str, data: bytes) -> Any:
        found = tables.decode(data, commit.prefix + path)
        if len(found) != commit.objects[path].rows:
            raise CorruptError(
                f"{path} of group {commit.group!r}, part {commit.part} holds {len(found)} rows where its "
                f"commit says {commit.objects[path].rows}. None of them were returned. Restore the file "
                "from a copy.",
                kind="rows-differ",
                path=commit.prefix + path,
                group=commit.group,
                part=commit.part,
            )
        return found

    def lazy_sources(self, group: str, path: str) -> list[Any]:
        """Return the verified files (or bytes) of one table over all parts, in part order."""
        sources: list[Any] = []
        for part in self.parts(group):
            commit = self.commit(group, part)
            data = self.check(commit, path)
            local = self.storage.local_path(commit.prefix + path)
            sources.append(local or data or self.storage.get(commit.prefix + path))
        return sources

    def shard(self, commit: Commit, column: Column) -> ShardReader:
        """Return the open shard of a dense column."""
        key = (commit.prefix, column.name)
        with self._lock:
            if key not in self._shards:
                self._shards[key] = self.open_shard(commit, column)
                if len(self._shards) > _OPEN_SHARDS:
                    self._shards.popitem(last=False)
            self._shards.move_to_end(key)
            return self._shards[key]

    def open_shard(self, commit: Commit, column: Column) -> ShardReader:
        """Return a reader of a dense column's shard that has verified no chunk yet."""
        item = commit.objects[layout.shard_path(column.name, 1 + len(column.shape))]
        return ShardReader(
            self.storage,
            commit.prefix,
            column,
            identity(self.store_id, commit.group, commit.part, column.name, commit.attempt),
            rows=commit.rows,
            stride_rows=self.stride_rows,
            size=item.size,
            scratch=self._scratch,
        )

    def partial(self, commit: Commit, column: Column) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """Return the state in a partial column of a commit, verified; its arrays are read-only."""
        path = partial_path(column.name)
        key = commit.prefix + path
        check_partial_size(commit.objects[path].size, key)
        data = self.check(commit, path)
        return decode_partial(self.storage.get(key) if data is None else data, key)

    def kept(self, commit: Commit) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        """Return the row ids a masked group's part holds, or None where it holds all."""
        if not self.group(commit.group).masked:
            return None
        return np.asarray(tables.column(self.table(commit, "rows.parquet"), "row"), np.int64)

    # -- columns ---------------------------------------------------------------------------------------

    def resolve(self, address: str) -> tuple[Group, Column]:
        """Return the column behind ``group:site``, or behind ``site`` where only one group has it."""
        name, found, site = address.rpartition(":")
        if found:
            group = self.group(name)
            if site in group.columns:
                return group, group.columns[site]
        else:
            holders = [group for group in self.groups.values() if site in group.columns]
            if len(holders) == 1:
                return holders[0], holders[0].columns[site]
            if holders:
                raise InvalidInputError(
                    f"column {site!r} is in several groups: {', '.join(g.name for g in holders)}. Nothing "
                    f"was read. Say which: {holders[0].name}:{site}",
                    kind="ambiguous-column",
                )
        known = ", ".join(f"{g.name}:{c}" for g in self.groups.values() for c in g.columns)
        raise NotFoundError(
            f"there is no column {address!r} in {self.storage.url}; known: {known or 'none'}. Nothing was "
            f"read. Add it: actlake ingest --into {self.storage.url} --group NAME --model M --sites {site}",
            kind="column-missing",
            column=address,
        )

    def entries(self, groups: Sequence[str]) -> list[tuple[str, int, int, str]]:
        """Return (group, part, n, commit hash) of all parts of some groups, sorted."""
        return sorted(
            (name, part, n, self.commit(name, part).hash)
            for name in groups
            for part, n in self.parts(name).items()
        )
