"""Attempts and create-only records: a part of a group is whole or invisible.

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
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from store import layout
from store.errors import (
    CorruptError,
    InvalidInputError,
    NotFoundError,
    StoreError,
    UnavailableError,
)
from store.partials import partial_path
from store.records import foreign_record, load_record, make_record
from store.schema import Column, Group
from store.shards import ShardWriter, identity, zarr_json
from store.storage import Storage, Written


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One object a commit vouches for."""

    path: str
    size: int
    crc32c: str
    rows: int


CODES_FILES = ("codes.parquet", "by_latent.parquet")
MAX_CODES_A_ROW = 1 << 16  # a code that is no sparse one is no code
_ATTEMPT = re.compile(r"[0-9a-f]{16}")
_CRC = re.compile(r"[0-9a-f]{8}")


def _item(entry: Any, where: str) -> Item:
    """Read one entry of ``objects``; its path may not leave the attempt."""
    types = {"path": str, "size": int, "crc32c": str, "rows": int}
    if not isinstance(entry, dict) or set(entry) != set(types):
        raise _invalid(where, f"an object entry {str(entry)[:60]}")
    good = all(isinstance(entry[name], kind) for name, kind in types.items())
    if not good or min(entry["size"], entry["rows"]) < 0 or _CRC.fullmatch(entry["crc32c"]) is None:
        raise _invalid(where, f"an object entry {str(entry)[:60]}")
    layout.check_object_path(entry["path"])
    return Item(**entry)


def _invalid(where: str, what: str) -> CorruptError:
    return CorruptError(
        f"{where} has {what}, which no commit may say. It was not used. Restore the record that belongs "
        "there; `actlake verify` lists all damage.",
        kind="record-invalid",
        path=where,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """A commit record: what one part of one group is, for ever.

    ``slots`` rows have a place in its shards; ``rows`` of them may be read: fewer where documents were removed (a
    ``View`` counts them). ``purged`` were taken out of its objects by a purge, which makes ``n`` > 0.
    """

    group: str
    part: int
    n: int
    attempt: str
    rows: int
    slots: int
    purged: int
    recipe: str
    tokens: str | None
    objects: Mapping[str, Item]
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any]
    position: Any
    without: tuple[str, ...]
    """Tombstones whose rows it never held: it says nothing to a reader that does not obey them."""
    hash: str

    @property
    def prefix(self) -> str:
        """Folder of the attempt."""
        return layout.attempt_prefix(self.group, self.part, self.attempt)

    @classmethod
    def from_record(cls, record: Mapping[str, Any], where: str) -> Commit:
        """Read a checked record; its objects' paths may not leave the attempt."""
        items = [_item(entry, where) for entry in record["objects"]]
        purged, without = record.get("purged", 0), tuple(map(str, record.get("without", ())))
        good = 0 <= purged <= record["rows"] and record["rows"] > 0
        good &= 0 <= record["part"] < layout.MAX_PARTS and 0 <= record["n"] < 10**9
        if _ATTEMPT.fullmatch(record["attempt"]) is None or not good:
            what = f"attempt {record['attempt'][:40]!r}, rows {record['rows']}, purged {purged}"
            raise _invalid(where, what)
        names = (
            "group",
            "part",
            "n",
            "attempt",
            "rows",
            "recipe",
            "tokens",
            "summary",
            "provenance",
        )
        commit = cls(
            **{name: record[name] for name in names},
            slots=record["rows"],
            purged=purged,
            without=without,
            objects={item.path: item for item in items},
            position=record.get("position"),
            hash=record["self"],
        )
        if layout.commit_key(commit.group, commit.part, commit.n) != where:
            raise foreign_record(
                where, f"says it is commit {commit.n} of part {commit.part} of {commit.group!r}"
            )
        return commit


def expected_objects(group: Group) -> set[str]:
    """Return the paths every commit of a group lists."""
    if group.aligned_to is None:
        return {"tokens.parquet", "sequences.parquet", "documents.parquet"}
    found = {"rows.parquet"} if group.masked else set()
    for column in group.columns.values():
        if column.kind == "dense":
            found |= {
                f"{column.name}/zarr.json",
                layout.shard_path(column.name, 1 + len(column.shape)),
            }
        elif column.kind == "partial":
            found.add(partial_path(column.name))
        else:
            found |= {"scalars.parquet"} if column.kind == "scalar" else set(CODES_FILES)
    return found


