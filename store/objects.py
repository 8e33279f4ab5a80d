"""The objects commits name, verified: each is checked when it is first touched, and trusted from then on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from store import layout, tables
from store.buffers import Scratch
from store.checksum import crc32c
from store.commits import Commit, exists, list_retired
from store.errors import CorruptError, NotFoundError, StoreError
from store.partials import check_partial_size, decode_partial, partial_path
from store.schema import Column, Group
from store.shard_reader import ShardReader
from store.shards import identity
from store.storage import Storage

Array = np.ndarray[Any, np.dtype[Any]]
_FIXED = {
    "tokens.parquet": tables.TOKENS,
    "sequences.parquet": tables.SEQUENCES,
    "documents.parquet": tables.DOCUMENTS,
    "codes.parquet": tables.CODES,
    "by_latent.parquet": tables.CODES,
    "rows.parquet": tables.ROWS,
}
_MAY_BE_NULL = {
    "sequences.parquet": {"doc_id", "pair_id", "role", "grid"},
    "documents.parquet": {"text"},
}


class Objects:
    """Objects of a store's commits as they are stored, rows of removed documents included. Threads may share it."""

    def __init__(
        self,
        storage: Storage,
        store_id: str,
        stride_rows: int,
        group: Callable[[str], Group],
    ) -> None:
        self.storage, self.store_id, self.stride_rows = storage, store_id, stride_rows
        self._group = group
        self._verified: set[str] = set()
        self._scratch = Scratch()

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
            data = self.storage.get(key, item.size)
        except NotFoundError as error:
            raise self.gone(commit) or CorruptError(
                f"{place} is gone. {tail}", kind="object-missing", **where
            ) from error
        if len(data) != item.size:
            held = str(len(data)) if len(data) < item.size else "more"
            raise CorruptError(
                f"{place} has {held} bytes where its commit says {item.size}. {tail}",
                kind="object-size",
                **where,
            )
        if f"{crc32c(data):08x}" != item.crc32c:
            raise CorruptError(
                f"{place} does not fit its crc32c. {tail}", kind="object-damaged", **where
            )
        if path.endswith(".parquet"):
            known = path == "scalars.parquet" or path in _FIXED
            schema = object_schema(self._group(commit.group), path) if known else None
            tables.check_bytes(data, key, item.rows, schema)
        self._verified.add(key)
        return data

    def gone(self, commit: Commit) -> StoreError | None:
        """Return why objects of a commit may be gone though nothing is damaged: it was replaced, retired or dropped."""
        storage = self.storage
        retired = {commit.part} & (
            list_retired(storage, commit.group) | list_retired(storage, "tokens")
        )
        if retired or exists(storage, layout.dropped_key(commit.group)):
            what = "retired, or its group dropped,"
        elif self.was_replaced(commit):
            what = "replaced by a purge"
        else:
            return None
        return NotFoundError(
            f"part {commit.part} of group {commit.group!r} of {storage.url} was {what} after it was opened, and its files "
            "are deleted. Nothing was read. Open the store again.",
            kind="purged",
            group=commit.group,
            part=commit.part,
        )

    def stored_table(self, commit: Commit, path: str) -> Any:
        """Return one Parquet object of a commit as it is stored, verified."""
        data = self.check(commit, path)
        if data is None:
            data = self.storage.get(commit.prefix + path)
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
        try:
            _check_table(
                found,
                path,
                object_schema(self._group(commit.group), path),
                commit.part * self.stride_rows,
                self.stride_rows,
            )
        except ValueError as error:
            raise CorruptError(
                f"{path} of group {commit.group!r}, part {commit.part} is no such table of that part: {error}. None of "
                "its rows were returned. Restore the file from a copy.",
                kind="table-invalid",
                path=commit.prefix + path,
                group=commit.group,
                part=commit.part,
            ) from error
        return found

    def open_shard(self, commit: Commit, column: Column) -> ShardReader:
        """Return a reader of a dense column's shard that has verified no chunk yet."""
        item = commit.objects[layout.shard_path(column.name, 1 + len(column.shape))]
        return ShardReader(
            self.storage,
            commit.prefix,
            column,
            identity(self.store_id, commit.group, commit.part, column.name, commit.attempt),
            rows=commit.slots,
            stride_rows=self.stride_rows,
            size=item.size,
            scratch=self._scratch,
            gone=lambda: self.gone(commit),
        )

    def partial(self, commit: Commit, column: Column) -> dict[str, Array]:
        """Return the state in a partial column of a commit, verified; its arrays are read-only."""
        path = partial_path(column.name)
        key = commit.prefix + path
        check_partial_size(commit.objects[path].size, key)
        data = self.check(commit, path)
        return decode_partial(self.storage.get(key) if data is None else data, key)

    def was_replaced(self, commit: Commit) -> bool:
        """Return whether a purge put another commit in the place of one."""
        key = layout.commit_key(commit.group, commit.part, commit.n + 1)
        return exists(self.storage, key)


def object_schema(group: Group, path: str) -> Any:
    """Return the Arrow schema of a table of a group's parts."""
    if path != "scalars.parquet":
        return _FIXED[path]
    scalars = (column for column in group.columns.values() if column.kind == "scalar")
    return tables.scalars_schema({c.name: (c.stored, c.shape) for c in scalars})


def _check_table(data: Any, path: str, schema: Any, first: int, rows: int) -> None:
    """Raise unless a part's table has its columns, values where it must have them, and rows of the part.

    Parameters
    ----------
    first, rows
        Ids a row of the part may have: from ``first``, so many.

    Raises
    ------
    ValueError
        It says which of these does not hold.
    """
    if not tables.fits(data, schema, _MAY_BE_NULL.get(path, ())):
        msg = f"its columns are {', '.join(f'{f.name} {f.type}' for f in data.schema)[:200]}, or have nulls"
        raise ValueError(msg)
    if not len(data):
        return
    if path == "sequences.parquet":
        row, count = (tables.column(data, name).astype(np.int64) for name in ("first_row", "rows"))
        last = row + count - 1
        good = bool((count > 0).all()) and np.array_equal(tables.column(data, "seq_id"), row)
    elif path == "documents.parquet":
        return
    else:
        row = last = tables.column(data, "row")
        good = path == "by_latent.parquet" or bool((row[1:] >= row[:-1]).all())
        if path in {"tokens.parquet", "rows.parquet", "scalars.parquet"}:
            good = bool((row[1:] > row[:-1]).all())
    if not good or not first <= row.min() <= last.max() < first + rows:
        msg = f"its rows, from {row.min()} to {last.max()}, are not those of the part in order"
        raise ValueError(msg)


def check_whole(data: Any, path: str, commit: Commit, rows: int) -> None:
    """Raise unless what may be read of a table of a part is a line for each of so many rows."""
    if len(data) != rows:
        raise CorruptError(
            f"{path} of part {commit.part} of group {commit.group!r} has {len(data)} of the {rows} rows that may be read. "
            "None of them were returned. `actlake verify` lists all damage.",
            kind="table-invalid",
            group=commit.group,
            part=commit.part,
        )
