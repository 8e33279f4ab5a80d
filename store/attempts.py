"""Attempts at parts: a part of a group is whole or invisible.

The only commit point is one create-only record per (group, part, n). An attempt writes all its objects, each
durable before the record exists, under a random id that nobody else uses; then it creates the record. A crash
before that leaves an attempt no record names, which no reader ever looks at. Of racing attempts the first
record wins; the others read it back, see another attempt's id and delete their own files. Where the answer to
the create was lost, reading back shows one's own id, which is success; and once a record was offered, no error
or interrupt deletes the attempt's files unless the record is known not to name them. Two writers of one recipe
may therefore work on the same part without a lock, and a writer whose driver died may go on without harm.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from store import layout
from store.commits import Commit, Item, check_commit, exists, load_commit
from store.errors import (
    CorruptError,
    InvalidInputError,
    NotFoundError,
    StoreError,
    UnavailableError,
)
from store.records import make_record
from store.schema import Column, Group
from store.shards import ShardWriter, identity, zarr_json
from store.storage import Storage, Written


@dataclass(kw_only=True)
class Attempt:
    """One try at one part of one group, under an id of its own."""

    storage: Storage
    store_id: str
    group: Group
    part: int
    stride_rows: int
    n: int = 0
    """Number of the commit; higher than 0 where it replaces one."""
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    _items: list[Item] = field(default_factory=list)
    _shards: dict[str, ShardWriter] = field(default_factory=dict)
    _offered: bool = False
    _unsure: bool = False

    @property
    def prefix(self) -> str:
        """Folder of the attempt."""
        return layout.attempt_prefix(self.group.name, self.part, self.id)

    def shard(self, column: Column) -> ShardWriter:
        """Return the open shard of a dense column."""
        if column.name not in self._shards:
            who = identity(self.store_id, self.group.name, self.part, column.name, self.id)
            path = layout.shard_path(column.name, 1 + len(column.shape))
            stream = self.storage.stream(self.prefix + path)
            self._shards[column.name] = ShardWriter(stream, column, who, self.stride_rows)
        return self._shards[column.name]

    def put(self, path: str, data: bytes, rows: int) -> None:
        """Write one whole object."""
        if len(data) > layout.MAX_TABLE_BYTES:
            raise InvalidInputError(
                f"{path} of part {self.part} of group {self.group.name!r} would take {len(data):,} bytes; readers refuse "
                f"more than {layout.MAX_TABLE_BYTES:,}. The part was not written; committed parts stand. Make the "
                "store with smaller part_rows.",
                kind="table-too-large",
                group=self.group.name,
                part=self.part,
            )
        written = self.storage.put(self.prefix + layout.check_object_path(path), data)
        self._note(path, written, rows)

    def _note(self, path: str, written: Written, rows: int) -> None:
        self._items.append(
            Item(path=path, size=written.size, crc32c=f"{written.crc32c:08x}", rows=rows)
        )

    def _finish_shards(self) -> None:
        for name, shard in self._shards.items():
            column = self.group.columns[name]
            meta = zarr_json(column, shard.rows, self.stride_rows)
            self.put(f"{name}/zarr.json", meta, shard.rows)
            written = shard.finish()
            self._note(layout.shard_path(name, 1 + len(column.shape)), written, shard.rows)

    def commit(
        self,
        rows: int,
        *,
        tokens: str | None,
        summary: Mapping[str, Any],
        provenance: Mapping[str, Any],
        position: Any = None,
        without: Sequence[str] = (),
        replacing: Mapping[str, Any] | None = None,
        check: Callable[[Commit], None] = lambda _: None,
    ) -> Commit:
        """Make the part visible, or return the record of the attempt that was first.

        Parameters
        ----------
        without
            Tombstones whose rows are not in what was written.
        replacing
            ``replaces``, ``reason`` and ``purged`` of a commit with ``n`` > 0.
        check
            Called with the commit when all its objects lie there and nobody sees it; nobody will where it raises.
        """
        self._finish_shards()
        self._check_kept()
        body = {
            "group": self.group.name,
            "part": self.part,
            "n": self.n,
            "attempt": self.id,
            "rows": rows,
            "recipe": self.group.recipe_hash,
            "tokens": tokens,
            "objects": [
                {"path": i.path, "size": i.size, "crc32c": i.crc32c, "rows": i.rows}
                for i in sorted(self._items, key=lambda item: item.path)
            ],
            "summary": self._with_losses(summary),
            "provenance": provenance,
            **({} if position is None else {"position": position}),
            **({"without": sorted(without)} if without else {}),
            **(replacing or {}),
        }
        key = layout.commit_key(self.group.name, self.part, self.n)
        data, digest = make_record("commit", self.store_id, body)
        commit = Commit.from_record({**body, "self": digest}, key)
        self._check_readable(commit)
        check(commit)
        self._offered = True
        try:
            self.storage.create(key, data)
        except UnavailableError:
            self._unsure = True  # the record may land yet
            if not self._named():
                raise
            self.storage.settle(layout.commits_prefix(self.group.name))
        winner = self._recorded()
        if winner.attempt != self.id:
            self.drop()
        return winner

    def _check_readable(self, commit: Commit) -> None:
        """Raise where readers would refuse the commit: its record could never be taken back."""
        try:
            check_commit(commit, self.group, self.stride_rows)
        except CorruptError as error:
            raise InvalidInputError(
                f"part {self.part} of group {self.group.name!r} was to be committed in a form that readers refuse: "
                f"{error.message} Nothing was committed; other parts stand. Put what the group declares, in smaller parts "
                "where it is too much.",
                kind="part-refused",
                group=self.group.name,
                part=self.part,
            ) from error

    def _check_kept(self) -> None:
        """Raise where gc took this attempt for a dead one: no record may name what is gone."""
        first = min((item.path for item in self._items), default=None)
        if first is None or exists(self.storage, self.prefix + first):
            return
        raise StoreError(
            f"part {self.part} of group {self.group.name!r} of {self.storage.url} was to be committed, and {first} "
            "of it is gone: gc took this writer for dead. Nothing was committed. Run it again; give gc a grace "
            "longer than any part takes.",
            kind="attempt-collected",
            group=self.group.name,
            part=self.part,
        )

    def _with_losses(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns' summaries, those of lossy codecs with the error they made."""
        losses = {name: shard.loss.to_json() for name, shard in self._shards.items() if shard.loss}
        return {name: {**losses.get(name, {}), **held} for name, held in summary.items()}

    def _named(self) -> bool:
        """Return whether the part's record, as far as can be seen, names this attempt."""
        try:
            return self._recorded().attempt == self.id
        except NotFoundError:
            return False

    def _recorded(self) -> Commit:
        return load_commit(self.storage, self.store_id, self.group.name, self.part, self.n)

    def drop(self) -> None:
        """Delete what the attempt wrote, unless its record is there, may land yet or cannot be read.

        What cannot be deleted now is an orphan that gc finds.
        """
        for shard in self._shards.values():
            shard.abandon()
        with contextlib.suppress(StoreError):
            if not (self._unsure or (self._offered and self._named())):
                self.storage.delete(list(self.storage.keys(self.prefix)))
