"""Create-only records of parts: which attempt at a part counts, and what that attempt holds.

The only commit point is one such record per (group, part, n); what it names was durable before. How an attempt comes to be
named by one is in ``store.attempts``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from store import layout
from store.errors import CorruptError, NotFoundError
from store.partials import partial_path
from store.records import foreign_record, load_record, make_record
from store.schema import Group
from store.storage import Storage


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
