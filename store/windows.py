"""Windows of shuffled rows: reads the chunks the order names, straight to their shuffled places."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from store import tables
from store.buffers import Pool
from store.conditions import Condition, select
from store.errors import ConflictError, InvalidInputError
from store.layout import CHUNK_ROWS
from store.order import Order
from store.records import canonical, sha256
from store.rows import decoded, returned_dtype, scalars
from store.schema import Column, Group
from store.storage import each
from store.view import View

MAX_WINDOW_ROWS = 4_000_000
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Rows in their final order.

    ``row_ids`` is ``int64[R]``; ``columns[c]`` is ``[R, *shape]``; ``position`` counts all surviving rows of
    the epoch before the window's first, over all ranks; ``next_position`` those before the next window.
    """

    row_ids: Array
    columns: Mapping[str, Array]
    position: int
    next_position: int


def free_memory_bytes() -> int:
    """Return what Linux says is available, or a quarter of the physical memory elsewhere."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123 - a pseudo file
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def default_window_rows(rows: Array, row_bytes: int) -> int:
    """Return min(all rows, a quarter of the free memory, 4 M rows), in whole chunks.

    Parameters
    ----------
    rows
        ``int64[P]``: rows of each part; the last chunk of each may hold fewer than the others.
    """
    fit = free_memory_bytes() // 4 // max(1, row_bytes)
    everything = int((-(-rows // CHUNK_ROWS)).sum()) * CHUNK_ROWS
    return max(CHUNK_ROWS, min(everything, fit, MAX_WINDOW_ROWS))


def table_of(view: View, name: str) -> tuple[str, str]:
    """Return (group, table) of the column a filter names, or raise ``bad-where``."""
    if name in tables.TOKENS.names:
        return "tokens", "tokens.parquet"
    group, column = view.resolve(name)
    if column.kind != "scalar" or group.masked:
        raise InvalidInputError(
            f"where names {name!r}, a {column.kind} column of group {group.name!r}; filters take the "
            "tokens' columns and scalar columns of unmasked groups. Nothing was read. Filter by another "
            "column.",
            kind="bad-where",
        )
    return group.name, "tokens.parquet" if group.name == "tokens" else "scalars.parquet"


def where_groups(view: View, where: Sequence[Condition]) -> list[str]:
    """Return the groups a filter reads, sorted; it is checked on the way."""
    for condition in where:
        if len(condition) != 3:
            raise InvalidInputError(
                f"where has {condition!r}; each condition is (column, operator, value). Nothing was read. "
                "Mend the filter.",
                kind="bad-where",
            )
    return sorted({table_of(view, name)[0] for name, _, _ in where})


def _runs(part: Array) -> Iterator[tuple[int, int]]:
    """Return (first, last) of the runs of equal values, of which there is at least one."""
    bounds = (np.flatnonzero(np.diff(part)) + 1).tolist()
    return zip([0, *bounds], [*bounds, len(part)], strict=True)


@dataclass(kw_only=True)
class Windows:
    """An epoch of windows over the parts all asked columns share; iterate it, or ask for its state."""

    view: View
    columns: Sequence[tuple[str, Group, Column]]
    seed: int
    epoch: int
    window_rows: int | None
    where: Sequence[Condition]
    start: int
    rank: int
    world: int
    raw: bool
    pin: str
    pool: Pool
    order: Order = field(init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world or self.start < 0:
            raise InvalidInputError(
                f"rank {self.rank} of world {self.world} was to start at position {self.start}; ranks run "
                f"from 0 to world-1 and positions from 0. Nothing was read. Mend the call.",
                kind="bad-rank",
            )
        for name, group, column in self.columns:
            if column.kind not in {"dense", "scalar"}:
                raise InvalidInputError(
                    f"column {name!r} is {column.kind}; windows hold dense and scalar columns. Nothing was "
                    f"read. Use .arrow({group.name!r}).",
                    kind="column-kind",
                )
        groups = {group.name for _, group, _ in self.columns} | set(
            where_groups(self.view, self.where)
        )
        shared = set(self.view.parts("tokens"))
        for name in groups:
            shared &= set(self.view.parts(name))
        parts = np.array(sorted(shared), np.int64)
        rows = np.array([c.rows for c in self.view.commits("tokens", sorted(shared))], np.int64)
        if not len(parts):
            raise InvalidInputError(
                f"no part holds all of {', '.join(c for c, _, _ in self.columns)}. Nothing was read. "
                "`actlake inspect` shows the coverage of each group.",
                kind="no-rows",
            )
        if self.window_rows is None:
            row_bytes = 8 + sum(
                column.row_bytes * (2 if column.bits and not self.raw else 1)
                for _, _, column in self.columns
            )
            self.window_rows = default_window_rows(rows, row_bytes)
        self.order = Order(
            parts=parts, rows=rows, seed=self.seed, epoch=self.epoch, window_rows=self.window_rows
        )
        self._masked = [g.name for _, g, _ in self.columns if g.masked]
        self._masks: dict[int, Array] = {}
        self._counts: list[int] | None = None

    # -- which rows survive ----------------------------------------------------------------------------

    def _mask(self, index: int) -> Array:
        """Return which rows of the ``index``-th part survive, ``bool[rows]``."""
        if index not in self._masks:
            part = int(self.order.parts[index])
            keep = np.ones(int(self.order.rows[index]), bool)
            for name, operator, value in self.where:
                group, path = table_of(self.view, name)
                data = self.view.table(self.view.commit(group, part), path)
                keep &= select(data, [(name.rpartition(":")[2], operator, value)])
            for group in self._masked:
                kept = self.view.kept(self.view.commit(group, part))
                assert kept is not None
                keep &= np.isin(self._ids(part, np.arange(len(keep))), kept)
            self._masks[index] = keep
        return self._masks[index]

    def _ids(self, part: int, rows: Array) -> Array:
        """Return the ids of rows of a part, counted among those that may be read."""
        visible = self.view.visible(part)
        return part * self.view.stride_rows + rows if visible is None else visible[rows]

    @property
    def _filtered(self) -> bool:
        return bool(self.where or self._masked)

    def _survivors(self, number: int) -> tuple[Array, Array]:
        """Return (part index, row in part) of a window's surviving rows, in store order."""
        part, chunk = self.order.window(number)
        local = (chunk[:, None] * CHUNK_ROWS + np.arange(CHUNK_ROWS)).reshape(-1)
        part = np.repeat(part, CHUNK_ROWS)
        keep = local < self.order.rows[part]
        if not keep.all():
            part, local = part[keep], local[keep]
        if self._filtered:
            keep = np.empty(len(part), bool)
            for low, high in _runs(part):
                keep[low:high] = self._mask(int(part[low]))[local[low:high]]
            part, local = part[keep], local[keep]
        return part, local

    def counts(self) -> list[int]:
        """Return the surviving rows of each window."""
        if self._counts is None:
            self._counts = [len(self._survivors(n)[0]) for n in range(self.order.windows)]
        return self._counts

    @property
    def rows(self) -> int:
        """Surviving rows of the epoch, over all ranks."""
        return sum(self.counts()) if self._filtered else int(self.order.rows.sum())

    # -- state -----------------------------------------------------------------------------------------

    @property
    def where_hash(self) -> str:
        """Hash of the filter."""
        return sha256(canonical([list(condition) for condition in self.where]))

    def state(self, next_position: int) -> dict[str, Any]:
        """Return what resumes at ``next_position``: pin, filter hash and five integers."""
        return {"pin": self.pin, "where": self.where_hash, **self.order.state(next_position)}

    def resume(self, state: Mapping[str, Any]) -> Windows:
        """Start where ``state`` says.

        Raises
        ------
        ConflictError
            ``resume-mismatch``: the state is of another pin, filter, seed, epoch or window size.
        """
        here = self.state(int(state.get("next_position", 0)))
        if differing := sorted(k for k in {*here, *state} if here.get(k) != state.get(k)):
            raise ConflictError(
                f"the resume state differs from this reading in {', '.join(differing)}. Nothing was read. "
                "Open the same pin with the same seed, epoch, window_rows and where.",
                kind="resume-mismatch",
            )
        self.start = int(state["next_position"])
        return self

    # -- reading ---------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Window]:
        """Yield the windows; memory of those that nobody holds any more is used again for later ones."""
        position = 0
        for number in range(self.order.windows):
            if position < self.start and position + self._size(number) <= self.start:
                position += self._size(number)
                continue
            part, local = self._survivors(number)
            if len(part):
                yield self._read(number, position, part, local)
            position += len(part)

    def _size(self, number: int) -> int:
        if self._filtered:
            return self.counts()[number]
        part, chunk = self.order.window(number)
        return int(np.minimum(CHUNK_ROWS, self.order.rows[part] - chunk * CHUNK_ROWS).sum())

    def _read(self, number: int, position: int, part: Array, local: Array) -> Window:
        order = self.order.shuffle(number, len(part))
        first = max(self.start - position, 0)
        first += (self.rank - position - first) % self.world
        chosen = order[first :: self.world]
        place = np.full(len(part), -1, np.int64)  # -1: another rank's, or read before
        place[chosen] = np.arange(len(chosen))
        row_ids = np.empty(len(part), np.int64)
        for low, high in _runs(part):
            row_ids[low:high] = self._ids(int(self.order.parts[part[low]]), local[low:high])
        columns = {
            name: self.pool.take((len(chosen), *column.shape), returned_dtype(column, raw=self.raw))
            for name, _, column in self.columns
        }
        for name, group, column in self.columns:
            self._fill(group, column, part, local, place, columns[name])
        return Window(
            row_ids=row_ids[chosen],
            columns=columns,
            position=max(position, self.start),
            next_position=position + len(part),
        )

    def _fill(
        self, group: Group, column: Column, part: Array, local: Array, place: Array, out: Array
    ) -> None:
        """Copy the column's rows to their places; rows placed at -1 are left out."""

        def fill(run: tuple[int, int]) -> None:
            low, high = run
            commit = self.view.commit(group.name, int(self.order.parts[part[low]]))
            slots = local[low:high]
            if group.masked:
                kept = self.view.kept(commit)
                assert kept is not None
                slots = np.searchsorted(kept, self._ids(commit.part, slots))
            self._scatter(commit, column, slots, place[low:high], out)

        each(self.view.storage, fill, list(_runs(part)))

    def _scatter(self, commit: Any, column: Column, slots: Array, place: Array, out: Array) -> None:
        if len(place) and place.min() < 0:
            slots, place = slots[place >= 0], place[place >= 0]
        if column.kind == "scalar":
            values = scalars(self.view, commit.group, commit.part, column)[slots]
            out[place] = decoded(values, column, raw=self.raw)
        elif len(slots):
            self.view.shard(commit, column).scatter(slots, place, out)
