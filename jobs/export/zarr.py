"""Whole columns as Zarr v3 arrays whose index is the row id: a tree of links, copies or references to the shards.

Every shard is a Zarr shard as it stands, so nothing is coded anew: chunk p of the first axis *is* the shard of part p.
Where a part has no rows (its end, a part that is not there) a Zarr reader sees zeros to the end of a chunk and fill
values beyond; the array ``valid`` says which rows are rows. Written on demand and no part of the store: links show
what they point at as long as that exists.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jobs.errors import JobError
from store import Store
from store.layout import shard_path
from store.schema import Column, Group
from store.shards import zarr_json

MODES = ("link", "copy", "refs")
DTYPES = ("uint16", "bfloat16")
REFS_FILE = "references.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written."""

    path: str
    """The Zarr group, or the file of references."""
    arrays: tuple[str, ...]
    parts: int
    rows: int
    """Rows there are; arrays are longer by the gaps."""

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {name: getattr(self, name) for name in self.__slots__}


def export_zarr(
    store: Store,
    out: str | Path,
    *,
    groups: Sequence[str] | None = None,
    mode: str = "link",
    dtype: str = "uint16",
) -> Exported:
    """Write the dense columns of some groups (default: all) as arrays ``<group>/<column>``, beside ``<group>/valid``.

    Parameters
    ----------
    out
        A folder that is not there yet, or is empty.
    mode
        ``link``: symbolic links to the shards (stores on this machine). ``copy``: copies of them. ``refs``: one file
        ``references.json`` for fsspec's ``reference://``, also of stores in buckets.
    dtype
        What bfloat16 columns say they are: ``uint16``, which every reader knows, or ``bfloat16``, an extension that
        tensorstore and zarrs know. The bytes are the same.

    Raises
    ------
    JobError
        ``unknown-mode``; ``out-taken``; ``not-local``: links and copies of a store in a bucket; ``masked-group``: slots of
        a sample are not row ids; ``no-columns``. Nothing is written.
    """
    chosen = _checked(store, out, groups, mode, dtype)
    folder = Path(out)
    place: _Place = _References(store, folder) if mode == "refs" else _Folder(store, folder, mode)
    arrays, rows = [], 0
    for group in chosen:
        rows += _group(store, group, place, dtype)
        arrays += [f"{group.name}/{c.name}" for c in _dense(group)]
    place.data("zarr.json", _text(_group_meta(store)))
    path = place.close()
    parts = max(len(store.view.parts(group.name)) for group in chosen)
    return Exported(path=str(path), arrays=tuple(arrays), parts=parts, rows=rows)


def _checked(
    store: Store, out: str | Path, groups: Sequence[str] | None, mode: str, dtype: str
) -> list[Group]:
    if mode not in MODES or dtype not in DTYPES:
        raise JobError(
            f"an export by {mode!r} of bfloat16 as {dtype!r} was asked for; there are {', '.join(MODES)} and "
            f"{', '.join(DTYPES)}. Nothing was written.",
            kind="unknown-mode",
        )
    if Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise JobError(
            f"{out} is there and holds something. Nothing was written. Name a folder that is new or empty.",
            kind="out-taken",
        )
    if mode != "refs" and store.view.storage.local_path("store.json") is None:
        raise JobError(
            f"the shards of {store.url} are no files of this machine, so they cannot be {mode}ed. Nothing was written. "
            "Use --mode refs.",
            kind="not-local",
        )
    held = [store.view.group(name) for name in groups or store.groups]
    if masked := [group.name for group in held if group.masked and groups]:
        raise JobError(
            f"group {masked[0]!r} of {store.url} holds a sample, whose slots are not row ids. Nothing was written. "
            "Export a group of all rows.",
            kind="masked-group",
        )
    found = [group for group in held if not group.masked and list(_dense(group))]
    if not found:
        raise JobError(
            f"no dense column of whole parts was found in {', '.join(groups or store.groups)} of {store.url}. Nothing "
            "was written. `actlake inspect` shows what each column is.",
            kind="no-columns",
        )
    return found


