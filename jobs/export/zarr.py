"""Whole columns as Zarr v3 arrays whose index is the row id: a tree of links, copies or references to the shards.

Every shard is a Zarr shard as it stands, so nothing is coded anew: chunk p of the first axis *is* the shard of part p.
Where a part has no rows (its end, a part that is not there) a Zarr reader sees zeros to the end of a chunk and fill
values beyond; the array ``valid`` says which rows are rows. Written on demand and no part of the store: where ``gc`` or ``purge``
deleted a shard, Zarr readers see fill values behind a link to it and refuse a reference to it, so export again, or copies. A
reader that refuses whatever is not there is ``jobs.export.zarr_store``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from jobs.errors import JobError, UsageError
from jobs.export.target import target
from jobs.export.tree import DTYPES, Tree
from store import Store
from store.layout import STORE_KEY
from store.memory import MemoryStorage

MODES = ("link", "copy", "refs")
REFS_FILE = "references.json"
_PIECE_BYTES = 16 << 20  # held at once by a copy


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written."""

    path: str
    """The Zarr group, or the file of references."""
    arrays: tuple[str, ...]
    parts: int
    rows: int
    """Rows of the longest group; its arrays are longer by the gaps."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Groups without an array, and why."""

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

    Tables, codes and states are not written: they are Parquet and safetensors files as they stand. A group of a sample is
    left out, and refused where it is named.

    Parameters
    ----------
    out
        A folder that is not there yet, or is empty. It appears whole; what an export that was killed left beside it is
        removed by the next one.
    mode
        ``link``: symbolic links to the shards (stores on this machine). ``copy``: copies of them, whatever the storage.
        ``refs``: one file ``references.json`` for fsspec's ``reference://``, also of stores in buckets: ``zarr.open_group(
        "reference://", storage_options={"fo": path, "remote_options": {"asynchronous": True}}, mode="r")``.
    dtype
        What bfloat16 columns say they are: ``uint16``, which every reader knows, or ``bfloat16``, an extension that
        tensorstore knows and zarr-python refuses. The bytes are the same.

    Raises
    ------
    JobError
        ``unknown-mode``; ``out-taken``; ``out-busy``; ``not-local``: links into a bucket, references into memory;
        ``masked-group``: slots of a sample are not row ids; ``no-columns``; ``not-purged``; ``not-written``: the disk is full or
        forbids it. Nothing is written.
    """
    _check(store, mode, dtype)
    named = groups or None
    pin = store.view.pin or store.pin_id(named)
    tree = Tree(store, named, dtype=dtype, pin=pin)
    with target(Path(out)) as folder:
        place: _Place = _References(store) if mode == "refs" else _Folder(store, folder, mode)
        rows = _write(tree, place)
        inside = place.close(folder)
    return Exported(
        path=str(Path(out) / inside),
        arrays=tuple(tree.arrays),
        parts=max(len(parts) for parts in tree.parts.values()),
        rows=rows,
        left_out=tree.left_out,
    )


def _check(store: Store, mode: str, dtype: str) -> None:
    for word, given, known in (("--mode", mode, MODES), ("--dtype", dtype, DTYPES)):
        if given not in known:
            raise UsageError(
                f"{word} is {given!r}; there are {', '.join(known)}. Nothing was written. Choose one of them.",
                kind="unknown-mode",
            )
    if mode == "link" and store.view.storage.local_path(STORE_KEY) is None:
        raise JobError(
            f"the shards of {store.url} are no files of this machine, so they cannot be linked. Nothing was written. "
            "Use --mode refs, or --mode copy.",
            kind="not-local",
        )
    if mode == "refs" and isinstance(store.view.storage, MemoryStorage):
        raise JobError(
            f"{store.url} lives in the memory of this process, where no reference leads. Nothing was written. Use --mode "
            "copy.",
            kind="not-local",
        )


def _write(tree: Tree, place: _Place) -> int:
    """Write everything; return the rows of the longest group."""
    view, rows = tree.store.view, dict.fromkeys(tree.parts, 0)
    for path, data in tree.documents.items():
        place.data(path, data)
    for shown in tree.arrays.values():
        for part in tree.parts[shown.group]:
            commit = view.commit(shown.group, part)
            view.shard(commit, shown.column)  # its size, identity and index are checked on the way
            size = commit.objects[shown.shard].size
            place.shard(tree.chunk(shown.path, part), commit.prefix + shown.shard, size)
    for path, group in tree.masks.items():
        for part in tree.parts[group]:
            place.data(tree.chunk(path, part), tree.mask(group, part))
            rows[group] += view.commit(group, part).rows
    return max(rows.values())


class _Place(Protocol):
    """Where an export is written."""

    def data(self, path: str, data: bytes) -> None:
        """Write bytes."""

    def shard(self, path: str, key: str, size: int) -> None:
        """Let a path stand for a shard of the store."""

    def close(self, folder: Path) -> str:
        """Finish; return what to open, relative to the folder."""


class _Folder:
    def __init__(self, store: Store, folder: Path, mode: str) -> None:
        self._storage, self._folder = store.view.storage, folder
        self._lay = self._link if mode == "link" else self._copy

    def _made(self, path: str) -> Path:
        made = self._folder / path
        made.parent.mkdir(parents=True, exist_ok=True)
        return made

    def data(self, path: str, data: bytes) -> None:
        self._made(path).write_bytes(data)

    def shard(self, path: str, key: str, size: int) -> None:
        self._lay(self._made(path), key, size)

    def _link(self, made: Path, key: str, _size: int) -> None:
        there = self._storage.local_path(key)
        assert there is not None
        os.symlink(there.resolve(), made)  # noqa: PTH211 - reads as the call does

    def _copy(self, made: Path, key: str, size: int) -> None:
        with made.open("wb") as file:
            for low in range(0, size, _PIECE_BYTES):
                piece = bytearray(min(_PIECE_BYTES, size - low))
                self._storage.read_into(key, [(low, piece)])
                file.write(piece)

    def close(self, folder: Path) -> str:  # noqa: ARG002 - one protocol
        return ""


class _References:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._refs: dict[str, Any] = {}

    def data(self, path: str, data: bytes) -> None:
        import base64

        self._refs[path] = "base64:" + base64.b64encode(data).decode()

    def shard(self, path: str, key: str, size: int) -> None:  # noqa: ARG002
        local = self._store.view.storage.local_path(key)
        self._refs[path] = [f"{self._store.url}/{key}" if local is None else f"file://{local}"]

    def close(self, folder: Path) -> str:
        made = json.dumps({"version": 1, "refs": self._refs}, sort_keys=True)
        (folder / REFS_FILE).write_text(made, encoding="utf-8")
        return REFS_FILE