def check_commit(commit: Commit, group: Group, stride_rows: int) -> None:
    """Raise unless a record may be one of a group: as many rows as a part numbers, every object, the group's recipe."""
    place = f"part {commit.part} of group {commit.group!r}"
    if commit.slots > stride_rows:
        raise CorruptError(
            f"{place} claims {commit.slots} rows; a part numbers {stride_rows}. It was not used. "
            "`actlake verify` lists all damage.",
            kind="record-invalid",
            group=commit.group,
            part=commit.part,
        )
    _check_counts(commit, group)
    if missing := sorted(expected_objects(group) - set(commit.objects)):
        raise CorruptError(
            f"the commit of {place} does not list {', '.join(missing)}. None of its rows were returned. "
            "Restore the record from a copy.",
            kind="object-missing",
            group=commit.group,
            part=commit.part,
        )
    if commit.recipe != group.recipe_hash:
        raise CorruptError(
            f"{place} was committed under another recipe ({commit.recipe[:12]}). It was not used. "
            "`actlake verify` lists all damage.",
            kind="foreign-record",
            group=commit.group,
            part=commit.part,
        )


def _check_counts(commit: Commit, group: Group) -> None:
    """Raise where an object claims more rows than its part can have, or a table more bytes than are read."""
    place = f"part {commit.part} of group {commit.group!r}"
    for path, item in commit.objects.items():
        exact = {"rows.parquet": commit.slots, "tokens.parquet": commit.slots - commit.purged}
        most = commit.slots * (MAX_CODES_A_ROW if path in CODES_FILES else 1)
        whole = path.endswith((".parquet", ".safetensors", ".json"))
        if (
            item.rows > most
            or item.rows != exact.get(path, item.rows)
            or (whole and item.size > layout.MAX_TABLE_BYTES)
        ):
            raise CorruptError(
                f"{path} of {place} claims {item.rows} rows and {item.size} bytes in a part of {commit.slots} rows. It was "
                "not used. `actlake verify` lists all damage.",
                kind="record-invalid",
                group=group.name,
                part=commit.part,
            )


def load_commit(storage: Storage, store_id: str, group: str, part: int, n: int) -> Commit:
    """Read and check the record of one part."""
    key = layout.commit_key(group, part, n)
    return Commit.from_record(load_record(storage, key, "commit", store_id), key)


def list_commits(storage: Storage, group: str) -> dict[int, int]:
    """Return part → highest committed n, from names alone."""
    parts: dict[int, int] = {}
    keys = storage.keys(layout.commits_prefix(group))
    for part, n in layout.parse_commit_keys(group, keys):
        if n >= parts.get(part, 0):
            parts[part] = n
    return {part: parts[part] for part in sorted(parts)}


def latest_commit(storage: Storage, group: str, part: int) -> int:
    """Return the highest committed n of one part, found without a listing; -1 where it has none."""
    n = -1
    while exists(storage, layout.commit_key(group, part, n + 1)):
        n += 1
    return n


def create_retired(storage: Storage, store_id: str, group: str, part: int, reason: str) -> None:
    """Take a part out of a group; of tokens: out of the store. Saying it again is no error."""
    data, _ = make_record("retired", store_id, {"group": group, "part": part, "reason": reason})
    storage.create(layout.retired_key(group, part), data)


def list_retired(storage: Storage, group: str) -> set[int]:
    """Return the parts of a group that are marked as retired; readers leave them out."""
    names = (
        key.rpartition("/")[2].removesuffix(".json")
        for key in storage.keys(layout.retired_prefix(group))
    )
    return {int(name) for name in names if re.fullmatch(r"[0-9]{8}", name)}


def exists(storage: Storage, key: str) -> bool:
    """Return whether a record is there."""
    try:
        storage.size(key)
    except NotFoundError:
        return False
    return True


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
        _check_counts(commit, self.group)
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
