"""Index records: which copy of a table lies where, and of which commits it is.

An index is derived: it names the hash of every commit it copies, so that it can never speak for another, and it may be
deleted at any time. Its bytes are assets, content-addressed, so that an index made again after a few parts were added
shares all its other files with the one before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from store import layout, tables
from store.assets import INDEX_ENDING, get_asset
from store.commits import exists
from store.errors import CorruptError, NotFoundError
from store.pins import pin_id
from store.records import foreign_record, load_record
from store.schema import NAME
from store.storage import Storage

Array = np.ndarray[Any, np.dtype[Any]]

ROWS, PARTS, LATENTS = (f"{name}{INDEX_ENDING}" for name in ("rows", "parts", "latents"))
BY_LATENT = "by_latent"
TABLES = ("tokens", "sequences", "documents", "scalars", "codes", BY_LATENT)


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """A copy of one table over some parts: their rows one below the other, or all of them sorted by latent."""

    key: str
    group: str
    table: str
    files: tuple[tuple[str, int], ...]
    """Assets and their rows, in order."""
    parts: Array
    """``int64[P]``, ascending."""
    commits: tuple[str, ...]
    """The hash of each part's commit."""
    rows: Array
    """``int64[P]``: the table's rows in each part."""
    latents: Array
    """``uint32[L]``: the latents of a table sorted by them, ascending; else nothing."""
    codes: Array
    """``int64[L]``: the rows of each."""
    assets: frozenset[str]

    @property
    def path(self) -> str:
        """The table's path in an attempt."""
        return f"{self.table}.parquet"

    @property
    def file_starts(self) -> Array:
        """``int64[F + 1]``: where each file begins, in rows."""
        return starts([rows for _, rows in self.files])


def starts(counts: Any) -> Array:
    """Return where each of some runs begins and, last, where all end: ``int64[N + 1]``."""
    return np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64), dtype=np.int64)])


def damaged(storage: Storage, key: str, why: str) -> CorruptError:
    """Return the error for an index that cannot be used, with what to do about it."""
    return CorruptError(
        f"{key} of {storage.url}, an index, cannot be used: {why}. The rows it is a copy of are not affected; none were "
        f"returned. `actlake compact {storage.url}` makes it anew, deleting that record lets everyone read the parts "
        "themselves, and store.without_indexes() (--without-indexes) does so once.",
        kind="index-damaged",
        path=key,
    )


def index_keys(storage: Storage, group: str, table: str | None = None) -> list[str]:
    """Return the keys of a group's indexes, of one table or of all."""
    prefix = layout.indexes_prefix(group)
    found = []
    for key in storage.keys(prefix):
        name, dash, pin = key.removeprefix(prefix).removesuffix(".json").rpartition("-")
        legal = dash and "/" not in key[len(prefix) :] and NAME.fullmatch(name) and len(pin) == 64
        if legal and key.endswith(".json") and table in {None, name}:
            found.append(key)
    return sorted(found)


def index_record(storage: Storage, store_id: str, key: str) -> Mapping[str, Any]:
    """Read an index's record, checked but for what its assets say."""
    record = load_record(storage, key, "index", store_id)
    if layout.index_key(record["group"], record["table"], record["pin"]) != key:
        raise foreign_record(key, f"says it is of table {record['table']!r} of {record['group']!r}")
    return record


def named_assets(record: Mapping[str, Any]) -> frozenset[str]:
    """Return every asset an index's record names."""
    try:
        files = [str(asset) for asset, _ in record["files"]]
    except (TypeError, ValueError):
        files = []
    return frozenset({record["parts"], record["latents"], *files} - {""})


def load_index(storage: Storage, store_id: str, key: str) -> Index | None:
    """Read an index; None where it was deleted a moment ago.

    Raises
    ------
    CorruptError
        ``index-damaged``: the record, or what it names, is damaged or gone.
    """
    try:
        record = index_record(storage, store_id, key)
    except NotFoundError:
        return None
    except CorruptError as error:
        raise damaged(storage, key, f"its record is damaged ({error.kind})") from error
    try:
        index = _from_record(storage, record, key)
    except (CorruptError, NotFoundError) as error:
        if not exists(storage, key):
            return None
        raise damaged(storage, key, f"a file of it is gone or damaged ({error.kind})") from error
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise damaged(storage, key, f"it is of another form ({error})") from error
    counts = [index.rows, index.codes, np.diff(index.file_starts)]
    if any((count < 0).any() or count.sum(dtype=np.float64) >= 1 << 62 for count in counts):
        raise damaged(storage, key, "it counts rows that cannot be")
    sums = {int(index.rows.sum()), int(index.file_starts[-1])}
    sums |= {int(index.codes.sum())} if index.table == BY_LATENT else set()
    entries = zip(index.parts.tolist(), index.commits, strict=True)
    right = pin_id([(index.group, part, 0, commit) for part, commit in entries]) == record["pin"]
    if len(sums) != 1 or not right or (np.diff(index.parts) <= 0).any():
        raise damaged(storage, key, "its parts are not those its name says")
    return index


def _from_record(storage: Storage, record: Mapping[str, Any], key: str) -> Index:
    if min(int(rows) for _, rows in record["files"]) < 0 or record["table"] not in TABLES:
        msg = f"files {str(record['files'])[:60]} of table {record['table']!r}"
        raise ValueError(msg)
    parts = _columns(storage, record["parts"], PARTS, tables.INDEX_PARTS)
    held = record["latents"]
    latents = _columns(storage, held, LATENTS, tables.INDEX_LATENTS) if held else {}
    nothing = np.empty(0, np.int64)
    return Index(
        key=key,
        group=record["group"],
        table=record["table"],
        files=tuple((str(asset), int(rows)) for asset, rows in record["files"]),
        parts=parts["part"],
        commits=tuple(parts["commit"]),
        rows=parts["rows"],
        latents=latents.get("latent", nothing),
        codes=latents.get("codes", nothing),
        assets=named_assets(record),
    )


def _columns(storage: Storage, asset: str, name: str, schema: Any) -> dict[str, Any]:
    data = get_asset(storage, asset)[name]
    return tables.read_parquet(data, f"assets/{asset}/{name}", tables.SIDE_ROWS, schema)


def load_indexes(storage: Storage, store_id: str, group: str, table: str) -> Iterator[Index]:
    """Yield the indexes of one table of a group."""
    for key in index_keys(storage, group, table):
        index = load_index(storage, store_id, key)
        if index is not None:
            yield index