def _dense(group: Group) -> Iterator[Column]:
    return (column for column in group.columns.values() if column.kind == "dense")


def _group(store: Store, group: Group, place: _Place, dtype: str) -> int:
    """Write a group's arrays; return its rows."""
    view, stride = store.view, store.part_stride
    parts = list(view.parts(group.name))
    length = stride * (max(parts, default=-1) + 1)
    counts = {part: view.commit(group.name, part).rows for part in parts}
    for column in _dense(group):
        meta = json.loads(zarr_json(column, length, stride))
        if column.dtype == "bfloat16" and dtype == "bfloat16" and meta["data_type"] == "uint16":
            meta |= {"data_type": "bfloat16", "fill_value": "NaN"}
        place.data(f"{group.name}/{column.name}/zarr.json", _text(meta))
        inner = shard_path(column.name, 1 + len(column.shape)).split("/")[3:]
        for part in parts:
            commit = view.commit(group.name, part)
            view.shard(commit, column)  # its size, identity and index are checked on the way
            key = commit.prefix + shard_path(column.name, 1 + len(column.shape))
            place.shard("/".join([group.name, column.name, "c", str(part), *inner]), key)
    place.data(f"{group.name}/valid/zarr.json", _text(_valid_meta(length, stride)))
    for part, rows in counts.items():
        place.data(f"{group.name}/valid/c/{part}", (np.arange(stride) < rows).tobytes())
    place.data(f"{group.name}/zarr.json", _text(_group_meta(store)))
    return sum(counts.values())


def _group_meta(store: Store) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"store": store.id, "index": "row id", "pin": store.pin_id()},
    }


def _valid_meta(length: int, stride: int) -> dict[str, Any]:
    regular = {"name": "regular", "configuration": {"chunk_shape": [stride]}}
    keys = {"name": "default", "configuration": {"separator": "/"}}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [length],
        "data_type": "bool",
        "fill_value": False,
        "chunk_grid": regular,
        "chunk_key_encoding": keys,
        "codecs": [{"name": "bytes"}],
        "attributes": {},
    }


class _Place(Protocol):
    """Where an export is written."""

    def data(self, path: str, data: bytes) -> None:
        """Write bytes."""

    def shard(self, path: str, key: str) -> None:
        """Let a path stand for a shard of the store."""

    def close(self) -> Path:
        """Finish; return what to open."""


def _text(meta: dict[str, Any]) -> bytes:
    return json.dumps(meta, indent=1, sort_keys=True).encode()


class _Folder:
    def __init__(self, store: Store, folder: Path, mode: str) -> None:
        self._storage, self._folder = store.view.storage, folder
        self._lay: Callable[[Path, Path], object] = (
            os.symlink if mode == "link" else shutil.copyfile
        )

    def _made(self, path: str) -> Path:
        made = self._folder / path
        made.parent.mkdir(parents=True, exist_ok=True)
        return made

    def data(self, path: str, data: bytes) -> None:
        self._made(path).write_bytes(data)

    def shard(self, path: str, key: str) -> None:
        there = self._storage.local_path(key)
        assert there is not None
        self._lay(there.resolve(), self._made(path))

    def close(self) -> Path:
        return self._folder


class _References:
    def __init__(self, store: Store, folder: Path) -> None:
        self._store, self._folder = store, folder
        self._refs: dict[str, Any] = {}

    def data(self, path: str, data: bytes) -> None:
        import base64

        self._refs[path] = "base64:" + base64.b64encode(data).decode()

    def shard(self, path: str, key: str) -> None:
        local = self._store.view.storage.local_path(key)
        self._refs[path] = [f"{self._store.url}/{key}" if local is None else f"file://{local}"]

    def close(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / REFS_FILE
        path.write_text(json.dumps({"version": 1, "refs": self._refs}, sort_keys=True))
        return path
