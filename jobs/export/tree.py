"""The Zarr v3 hierarchy a store's dense columns are: which arrays, of what shape, and what each key of them stands for.

One outer chunk of ``<group>/<column>`` is the shard of one part as it stands, so the index of an array is the row id and
nothing is coded anew. Where a part has no rows (its end, a part that is not there) the array ``<group>/valid`` says so.
What is not shown is named in the root's attributes: tables are Parquet as they stand, slots of a sample are not row ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jobs.errors import JobError
from store import Store
from store.layout import shard_path
from store.schema import Column, Group
from store.shards import zarr_json

DTYPES = ("uint16", "bfloat16")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One dense column as an array."""

    group: str
    column: Column

    @property
    def path(self) -> str:
        """Where the array is in the hierarchy."""
        return f"{self.group}/{self.column.name}"

    def chunk(self, part: int) -> str:
        """Return the key of the outer chunk that is a part's shard."""
        return "/".join([f"{self.path}/c/{part}", *["0"] * len(self.column.shape)])

    @property
    def shard(self) -> str:
        """Path of the shard below an attempt."""
        return shard_path(self.column.name, 1 + len(self.column.shape))


class Tree:
    """The hierarchy of one store as it is when this is made.

    Parameters
    ----------
    groups
        Names; default: every group with dense columns of whole parts.
    dtype
        What bfloat16 columns say they are: ``uint16`` or ``bfloat16``. The bytes are the same.
    pin
        Id to note in the attributes.

    Raises
    ------
    JobError
        ``masked-group``: a sample was named; ``no-columns``: nothing could be shown;
        ``not-purged``: shards hold rows of removed documents.
    """

    def __init__(
        self,
        store: Store,
        groups: Sequence[str] | None = None,
        *,
        dtype: str = "uint16",
        pin: str | None = None,
    ) -> None:
        self.store, self._dtype, self._pin = store, dtype, pin
        self.groups, self.left_out = _chosen(store, groups)
        self.parts = {group.name: tuple(store.view.parts(group.name)) for group in self.groups}
        _check_purged(store, {part for parts in self.parts.values() for part in parts})
        self.arrays = {
            shown.path: shown
            for group in self.groups
            for shown in (Shown(group=group.name, column=column) for column in _dense(group))
        }

    def length(self, group: str) -> int:
        """Return the rows of a group's arrays, gaps among them."""
        return self.store.part_stride * (max(self.parts[group], default=-1) + 1)

    @cached_property
    def masks(self) -> dict[str, str]:
        """Path of each array that says which rows are rows, to its group; no column is hidden behind one."""
        return {f"{group.name}/{_free_name(group)}": group.name for group in self.groups}

    @cached_property
    def owners(self) -> dict[str, str]:
        """Path of every array, to its group."""
        return {**self.masks, **{path: shown.group for path, shown in self.arrays.items()}}

    def chunk(self, path: str, part: int) -> str:
        """Return the key of the outer chunk of an array that belongs to a part."""
        shown = self.arrays.get(path)
        return f"{path}/c/{part}" if shown is None else shown.chunk(part)

    def mask(self, group: str, part: int) -> bytes:
        """Return the chunk of ``valid`` of a part."""
        commit, shown = self.store.view.commit(group, part), np.zeros(self.store.part_stride, bool)
        slots = self.store.view.slots(commit)
        shown[slice(commit.slots) if slots is None else slots] = True
        return shown.tobytes()

    @cached_property
    def documents(self) -> dict[str, bytes]:
        """Every ``zarr.json``, by key."""
        attributes: dict[str, Any] = {"store": self.store.id, "index": "row id"}
        attributes |= {"pin": self._pin} if self._pin else {}
        found = {"zarr.json": _group_json({**attributes, "left_out": self.left_out})}
        for mask, group in self.masks.items():
            valid = mask.rpartition("/")[2]
            found[f"{group}/zarr.json"] = _group_json({**attributes, "valid": valid})
            found[f"{mask}/zarr.json"] = _mask_json(self.length(group), self.store.part_stride)
        for shown in self.arrays.values():
            found[f"{shown.path}/zarr.json"] = self._array_json(shown)
        return found

    def _array_json(self, shown: Shown) -> bytes:
        meta = json.loads(zarr_json(shown.column, self.length(shown.group), self.store.part_stride))
        if shown.column.dtype == self._dtype == "bfloat16" and meta["data_type"] == "uint16":
            meta |= {"data_type": "bfloat16", "fill_value": "NaN"}
        return text(meta)


def text(meta: dict[str, Any]) -> bytes:
    """Return metadata as it lies in a file."""
    return json.dumps(meta, indent=1, sort_keys=True).encode()


def _dense(group: Group) -> Iterator[Column]:
    return (column for column in group.columns.values() if column.kind == "dense")


def _free_name(group: Group) -> str:
    name = "valid"
    while name in group.columns:
        name += "_"
    return name


def _check_purged(store: Store, parts: set[int]) -> None:
    """Raise where shards still hold rows of removed documents: a Zarr reader leaves nothing out."""
    left = sorted(part for part in parts if store.view.unpurged(part))
    if left:
        raise JobError(
            f"part {left[0]} (of {len(left)} such) of {store.url} still holds rows of documents that were removed, "
            f"which Zarr readers would show. Nothing was shown. First run: actlake purge {store.url} --reason …",
            kind="not-purged",
        )


def _why_not(group: Group) -> str | None:
    """Return why a group is not shown, or None."""
    if not list(_dense(group)):
        kinds = sorted({column.kind for column in group.columns.values()})
        return f"no dense column: {' and '.join(kinds)}"
    return "a sample of the rows: its slots are not row ids" if group.masked else None


def _chosen(store: Store, groups: Sequence[str] | None) -> tuple[tuple[Group, ...], dict[str, str]]:
    held = [store.view.group(name) for name in (store.groups if groups is None else groups)]
    left_out = {group.name: why for group in held if (why := _why_not(group)) is not None}
    if groups and (masked := [g.name for g in held if g.masked and list(_dense(g))]):
        raise JobError(
            f"group {masked[0]!r} of {store.url} holds a sample, whose slots are not row ids. Nothing was shown. "
            "Name groups of all rows, or read the sample with store.row_ids and store.read.",
            kind="masked-group",
        )
    found = tuple(group for group in held if group.name not in left_out)
    if not found:
        raise JobError(
            f"no dense column of whole parts was found in {', '.join(g.name for g in held) or 'any group'} of "
            f"{store.url}. Nothing was shown. `actlake inspect` shows what each column is.",
            kind="no-columns",
        )
    return found, left_out


def _group_json(attributes: dict[str, Any]) -> bytes:
    return text({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def _mask_json(length: int, stride: int) -> bytes:
    regular = {"name": "regular", "configuration": {"chunk_shape": [stride]}}
    keys = {"name": "default", "configuration": {"separator": "/"}}
    return text(
        {
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
    )
