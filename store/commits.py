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
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from store import layout
from store.codecs import CODECS
from store.errors import (
    ConflictError,
    CorruptError,
    InvalidInputError,
    NotFoundError,
    StoreError,
    UnavailableError,
    UnsupportedVersionError,
)
from store.partials import partial_path
from store.schema import Column, Group, canonical, differences, make_record, read_record
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
    """A commit record: what one part of one group is, for ever."""

    group: str
    part: int
    n: int
    attempt: str
    rows: int
    recipe: str
    tokens: str | None
    objects: Mapping[str, Item]
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any]
    position: Any
    hash: str

    @property
    def prefix(self) -> str:
        """Folder of the attempt."""
        return layout.attempt_prefix(self.group, self.part, self.attempt)

    @classmethod
    def from_record(cls, record: Mapping[str, Any], where: str) -> Commit:
        """Read a checked record; its objects' paths may not leave the attempt."""
        items = [_item(entry, where) for entry in record["objects"]]
        if _ATTEMPT.fullmatch(record["attempt"]) is None or record["rows"] <= 0:
            raise _invalid(where, f"attempt {record['attempt'][:40]!r}, rows {record['rows']}")
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


def load_commit(storage: Storage, store_id: str, group: str, part: int, n: int) -> Commit:
    """Read and check the record of one part."""
    key = layout.commit_key(group, part, n)
    return Commit.from_record(read_record(storage.get(key), "commit", store_id, key), key)


def list_commits(storage: Storage, group: str) -> dict[int, int]:
    """Return part → highest committed n, from names alone."""
    parts: dict[int, int] = {}
    for key in storage.keys(layout.commits_prefix(group)):
        found = layout.parse_commit_key(key)
        if found is not None and key == layout.commit_key(group, *found):
            parts[found[0]] = max(found[1], parts.get(found[0], 0))
    return dict(sorted(parts.items()))


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


def declare_group(storage: Storage, store_id: str, group: Group) -> Group:
    """Create a group, or join the one of that name if its recipe and columns are the same.

    Raises
    ------
    ConflictError
        ``group-recipe``: the name is taken by another recipe. ``group-dropped``: it was dropped; names are
        never used again.
    """
    if exists(storage, layout.dropped_key(group.name)):
        raise ConflictError(
            f"group {group.name!r} of {storage.url} was dropped, and a dropped name is never used again. "
            "Nothing was written. Choose another name (--group).",
            kind="group-dropped",
        )
    key = layout.group_key(group.name)
    data, _ = make_record("group", store_id, group.to_json())
    if storage.create(key, data):
        return group
    held = load_group(storage, store_id, group.name)
    if canonical(held.to_json()) != canonical(group.to_json()):
        raise ConflictError(
            f"group {group.name!r} of {storage.url} was made by another recipe; they differ in "
            f"{', '.join(differences(held.to_json(), group.to_json())) or 'form'}. Nothing was written "
            f"and the group stands as it was. {_instead(group.name)}",
            kind="group-recipe",
            group=group.name,
        )
    return held


def _instead(group: str) -> str:
    if group == "tokens":
        return "A store has one set of rows: use the same settings, or another store (--out)."
    return "Use another group name (--group), or the same settings."


def load_group(storage: Storage, store_id: str, name: str) -> Group:
    """Read a group's declaration."""
    key = layout.group_key(name)
    record = read_record(storage.get(key), "group", store_id, key)
    try:
        group = Group.from_json(record)
        for column in group.columns.values():
            CODECS.get(column.codec)
    except (InvalidInputError, KeyError, TypeError) as error:
        raise UnsupportedVersionError(
            f"group {name!r} of {storage.url} has columns this version does not know ({error}). Nothing "
            "was read or changed. Upgrade actlake.",
            path=key,
        ) from error
    if group.name != name:
        raise foreign_record(key, f"is the declaration of group {group.name!r}")
    return group


def foreign_record(where: str, what: str) -> CorruptError:
    """Return the error for a sound record in a place it does not belong to."""
    return CorruptError(
        f"{where} {what}. It was not used. Restore the record that belongs there.",
        kind="foreign-record",
        path=where,
    )


def load_sealed(storage: Storage, store_id: str, group: str) -> dict[str, Any] | None:
    """Return ``{parts, rows}`` where a group is sealed."""
    key = layout.sealed_key(group)
    if not exists(storage, key):
        return None
    record = read_record(storage.get(key), "sealed", store_id, key)
    if record["group"] != group:
        raise foreign_record(key, f"seals group {record['group']!r}")
    return record


def seal(
    storage: Storage, store_id: str, group: str, parts: int, rows: int, *, retired: bool = False
) -> None:
    """Say that a group is complete: ``parts`` parts, ``rows`` rows. Saying it again is no error.

    Parameters
    ----------
    retired
        Parts among them are retired: whoever sealed before that counted their rows, too.
    """
    body = {"group": group, "parts": parts, "rows": rows}
    key = layout.sealed_key(group)
    data, _ = make_record("sealed", store_id, body)
    storage.settle(layout.commits_prefix(group))  # a seal must not outlive a record it counts
    if not storage.create(key, data):
        held = load_sealed(storage, store_id, group)
        assert held is not None
        if held["parts"] != parts or (held["rows"] != rows and not retired):
            raise ConflictError(
                f"group {group!r} is sealed with {held['parts']} parts and {held['rows']} rows; found "
                f"{parts} parts and {rows} rows. Nothing was written. `actlake verify` says more.",
                kind="sealed-differs",
            )


@dataclass(kw_only=True)
class Attempt:
    """One try at one part of one group, under an id of its own."""

    storage: Storage
    store_id: str
    group: Group
    part: int
    stride_rows: int
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
    ) -> Commit:
        """Make the part visible, or return the record of the attempt that was first."""
        self._finish_shards()
        body = {
            "group": self.group.name,
            "part": self.part,
            "n": 0,
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
        }
        data, _ = make_record("commit", self.store_id, body)
        self._offered = True
        try:
            self.storage.create(layout.commit_key(self.group.name, self.part), data)
        except UnavailableError:
            self._unsure = True  # the record may land yet
            if not self._named():
                raise
            self.storage.settle(layout.commits_prefix(self.group.name))
        winner = load_commit(self.storage, self.store_id, self.group.name, self.part, 0)
        if winner.attempt != self.id:
            self.drop()
        return winner

    def _with_losses(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns' summaries, those of lossy codecs with the error they made."""
        losses = {name: shard.loss.to_json() for name, shard in self._shards.items() if shard.loss}
        return {name: {**held, **losses.get(name, {})} for name, held in summary.items()}

    def _named(self) -> bool:
        """Return whether the part's record, as far as can be seen, names this attempt."""
        try:
            held = load_commit(self.storage, self.store_id, self.group.name, self.part, 0)
        except NotFoundError:
            return False
        return held.attempt == self.id

    def drop(self) -> None:
        """Delete what the attempt wrote, unless its record is there, may land yet or cannot be read.

        What cannot be deleted now is an orphan that gc finds.
        """
        for shard in self._shards.values():
            shard.abandon()
        with contextlib.suppress(StoreError):
            if not (self._unsure or (self._offered and self._named())):
                self.storage.delete(list(self.storage.keys(self.prefix)))
