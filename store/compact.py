"""Makes indexes: the small tables of many parts in few files, and a group's codes sorted by latent over all parts.

Nothing that is committed is touched. Files are cut by part numbers and sizes alone, so that a store that has grown shares all
files but the last with its index of before. An index is a record that names assets: they come first, each durable, and a
builder that dies before the record leaves files that gc finds. Of two builders of the same parts the first record stands;
what both wrote is the same, or gc's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from store import layout, tables
from store.assets import MANIFEST, get_asset, manifest, write_asset
from store.commits import Commit, exists, expected_objects
from store.errors import CorruptError, NotFoundError, StoreError
from store.index_records import (
    BY_LATENT,
    LATENTS,
    PARTS,
    ROWS,
    Index,
    index_keys,
    index_record,
    load_index,
    named_assets,
    starts,
)
from store.indexes import replaceable
from store.pins import pin_id
from store.reader import Store
from store.records import make_record
from store.schema import Group
from store.sorting import BLOCK_ROWS, CodeSorter, joined, taken
from store.storage import Storage
from store.values import Codes
from store.view import View

FILE_PARTS = 1024
FILE_ROWS = 1 << 20
"""Rows a file of an index takes at most: about 10 MB, which are read and checked in well under 100 ms."""
FILE_BYTES = 32 << 20
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Compacted:
    """What became of the index of one table."""

    group: str
    table: str
    parts: int
    """Parts it covers; 0: they are large, or there is but one: nothing to join."""
    files: int
    written: int
    """Files that were not there yet."""
    rows: int

    def to_json(self) -> dict[str, Any]:
        """Return the account for programs."""
        return {name: getattr(self, name) for name in self.__slots__}


def compact(
    store: Store,
    groups: Sequence[str] | None = None,
    *,
    scratch: Path | None = None,
    progress: Progress = lambda *_: None,
) -> list[Compacted]:
    """Make the indexes of some groups (default: all) cover the parts they have now.

    Whatever is there is checked and kept; what is damaged is made anew. Indexes that are superseded stay until ``gc``, for
    others may be reading them.

    Parameters
    ----------
    scratch
        Folder for scratch files, where codes do not fit into memory.
    progress
        Called with a table's name, rows done and rows to do.

    Raises
    ------
    NotFoundError
        ``group-missing``.
    StoreError
        What is to be copied is damaged: nothing of that table was written.
    """
    view = store.refresh().view
    names = list(view.groups) if groups is None else [view.group(name).name for name in groups]
    return [
        _Builder(view, name, path, scratch, progress).run()
        for name in names
        for path in table_paths(view.group(name))
        if view.parts(name)
    ]


def discard(store: Store, groups: Sequence[str] | None = None) -> list[str]:
    """Delete the indexes of some groups (default: all) and return their keys; gc frees their files."""
    view = store.refresh().view
    names = list(view.groups) if groups is None else [view.group(name).name for name in groups]
    keys = [key for name in names for key in index_keys(view.storage, name)]
    view.storage.delete(keys)
    return keys


def table_paths(group: Group) -> list[str]:
    """Return the tables of a group that have indexes."""
    found = {path for path in expected_objects(group) if path.endswith(".parquet")}
    return sorted(found - {"rows.parquet"})


def cut(commits: Iterable[Commit], path: str) -> list[list[Commit]]:
    """Return which parts' tables go into which file, parts ascending.

    A file holds parts of one 1024th of the part numbers, as many as fit; parts that fill half a file, and parts that would be
    alone in one, are left out.
    """
    files: list[list[Commit]] = []
    place, rows, size = (-1, 0, 0)
    for commit in commits:
        item = commit.objects[path]
        if 2 * item.rows > FILE_ROWS or 2 * item.size > FILE_BYTES:
            continue
        rows, size = rows + item.rows, size + item.size
        if commit.part // FILE_PARTS != place or rows > FILE_ROWS or size > FILE_BYTES:
            files.append([])
            place, rows, size = commit.part // FILE_PARTS, item.rows, item.size
        files[-1].append(commit)
    return [file for file in files if len(file) > 1]


class _Builder:
    """Makes the index of one table."""

    def __init__(
        self, view: View, group: str, path: str, scratch: Path | None, progress: Progress
    ) -> None:
        self._view, self._group, self._path = view, group, path
        self._table = path.removesuffix(".parquet")
        self._scratch = scratch
        self._written = 0
        self._done = 0
        self._progress = progress

    def _say(self, rows: int, total: int) -> None:
        self._progress(f"{self._group} {self._table}", rows, total)

    def run(self) -> Compacted:
        """Return what there is now."""
        commits = list(replaceable(self._view, self._group).values())
        files = [] if self._table == BY_LATENT else cut(commits, self._path)
        covered = commits if self._table == BY_LATENT else [c for file in files for c in file]
        if not covered:
            return self._account([], 0)
        pin = pin_id([(c.group, c.part, c.n, c.hash) for c in covered])
        key = layout.index_key(self._group, self._table, pin)
        held = self._sound()
        if key in held:
            return self._account(covered, len(held[key].files))
        total = sum(c.objects[self._path].rows for c in covered)
        if self._table == BY_LATENT:
            made, latents = self._by_latent(covered, total)
        else:
            made, latents = [self._joined(file, held, total) for file in files], ""
        self._record(key, pin, covered, made, latents)
        return self._account(covered, len(made))

    def _account(self, covered: Sequence[Commit], files: int) -> Compacted:
        return Compacted(
            group=self._group,
            table=self._table,
            parts=len(covered),
            files=files,
            written=self._written,
            rows=sum(c.objects[self._path].rows for c in covered),
        )

    def _sound(self) -> dict[str, Index]:
        """Return the table's indexes by key, every file of theirs read and checked; damaged ones are deleted."""
        storage, found = self._view.storage, dict[str, Index]()
        for key in index_keys(storage, self._group, self._table):
            try:
                index = load_index(storage, self._view.store_id, key)
                for asset, _ in index.files if index is not None else ():
                    get_asset(storage, asset)
            except (CorruptError, NotFoundError):
                storage.delete([key])
                continue
            found |= {} if index is None else {key: index}
        return found

    # -- files -----------------------------------------------------------------------------------------

    def _joined(
        self, commits: list[Commit], held: Mapping[str, Index], total: int
    ) -> tuple[str, int]:
        """Return the file of some parts' tables, one below the other: one that is there, or a new one."""
        rows = sum(commit.objects[self._path].rows for commit in commits)
        wanted = [(c.part, c.hash) for c in commits if c.objects[self._path].rows]
        for index in held.values():
            if (asset := _file_of(index, wanted)) is not None:
                break
        else:
            data = tables.concat(
                [self._view.objects.stored_table(commit, self._path) for commit in commits]
            )
            asset = self._put(ROWS, tables.encode(data))
        self._done += rows
        self._say(self._done, total)
        return asset, rows

    def _by_latent(self, commits: list[Commit], total: int) -> tuple[list[tuple[str, int]], str]:
        files, counts = [], _Counts()
        with CodeSorter(scratch=self._scratch) as sorter:
            for commit in commits:
                sorter.put(Codes.of(self._view.objects.stored_table(commit, self._path)))
                self._done += commit.objects[self._path].rows
                self._say(self._done // 2, total)  # the other half is merging
            self._done = 0
            for codes in _regrouped(sorter.blocks(), FILE_ROWS):
                counts.add(codes.latent)
                columns = {"row": codes.row, "latent": codes.latent, "value": codes.value}
                data = tables.encode(tables.table(columns, tables.CODES))
                files.append((self._put(ROWS, data), len(codes.row)))
                self._done += len(codes.row)
                self._say((total + self._done) // 2, total)
        return files, self._put(LATENTS, tables.write_parquet(counts.columns()))

    def _put(self, name: str, data: bytes) -> str:
        """Write one file as an asset, or find it there; what lies damaged in its place is replaced."""
        storage, files = self._view.storage, {name: data}
        listed, asset = manifest(files)
        _clear_damage(storage, asset, name, data, listed)
        self._written += name == ROWS and not exists(storage, f"assets/{asset}/{MANIFEST}")
        return write_asset(storage, files)

    def _record(
        self,
        key: str,
        pin: str,
        commits: Sequence[Commit],
        files: Sequence[tuple[str, int]],
        latents: str,
    ) -> None:
        storage = self._view.storage
        parts = {
            "part": np.array([c.part for c in commits], np.int64),
            "commit": [c.hash for c in commits],
            "rows": np.array([c.objects[self._path].rows for c in commits], np.int64),
        }
        body = {
            "group": self._group,
            "table": self._table,
            "pin": pin,
            "parts": self._put(PARTS, tables.write_parquet(parts)),
            "latents": latents,
            "files": [list(file) for file in files],
        }
        data, _ = make_record("index", self._view.store_id, body)
        storage.create(key, data)
        for asset in named_assets(index_record(storage, self._view.store_id, key)):
            if not exists(storage, f"assets/{asset}/{MANIFEST}"):
                storage.delete([key])
                raise StoreError(
                    f"asset {asset}, of which {key} of {storage.url} was made, was deleted meanwhile: gc was at work. The "
                    "index was taken back, rows are not affected. Run the same command again.",
                    kind="index-raced",
                )


class _Counts:
    """How many codes each latent has, of codes that come sorted by latent."""

    def __init__(self) -> None:
        self._pieces: list[tuple[Any, Any]] = []

    def add(self, latent: Any) -> None:
        """Count some."""
        self._pieces.append(np.unique(latent, return_counts=True))

    def columns(self) -> dict[str, Any]:
        """Return ``latent`` and ``codes``, ascending."""
        latents = np.concatenate([np.empty(0, np.uint32), *(piece[0] for piece in self._pieces)])
        counts = np.concatenate([np.empty(0, np.int64), *(piece[1] for piece in self._pieces)])
        found, at = np.unique(latents, return_index=True)
        codes = np.add.reduceat(counts, at) if len(at) else counts
        return {"latent": found.astype(np.uint32), "codes": codes.astype(np.int64)}


def _regrouped(blocks: Iterable[Codes], rows: int) -> Iterator[Codes]:
    """Yield blocks of exactly ``rows`` codes, the last one of what is left."""
    held: list[Codes] = []
    count = 0
    for block in blocks:
        for low in range(0, len(block.row), min(rows, BLOCK_ROWS)):
            held.append(taken(block, slice(low, low + min(rows, BLOCK_ROWS))))
            count += len(held[-1].row)
            if count >= rows:
                whole = joined(held)
                yield taken(whole, slice(rows))
                held, count = [taken(whole, slice(rows, None))], count - rows
    if count:
        yield joined(held)


def _file_of(index: Index, wanted: Sequence[tuple[int, str]]) -> str | None:
    """Return the file of an index that holds exactly the rows of some commits, where there is one."""
    first, files = starts(index.rows), index.file_starts
    some = np.flatnonzero(index.rows > 0)
    low = int(np.searchsorted(index.parts[some], wanted[0][0])) if wanted else len(some)
    mine = some[low : low + len(wanted)]
    if not len(mine) or [(int(index.parts[i]), index.commits[i]) for i in mine] != list(wanted):
        return None
    at = int(np.searchsorted(files, first[mine[0]], side="right")) - 1
    edges = (int(files[at]), int(files[at + 1]))
    whole = edges == (int(first[mine[0]]), int(first[mine[-1] + 1]))
    return index.files[at][0] if whole else None


def _clear_damage(storage: Storage, asset: str, name: str, data: bytes, listed: bytes) -> None:
    """Delete what lies in the place of an asset of one file and is not it, so that it can be written."""
    wanted = {f"assets/{asset}/{MANIFEST}": listed, f"assets/{asset}/{name}": data}
    held = {}
    for key in wanted:
        with contextlib.suppress(NotFoundError):
            held[key] = storage.get(key)
    if any(held[key] != wanted[key] for key in held) or list(held) == [
        f"assets/{asset}/{MANIFEST}"
    ]:
        storage.delete(held)  # the manifest first: without it there is no asset
