"""Pins: content-addressed lists of (group, part, commit hash), what a reader or a checkpoint saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from store import layout, tables
from store.errors import CorruptError, InvalidInputError, NotFoundError
from store.records import load_record, make_record, sha256
from store.schema import check_name
from store.storage import Storage

SEGMENT_ENTRIES = 4096
_INLINE_ENTRIES = SEGMENT_ENTRIES  # a longer pin lists its entries in segments
_SEGMENT_BYTES = 16 << 20
Entry = tuple[str, int, int, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pin:
    """What a pin lists: (group, part) → (n, commit hash), and the tombstones that were there."""

    commits: Mapping[tuple[str, int], tuple[int, str]]
    tombstones: tuple[str, ...]


def pin_id(entries: Sequence[Entry], tombstones: Sequence[str] = ()) -> str:
    """Return the id of a pin: sha256 of the sorted lines ``group part commit-hash``, then ``tombstone id``."""
    lines = sorted(f"{group} {part} {digest}" for group, part, _, digest in entries)
    lines += sorted(f"tombstone {one}" for one in tombstones)
    return sha256("".join(f"{line}\n" for line in lines).encode())


def write_pin(
    storage: Storage, store_id: str, entries: Sequence[Entry], tombstones: Sequence[str] = ()
) -> str:
    """Write a pin (again is no error) and return its id."""
    pin = pin_id(entries, tombstones)
    segments = []
    if len(entries) > _INLINE_ENTRIES:
        for low in range(0, len(entries), _INLINE_ENTRIES):
            rows = list(zip(*entries[low : low + _INLINE_ENTRIES], strict=True))
            names = ("group", "part", "n", "commit")
            data = tables.write_parquet({n: list(v) for n, v in zip(names, rows, strict=True)})
            segments.append(sha256(data))
            storage.create(f"segments/{segments[-1]}.parquet", data)
    body = {
        "pin": pin,
        "entries": [] if segments else [list(e) for e in entries],
        "segments": segments,
        **({"tombstones": sorted(tombstones)} if tombstones else {}),
    }
    data, _ = make_record("pin", store_id, body)
    storage.create(f"pins/{pin}.json", data)
    return pin


def load_pin(storage: Storage, store_id: str, pin: str) -> Pin:
    """Return what a pin lists, checked against its id.

    Raises
    ------
    NotFoundError
        ``pin-missing``.
    CorruptError
        The record or one of its segments is damaged, or belongs to another store or pin.
    """
    key = f"pins/{pin}.json"
    try:
        record = load_record(storage, key, "pin", store_id)
    except (NotFoundError, InvalidInputError) as error:
        raise NotFoundError(
            f"there is no pin {pin!r} in {storage.url}. Nothing was changed. Check the id.",
            kind="pin-missing",
            path=key,
        ) from error
    try:
        entries: list[Entry] = [
            (check_name(g, "group"), layout.check_part(p), int(n), str(h))
            for g, p, n, h in record["entries"]
        ]
    except (TypeError, ValueError):  # an illegal name is a ValueError, too
        entries = []
    if len(set(map(str, record["segments"]))) == len(record["segments"]):
        for segment in record["segments"]:
            entries += _segment(storage, f"segments/{segment}.parquet", segment)
    tombstones = tuple(map(str, record.get("tombstones", ())))
    if pin_id(entries, tombstones) != pin:
        raise CorruptError(
            f"{key} does not list what its name says. The pin was not used. Restore it from a copy.",
            kind="record-damaged",
            path=key,
        )
    commits = {(group, part): (n, digest) for group, part, n, digest in entries}
    return Pin(commits=commits, tombstones=tombstones)


def _segment(storage: Storage, path: str, digest: str) -> list[Entry]:
    try:
        content = storage.get(path, _SEGMENT_BYTES)
    except (NotFoundError, InvalidInputError):  # its name is none of a segment
        content = b""
    if sha256(content) != digest:
        raise CorruptError(
            f"{path} is gone or does not fit its own name. The pin was not used. Restore it from a copy.",
            kind="record-damaged",
            path=path,
        )
    columns = tables.read_parquet(content, path, SEGMENT_ENTRIES, tables.SEGMENT)
    try:
        parts = [layout.check_part(part) for part in columns["part"].tolist()]
        groups = [check_name(group, "group") for group in columns["group"]]
    except (TypeError, ValueError):  # no names, no parts
        return []  # then the pin's id does not fit
    return list(zip(groups, parts, columns["n"].tolist(), columns["commit"], strict=True))
