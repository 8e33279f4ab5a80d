"""Rows of one column: ranges, gathers and whole sequences, straight from shards and tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from store import tables
from store.errors import InvalidInputError, NotFoundError
from store.memory import MemoryStorage
from store.objects import object_schema
from store.schema import Column, Group
from store.storage import each
from store.summary import float32_of_bits
from store.view import View

Array = np.ndarray[Any, np.dtype[Any]]


LATENT_ENDING = "_by_latent"  # behind a codes group's name: its table sorted by latent
_HOW = {"partial": "partial(column, part)", "codes": "arrow(group)"}


def table_place(view: View, name: str) -> tuple[str, str, Any]:
    """Return (group, path, schema) of a table: tokens, sequences, documents, or a group's name."""
    if name in {"tokens", "sequences", "documents"}:
        path = f"{name}.parquet"
        return "tokens", path, object_schema(view.group("tokens"), path)
    group = view.group(name if name in view.groups else name.removesuffix(LATENT_ENDING))
    kinds = {column.kind for column in group.columns.values()}
    if "codes" in kinds:
        path = "codes.parquet" if group.name == name else "by_latent.parquet"
        return group.name, path, object_schema(group, path)
    if "scalar" in kinds and group.name == name:
        path = "scalars.parquet"
        return group.name, path, object_schema(group, path)
    raise NotFoundError(
        f"group {name!r} has no table: its columns are {' and '.join(sorted(kinds))}. Nothing was read. Use "
        "read, gather or partial.",
        kind="table-missing",
    )


def table_files(view: View, name: str) -> list[str]:
    """Return the committed files of a table, verified, in part order: paths, or URLs in a bucket."""
    group, path, _ = table_place(view, name)
    storage = view.storage
    if isinstance(storage, MemoryStorage):
        raise InvalidInputError(
            f"the files of table {name!r} of {storage.url} were asked for, which lives in memory and has none. Nothing "
            "was read. Use .arrow or .table.",
            kind="no-files",
        )
    commits = [view.commit(group, part) for part in view.parts(group)]
    for commit in commits:
        view.objects.check(commit, path)
    keys = [commit.prefix + path for commit in commits]
    return [str(storage.local_path(key) or f"{storage.url}/{key}") for key in keys]


