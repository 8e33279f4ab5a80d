"""Put, commit, seal: rows go in ascending, a part of a group becomes visible whole when its last row arrives.

A writer that leaves with an unfinished part drops that attempt and says which rows are missing. Rows of parts
that are committed already are accepted and passed over, so running the same program again completes the group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from store import layout, tables
from store.commits import Attempt, Commit, declare_group
from store.errors import ConflictError, InvalidInputError
from store.partials import encode_partial, partial_path
from store.rows import BY_LATENT, row_numbers
from store.schema import Column, Group, check_name
from store.summary import Summary
from store.values import (
    Codes,
    check_codes,
    check_columns,
    check_shape,
    rows_of,
    stored_values,
)
from store.view import View

Array = np.ndarray[Any, np.dtype[Any]]


class Home(Protocol):
    """What writers need of the store they write into; ``Store`` is one."""

    id: str
    part_rows: int
    part_stride: int
    view: View

    @property
    def url(self) -> str:
        """Where the store is."""

    def refresh(self) -> Self:
        """Return the store as it is now."""

    def seal(self, group: str) -> bool:
        """Seal a group where every part is there."""


@dataclass(kw_only=True)
class _OpenPart:
    """The part being written."""

    attempt: Attempt
    tokens: Commit
    ids: list[Array] = field(default_factory=list)
    rows: int = 0
    scalars: dict[str, list[Array]] = field(default_factory=dict)
    codes: list[Codes] = field(default_factory=list)
    summary: dict[str, Summary] = field(default_factory=dict)


class Writer:
    """Writes one group aligned to the tokens; see ``Store.writer``."""

    def __init__(
        self,
        store: Home,
        group: str,
        *,
        columns: Mapping[str, Column],
        recipe: Mapping[str, Any],
        allow_nonfinite: bool,
        provenance: Mapping[str, Any],
    ) -> None:
        self._store = store.refresh()
        self._storage = store.view.storage
        self._allow_nonfinite = allow_nonfinite
        self._provenance = provenance
        self._open: _OpenPart | None = None
        self.committed: list[Commit] = []
        self.passed_rows = 0
        check_columns(group, columns, masked=recipe.get("mask") is not None)
        if group in {"sequences", "documents", "document_parts"} or group.endswith(BY_LATENT):
            raise InvalidInputError(
                f"a group may not be called {group!r}: a table of that name is there already. Nothing was "
                "written. Choose another name (--group).",
                kind="bad-name",
            )
        self._store.view.group("tokens")
        declared = Group(
            name=check_name(group, "group"), columns=columns, recipe=recipe, aligned_to="tokens"
        )
        self.group = declare_group(self._storage, store.id, declared)
        self._store = self._store.refresh()
        self._done = set(self._store.view.parts(group))
        # No part may outlive the tokens it names.
        self._storage.settle(layout.commits_prefix("tokens"))

    def done(self, part: int) -> bool:
        """Return whether a part is committed, so that its rows need not be computed."""
        return part in self._done

    def put(self, rows: Any, values: Mapping[str, Any], *, raw: bool = False) -> None:
        """Write rows.

        Parameters
        ----------
        rows
            Row ids, ``int64[R]``, ascending; without gaps unless the group is masked.
        values
            Every column of the group: ``[R, *shape]`` arrays, or ``Codes`` of these rows. bfloat16 columns
            take float32 (rounded to nearest even), or ``uint16`` bits with ``raw=True``.

        Raises
        ------
        InvalidInputError
            ``missing-column``, ``unknown-column``, ``width-mismatch``, ``rows-mismatch``, ``row-order``,
            ``row-missing``, ``bad-rows``, ``column-kind``, ``dtype-mismatch``, ``out-of-range``,
            ``codes-mismatch`` or ``nonfinite``. The unfinished part is dropped; committed parts stand.
        """
        try:
            self._put(row_numbers(rows), values, raw=raw)
        except BaseException:
            self.abandon()
            raise

    def _put(self, rows: Array, values: Mapping[str, Any], *, raw: bool) -> None:
        self._check_values(rows, values)
        if not len(rows):
            return
        parts = rows // self._store.part_stride
        bounds = np.flatnonzero(np.diff(parts)) + 1
        for low, high in zip([0, *bounds], [*bounds, len(rows)], strict=True):
            part = int(parts[low])
            if self.done(part):
                self._check_return(part)
                self.passed_rows += int(high - low)
                continue
            mine = {name: rows_of(v, rows, low, high) for name, v in values.items()}
            self._put_part(part, rows[low:high], mine, raw=raw)

    def put_partial(self, part: int, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Write what a part comes to, and commit it; a part that is committed is passed over.

        Parameters
        ----------
        part
            A committed part of the tokens.
        values
            Every column of the group: name → array (floats of 32 or 64 bits, integers) of any shape, NaN and
            infinities included; at most 64 MiB a column.

        Raises
        ------
        InvalidInputError
            ``missing-column``, ``unknown-column``, ``column-kind``, ``bad-name``, ``dtype-mismatch`` or
            ``partial-too-large``. Nothing of the part is written.
        """
        self._check_columns_given(values, "partial")
        if self.done(part):
            self.passed_rows += self._store.view.commit("tokens", part).rows
            return
        files = {partial_path(name): encode_partial(values[name], name) for name in values}
        at = self._open = self._begin(part)
        try:
            for path, data in files.items():
                at.attempt.put(path, data, at.tokens.rows)
            self._make_visible(at, at.tokens.rows)
        except BaseException:
            self.abandon()
            raise

    def _check_return(self, part: int) -> None:
        """Raise where a sample goes back to a part this writer finished: its rows would be lost."""
        if self.group.masked and any(commit.part == part for commit in self.committed):
            raise InvalidInputError(
                f"rows of part {part} were put into masked group {self.group.name!r} after a later part, when "
                "it was committed already. The unfinished part was dropped; committed parts stand. Put row "
                "ids in ascending order.",
                kind="row-order",
                part=part,
            )

    def _check_columns_given(self, values: Mapping[str, Any], *kinds: str) -> None:
        """Raise unless exactly the group's columns are given, and all are of some kinds."""
        place = f"group {self.group.name!r} of {self._store.url}"
        state = "The unfinished part was dropped; committed parts stand."
        for kind, names in {
            "missing-column": set(self.group.columns) - set(values),
            "unknown-column": set(values) - set(self.group.columns),
        }.items():
            if names:
                raise InvalidInputError(
                    f"put into {place} has {kind.replace('-', ' ')} {', '.join(sorted(names))}; its "
                    f"columns are {', '.join(self.group.columns)}. {state}",
                    kind=kind,
                )
        for column in self.group.columns.values():
            if column.kind not in kinds:
                raise InvalidInputError(
                    f"column {column.name!r} of {place} is {column.kind}; this writes {', '.join(kinds)} "
                    f"columns. {state} Partial columns take put_partial, all others put.",
                    kind="column-kind",
                    column=column.name,
                )

    def _check_values(self, rows: Array, values: Mapping[str, Any]) -> None:
        self._check_columns_given(values, "dense", "scalar", "codes")
        place = f"group {self.group.name!r} of {self._store.url}"
        state = "The unfinished part was dropped; committed parts stand."
        if (np.diff(rows) <= 0).any():
            raise InvalidInputError(
                f"row ids put into {place} do not ascend. {state} Sort them; put each row once.",
                kind="row-order",
            )
        for name, column in self.group.columns.items():
            if column.kind == "codes":
                check_codes(values[name], rows, place, state)
            else:
                check_shape(values[name], column, len(rows), place, state)

    def _put_part(self, part: int, ids: Array, values: Mapping[str, Any], *, raw: bool) -> None:
        if self._open is None or self._open.tokens.part != part:
            self._finish_open()
            self._open = self._begin(part)
        at = self._open
        base = part * self._store.part_stride
        expected = base + at.rows
        last = int(ids[-1]) - base
        if self.group.masked:
            fits = not at.ids or ids[0] > at.ids[-1][-1]
        else:
            fits = ids[0] == expected and ids[-1] - ids[0] == len(ids) - 1
        if last >= at.tokens.rows or not fits:
            raise InvalidInputError(
                f"rows {ids[0]}…{ids[-1]} were put into group {self.group.name!r}; part {part} holds rows "
                f"{base}…{base + at.tokens.rows - 1} and row {expected} comes next. The unfinished part "
                "was dropped; committed parts stand. Put every row once, ascending.",
                kind="row-missing",
            )
        for name, column in self.group.columns.items():
            self._add(at, column, ids, values[name], raw=raw)
        at.ids.append(ids)
        at.rows += len(ids)
        if not self.group.masked and at.rows == at.tokens.rows:
            self._commit(at)

    def _begin(self, part: int) -> _OpenPart:
        attempt = Attempt(
            storage=self._storage,
            store_id=self._store.id,
            group=self.group,
            part=part,
            stride_rows=self._store.part_stride,
        )
        return _OpenPart(attempt=attempt, tokens=self._store.view.commit("tokens", part))

    def _add(self, at: _OpenPart, column: Column, ids: Array, values: Any, *, raw: bool) -> None:
        if column.kind == "codes":
            bad = ~np.isfinite(np.asarray(values.value))
            if bad.any() and not self._allow_nonfinite:
                raise self._nonfinite(column, int(np.asarray(values.row)[bad][0]))
            at.codes.append(values)
            return
        stored, plain = stored_values(values, column, raw=raw)
        summary = at.summary.setdefault(column.name, Summary())
        summary.update(plain)
        if summary.nonfinite and not self._allow_nonfinite:
            raise self._nonfinite(
                column, int(np.concatenate([*at.ids, ids])[summary.first_bad_row])
            )
        if column.kind == "dense":
            at.attempt.shard(column).append(stored)
        else:
            at.scalars.setdefault(column.name, []).append(stored)

    def _nonfinite(self, column: Column, row: int) -> InvalidInputError:
        return InvalidInputError(
            f"column {column.name!r} of group {self.group.name!r} has a value that is not finite (or does "
            f"not fit {column.dtype or 'float32'}) in row {row}. The unfinished part was dropped; committed "
            "parts stand. Look at that row, or allow it (allow_nonfinite=True).",
            kind="nonfinite",
            column=column.name,
            row=row,
        )

    def _commit(self, at: _OpenPart) -> None:
        ids = np.concatenate(at.ids)
        if self.group.masked:
            at.attempt.put(
                "rows.parquet", tables.encode(tables.table({"row": ids}, tables.ROWS)), at.rows
            )
        if at.scalars:
            # Sorted as in group.json: whoever joins the group later must write the same order.
            columns = {name: np.concatenate(at.scalars[name]) for name in sorted(at.scalars)}
            data = tables.encode(tables.table({"row": ids, **columns}))
            at.attempt.put("scalars.parquet", data, at.rows)
        if any(column.kind == "codes" for column in self.group.columns.values()):
            _put_codes(at.attempt, at.codes)
        self._make_visible(at, at.rows)

    def _make_visible(self, at: _OpenPart, rows: int) -> None:
        commit = at.attempt.commit(
            rows,
            tokens=at.tokens.hash,
            summary={name: summary.to_json() for name, summary in at.summary.items()},
            provenance=self._provenance,
        )
        self._open = None
        self._done.add(commit.part)
        self.committed.append(commit)

    def _finish_open(self) -> None:
        at = self._open
        if at is None:
            return
        if self.group.masked:
            self._commit(at)
            return
        base = at.tokens.part * self._store.part_stride
        self.abandon()
        raise InvalidInputError(
            f"part {at.tokens.part} of group {self.group.name!r} is incomplete: rows {base + at.rows}…"
            f"{base + at.tokens.rows - 1} are missing. That part was dropped; "
            f"{len(self.committed)} committed parts stand. Put the part again from row {base}.",
            kind="part-incomplete",
            part=at.tokens.part,
        )

    def abandon(self) -> None:
        """Drop the unfinished part; committed parts stand."""
        if self._open is not None:
            self._open.attempt.drop()
            self._open = None

    def close(self) -> None:
        """Finish: refuse an incomplete part, and seal the group where all parts of sealed tokens are there."""
        self._finish_open()
        self._store.seal(self.group.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


def _put_codes(attempt: Attempt, blocks: list[Codes]) -> None:
    row = np.concatenate([np.asarray(b.row, np.int64) for b in blocks])
    latent = np.concatenate([np.asarray(b.latent, np.uint32) for b in blocks])
    value = np.concatenate([np.asarray(b.value, np.float32) for b in blocks])
    by_row = np.lexsort((latent, row))
    by_latent = np.lexsort((row, -value, latent))
    for path, order in {"codes.parquet": by_row, "by_latent.parquet": by_latent}.items():
        columns = {"row": row[order], "latent": latent[order], "value": value[order]}
        attempt.put(path, tables.encode(tables.table(columns, tables.CODES)), len(row))


def check_unsealed(store: Home) -> None:
    """Raise ``sealed`` where the tokens are complete: appending is refused."""
    sealed = store.view.sealed("tokens")
    if sealed is not None:
        raise ConflictError(
            f"the tokens of {store.url} are sealed with {sealed['parts']} parts and {sealed['rows']} rows; "
            "rows cannot be added. Nothing was written. Make a new store for more rows.",
            kind="sealed",
        )
