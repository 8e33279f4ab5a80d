"""Attempts and create-only records: a part of a group is whole or invisible.

The only commit point is one create-only record per (group, part, n). An attempt writes all its objects, each
durable before the record exists, under a random id that nobody else uses; then it creates the record. A crash
before that leaves an attempt no record names, which no reader ever looks at. Of racing attempts the first
record wins; the others read it back, see another attempt's id and delete their own files. Where the answer to
the create was lost, reading back shows one's own id, which is success. Two writers of one recipe may therefore
work on the same part without a lock, and a writer whose driver died may go on without harm.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from store import layout
from store.errors import ConflictError, CorruptError, NotFoundError, StoreError
from store.schema import Column, Group, canonical, make_record, read_record
from store.shards import ShardWriter, identity, zarr_json
from store.storage import Storage, Written


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One object a commit vouches for."""

    path: str
    size: int
    crc32c: str
    rows: int


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
        items = [Item(**item) for item in record["objects"]]
        for item in items:
            layout.check_object_path(item.path)
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
            raise CorruptError(
                f"{where} says it is commit {commit.n} of part {commit.part} of {commit.group!r}. It was "
                "not used. Restore the record that belongs there.",
                kind="foreign-record",
                path=where,
            )
        return commit


def load_commit(storage: Storage, store_id: str, group: str, part: int, n: int) -> Commit:
    """Read and check the record of one part."""
    key = layout.commit_key(group, part, n)
    return Commit.from_record(read_record(storage.get(key), "commit", store_id, key), key)


def list_commits(storage: Storage, group: str) -> dict[int, int]:
    """Return part → highest committed n, from names alone; retired parts are left out."""
    parts: dict[int, int] = {}
    for key in storage.keys(layout.commits_prefix(group)):
        found = layout.parse_commit_key(key)
        if found is not None and key == layout.commit_key(group, *found):
            parts[found[0]] = max(found[1], parts.get(found[0], 0))
    for key in storage.keys(layout.retired_prefix(group)):
        name = key.rpartition("/")[2].removesuffix(".json")
        if name.isdigit():
            parts.pop(int(name), None)
    return dict(sorted(parts.items()))


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
            "and the group stands as it was. Use another group name (--group), or the same settings.",
            kind="group-recipe",
            group=group.name,
        )
    return held


def differences(held: Any, asked: Any, path: str = "") -> list[str]:
    """Return the dotted names of the fields in which two JSON values differ."""
    if isinstance(held, Mapping) and isinstance(asked, Mapping):
        found = []
        for key in sorted({*held, *asked}):
            found += differences(held.get(key), asked.get(key), f"{path}.{key}" if path else key)
        return found
    return (
        []
        if canonical(held) == canonical(asked)
        else [f"{path} ({_brief(held)} → {_brief(asked)})"]
    )


def _brief(value: Any) -> str:
    text = canonical(value).decode()
    return text if len(text) <= 60 else text[:57] + "…"


def load_group(storage: Storage, store_id: str, name: str) -> Group:
    """Read a group's declaration."""
    key = layout.group_key(name)
    return Group.from_json(read_record(storage.get(key), "group", store_id, key))


def seal(storage: Storage, store_id: str, group: str, parts: int, rows: int) -> None:
    """Say that a group is complete: ``parts`` parts, ``rows`` rows. Saying it again is no error."""
    body = {"group": group, "parts": parts, "rows": rows}
    key = layout.sealed_key(group)
    data, _ = make_record("sealed", store_id, body)
    if not storage.create(key, data):
        held = read_record(storage.get(key), "sealed", store_id, key)
        if (held["parts"], held["rows"]) != (parts, rows):
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
            "summary": summary,
            "provenance": provenance,
            **({} if position is None else {"position": position}),
        }
        data, _ = make_record("commit", self.store_id, body)
        self.storage.create(layout.commit_key(self.group.name, self.part), data)
        winner = load_commit(self.storage, self.store_id, self.group.name, self.part, 0)
        if winner.attempt != self.id:
            self.drop()
        return winner

    def drop(self) -> None:
        """Delete what the attempt wrote; what cannot be deleted now is an orphan that gc finds."""
        for shard in self._shards.values():
            shard.abandon()
        with contextlib.suppress(StoreError):
            self.storage.delete(list(self.storage.keys(self.prefix)))


def put_asset(storage: Storage, store_id: str, files: Mapping[str, bytes]) -> str:
    """Write content-addressed files; the manifest is written last, so an asset is whole or absent.

    Returns
    -------
    The asset's id: the hash (``self``) of its manifest ``{name: [size, sha256]}``.
    """
    from store.schema import check_name, sha256

    body = {"files": {check_name(n, "asset file"): [len(d), sha256(d)] for n, d in files.items()}}
    data, asset = make_record("asset", store_id, body)
    if not exists(storage, f"assets/{asset}/manifest.json"):
        for name, content in files.items():
            storage.create(f"assets/{asset}/{name}", content)
        storage.create(f"assets/{asset}/manifest.json", data)
    return asset


def get_asset(storage: Storage, store_id: str, asset: str) -> dict[str, bytes]:
    """Return an asset's files, each checked against the manifest."""
    from store.schema import check_name, sha256

    key = f"assets/{check_name(asset, 'asset')}/manifest.json"
    record = read_record(storage.get(key), "asset", store_id, key)
    files = {}
    for name, (size, digest) in record["files"].items():
        path = f"assets/{asset}/{check_name(name, 'asset file')}"
        content = storage.get(path)
        if record["self"] != asset or len(content) != size or sha256(content) != digest:
            raise CorruptError(
                f"asset file {path} has {len(content)} bytes that do not fit its manifest. It was not "
                "used. Restore it from a copy.",
                kind="asset-damaged",
                path=path,
            )
        files[name] = content
    return files