def row_numbers(values: Any) -> Array:
    """Return row ids as ``int64[R]``; numbers that are not integers are refused, never rounded."""
    ids = np.asarray(values)
    if ids.size and ids.dtype.kind not in "iu":
        raise InvalidInputError(
            f"row ids were given as {ids.dtype}; they are integers. Nothing was read or written. Convert "
            "them first.",
            kind="bad-rows",
        )
    return ids.astype(np.int64).reshape(-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Reads rows of any dense or scalar column through one view; see the methods of ``Store``."""

    view: View

    def partial(self, column: str, part: int) -> dict[str, Array]:
        """Return the state a partial column holds of one part: name → array, read-only."""
        group, spec = self.view.resolve(column)
        if spec.kind != "partial":
            raise InvalidInputError(
                f"column {spec.name!r} of group {group.name!r} is {spec.kind}; only partial columns hold "
                "states. Nothing was read. `actlake inspect` shows what each column is.",
                kind="column-kind",
            )
        return self.view.objects.partial(self.view.commit(group.name, part), spec)

    def _resolve(self, column: str) -> tuple[Group, Column]:
        group, spec = self.view.resolve(column)
        if spec.kind not in {"dense", "scalar"}:
            raise InvalidInputError(
                f"column {spec.name!r} of group {group.name!r} is {spec.kind}; read and gather take dense "
                f"and scalar columns. Nothing was read. Use .{_HOW.get(spec.kind, 'arrow')}.",
                kind="column-kind",
            )
        return group, spec

    def spans(self, group: str, rows: slice) -> list[tuple[int, int, int]]:
        """Return (part, first, last) of the part-wise pieces of a row range."""
        counts = [commit.rows for commit in self.view.commits(group)]
        start, stop, step = rows.indices(sum(counts))
        if step != 1:
            raise InvalidInputError(
                f"rows were asked for with step {step}; ranges have step 1. Nothing was read. Use gather "
                "with row ids.",
                kind="bad-rows",
            )
        spans, at = [], 0
        for part, count in zip(self.view.parts(group), counts, strict=True):
            low, high = max(start - at, 0), min(stop - at, count)
            if low < high:
                spans.append((part, low, high))
            at += count
        return spans

    def row_ids(self, rows: slice = slice(None), group: str = "tokens") -> Array:
        """Return the row ids (``int64``) of a range of a group's rows, counted in part order."""
        pieces = [np.empty(0, np.int64)]
        for part, low, high in self.spans(group, rows):
            kept = self.view.kept(self.view.commit(group, part))
            base = part * self.view.stride_rows
            pieces.append(np.arange(base + low, base + high) if kept is None else kept[low:high])
        return np.concatenate(pieces)

    def read(
        self,
        column: str,
        rows: slice = slice(None),
        *,
        raw: bool = False,
        out: Array | None = None,
    ) -> Array:
        """Return a range of a column's rows, ``[R, *shape]``, counted in part order without gaps."""
        group, spec = self._resolve(column)
        spans = self.spans(group.name, rows)
        out = _target(out, sum(high - low for _, low, high in spans), spec, raw=raw)
        firsts = np.cumsum([0, *(high - low for _, low, high in spans)])

        def read(number: int) -> None:
            part, low, high = spans[number]
            mine = out[firsts[number] : firsts[number + 1]]
            if spec.kind == "dense":
                self.view.shard(self.view.commit(group.name, part), spec).read(low, high, mine)
            else:
                mine[:] = decoded(
                    scalars(self.view, group.name, part, spec)[low:high], spec, raw=raw
                )

        each(self.view.storage, read, range(len(spans)))
        return out

    def gather(
        self, column: str, row_ids: Any, *, raw: bool = False, out: Array | None = None
    ) -> Array:
        """Return the rows of given ids in the given order, ``[R, *shape]``; repeats are fine.

        Raises
        ------
        NotFoundError
            ``row-missing``: the column does not hold one of the rows.
        """
        group, spec = self._resolve(column)
        ids = row_numbers(row_ids)
        out = _target(out, len(ids), spec, raw=raw)

        def gather(mine: Array) -> None:
            part = int(ids[mine[0]] // self.view.stride_rows)
            slots = self._slots(group, part, ids[mine])
            if spec.kind == "dense":
                commit = self.view.commit(group.name, part)
                self.view.shard(commit, spec).scatter(slots, mine, out)
            else:
                values = scalars(self.view, group.name, part, spec)[slots]
                out[mine] = decoded(values, spec, raw=raw)

        each(self.view.storage, gather, _by_part(ids // self.view.stride_rows))
        return out

    def _slots(self, group: Group, part: int, ids: Array) -> Array:
        """Return where a part keeps the rows of some ids."""
        missing = part not in self.view.parts(group.name)
        slots, bad = ids - part * self.view.stride_rows, np.ones(len(ids), bool)
        if not missing:
            commit = self.view.commit(group.name, part)
            kept = self.view.kept(commit)
            if kept is None:
                bad = slots >= commit.rows
            elif len(kept):
                slots = np.minimum(np.searchsorted(kept, ids), len(kept) - 1)
                bad = kept[slots] != ids
        if bad.any():
            raise NotFoundError(
                f"row {int(ids[bad][0])} (and {int(bad.sum()) - 1} more) is not in group "
                f"{group.name!r} of {self.view.storage.url}. Nothing was returned. `actlake inspect` shows coverage.",
                kind="row-missing",
            )
        return slots

    def sequences(self, column: str, seq_ids: Any, *, raw: bool = False) -> list[Array]:
        """Return whole sequences of a column, one array ``[T, *shape]`` each.

        Raises
        ------
        InvalidInputError
            ``masked-group``: the group holds a sample of the rows, not whole sequences.
        """
        group, _ = self.view.resolve(column)
        if group.masked:
            raise InvalidInputError(
                f"group {group.name!r} holds a sample of the rows, so it has no whole sequences. Nothing "
                "was read. Use gather with its row ids.",
                kind="masked-group",
            )
        found = []
        for seq_id in row_numbers(seq_ids):
            part = int(seq_id) // self.view.stride_rows
            data = self.view.table(self.view.commit("tokens", part), "sequences.parquet")
            ids = tables.column(data, "seq_id")
            at = int(np.searchsorted(ids, seq_id))
            if at == len(ids) or ids[at] != seq_id:
                raise NotFoundError(
                    f"there is no sequence {seq_id} in {self.view.storage.url}. Nothing was returned. The "
                    "sequences table lists their ids (seq_id, the id of their first row).",
                    kind="seq-missing",
                )
            rows = int(tables.column(data, "rows")[at])
            found.append(self.gather(column, np.arange(seq_id, seq_id + rows), raw=raw))
        return found


def _by_part(parts: Array) -> list[Array]:
    """Return the places of each part's rows, parts ascending."""
    if not len(parts):
        return []
    keys = parts - parts.min()
    if keys.max() < 1 << 16:
        keys = keys.astype(np.uint16)  # sorted by its digits, several times faster
    order = np.argsort(keys, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)


def returned_dtype(spec: Column, *, raw: bool) -> np.dtype[Any]:
    """Return the dtype callers see: float32 for bfloat16, or its bits where ``raw``."""
    if spec.dtype == "bfloat16":
        return np.dtype(np.uint16 if raw else np.float32)
    return spec.stored


def _target(out: Array | None, rows: int, spec: Column, *, raw: bool) -> Array:
    """Return ``out``, checked, or a new array where there is none."""
    shape, dtype = (rows, *spec.shape), returned_dtype(spec, raw=raw)
    if out is None:
        return np.empty(shape, dtype)
    fits = out.shape == shape and out.dtype == dtype
    if not fits or not out.flags.c_contiguous or not out.flags.writeable:
        raise InvalidInputError(
            f"column {spec.name!r} was to be read into an array {out.dtype}{list(out.shape)}; these rows take a "
            f"writable, C-contiguous {dtype}{list(shape)}. Nothing was read. Give such an array, or none.",
            kind="bad-out",
            column=spec.name,
        )
    return out


def decoded(out: Array, spec: Column, *, raw: bool) -> Array:
    """Return stored values as callers see them: bfloat16 widened to float32, or as bits where ``raw``."""
    if spec.bits and not raw:
        return float32_of_bits(out)
    if raw and spec.dtype == "bfloat16" and not spec.bits:  # a table's values are rounded already
        return (out.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return out


def scalars(view: View, group: str, part: int, column: Column) -> Array:
    """Return a scalar column's values of a part, ``[R, *shape]``."""
    path = "tokens.parquet" if group == "tokens" else "scalars.parquet"
    values = tables.column(view.table(view.commit(group, part), path), column.name)
    return np.asarray(values).reshape(len(values), *column.shape)
