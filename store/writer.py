"""Put, commit, seal: rows go in ascending, a part of a group becomes visible whole when its last row arrives.

A writer that leaves with an unfinished part drops that attempt and says which rows are missing. Rows of parts
that are committed already are accepted and passed over, so running the same program again completes the group.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from store import layout
from store.attempts import Attempt
from store.commits import Commit
from store.errors import ConflictError, InvalidInputError
from store.groups import declare_group
from store.open_part import OpenPart
from store.partials import encode_partial, partial_path
from store.rows import LATENT_ENDING, row_numbers
from store.schema import Column, Group, check_name
from store.summary import Summary
from store.values import (
    check_codes,
    check_columns,
    check_shape,
    rows_of,
    stored_values,
)
from store.view import View

_TOGETHER_BYTES = 1 << 20  # a thread takes 0.1 ms to start, about as long as this takes to write
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


class Writer:
    """Writes one group aligned to the tokens; see ``Store.writer``."""

    def __init__(
        self,
        store: Home,
        group: str,
        *,
        columns: Mapping[str, Column],
        recipe: Mapping[str, Any],
        allow_nonfinite: bool | Collection[str],
        provenance: Mapping[str, Any],
    ) -> None:
        self._store = store.refresh()
        self._storage = store.view.storage
        self._allow_nonfinite = allow_nonfinite
        self._provenance = provenance
        self._open: OpenPart | None = None
        self.committed: list[Commit] = []
        self.passed_rows = 0
        check_columns(group, columns, masked=recipe.get("mask") is not None)
        if group in {"sequences", "documents", "document_parts"} or group.endswith(LATENT_ENDING):
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
        # No part may outlive the tokens it names; what is passed over as done must stay done.
        for name in ("tokens", group):
            self._storage.settle(layout.commits_prefix(name))

    def done(self, part: int) -> bool:
        """Return whether nothing of a part is to be written: it is committed, or all its documents were removed.

        A part that lost documents takes no state any more, so that none can be read that was made of them.
        """
        if part in self._done:
            return True
        visible = self._store.view.visible(part)
        return visible is not None and (self.group.states or not len(visible))

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
                at.attempt.put(path, data, at.tokens.slots)
            self._make_visible(at, at.tokens.slots)
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
        if not at.expects(ids):
            raise self._unexpected(at, ids)
        for name, column in self.group.columns.items():
            self._add(at, column, ids, values[name], raw=raw)
        at.ids.append(ids)
        at.rows += len(ids)
        if not self.group.masked and at.rows == at.tokens.rows:
            self._commit(at)

    def _unexpected(self, at: OpenPart, ids: Array) -> InvalidInputError:
        removed = "" if at.due is None else ", some of which are of removed documents"
        next_row = at.base + at.next_slot
        if at.due is not None and len(left := at.due[at.due >= next_row]):
            next_row = int(left[0])
        upwards = " or a later one" if self.group.masked else ""
        return InvalidInputError(
            f"rows {ids[0]}…{ids[-1]} were put into group {self.group.name!r}; part {at.tokens.part} holds rows "
            f"{at.base}…{at.last}{removed}; row {next_row}{upwards} comes next. The unfinished part was dropped; "
            "committed parts stand. Put every row of store.row_ids() once, ascending.",
            kind="row-missing",
        )

    def _begin(self, part: int) -> OpenPart:
        attempt = Attempt(
            storage=self._storage,
            store_id=self._store.id,
            group=self.group,
            part=part,
            stride_rows=self._store.part_stride,
        )
        view = self._store.view
        return OpenPart(
            attempt=attempt,
            tokens=view.commit("tokens", part),
            base=part * self._store.part_stride,
            due=view.visible(part),
            without=() if self.group.masked else view.hiding(part),
        )

    def _add(self, at: OpenPart, column: Column, ids: Array, values: Any, *, raw: bool) -> None:
        if column.kind == "codes":
            bad = ~np.isfinite(np.asarray(values.value))
            if bad.any() and not self._may_be_nonfinite(column):
                raise self._nonfinite(column, int(np.asarray(values.row)[bad][0]))
            at.codes.append(values)
            return
        stored = stored_values(values, column, raw=raw)
        summary = at.summary.setdefault(column.name, Summary())

        def summarise() -> None:
            summary.update(stored, bits=column.bits)
            if summary.nonfinite and not self._may_be_nonfinite(column):
                raise self._nonfinite(
                    column, int(np.concatenate([*at.ids, ids])[summary.first_bad_row])
                )

        def append() -> None:
            at.attempt.shard(column).append(at.spread(stored, ids))

        if column.kind == "dense":
            _together(summarise, append, stored.nbytes)
        else:
            summarise()
            at.scalars.setdefault(column.name, []).append(stored)

    def _may_be_nonfinite(self, column: Column) -> bool:
        allowed = self._allow_nonfinite
        return allowed if isinstance(allowed, bool) else column.name in allowed

    def _nonfinite(self, column: Column, row: int) -> InvalidInputError:
        return InvalidInputError(
            f"column {column.name!r} of group {self.group.name!r} has a value that is not finite (or does "
            f"not fit {column.dtype or 'float32'}) in row {row}. The unfinished part was dropped; committed "
            "parts stand. Look at that row, or allow it (allow_nonfinite=True).",
            kind="nonfinite",
            column=column.name,
            row=row,
        )

    def _commit(self, at: OpenPart) -> None:
        at.complete()
        self._make_visible(at, at.rows if self.group.masked else at.tokens.slots)

    def _make_visible(self, at: OpenPart, rows: int) -> None:
        commit = at.attempt.commit(
            rows,
            tokens=at.tokens.hash,
            summary={name: summary.to_json() for name, summary in at.summary.items()},
            provenance=self._provenance,
            without=at.without,
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
        first = at.base + at.next_slot
        self.abandon()
        raise InvalidInputError(
            f"part {at.tokens.part} of group {self.group.name!r} is incomplete: rows {first}…"
            f"{at.last} are missing. That part was dropped; "
            f"{len(self.committed)} committed parts stand. Put the part again from row {at.base}.",
            kind="part-incomplete",
            part=at.tokens.part,
        )

    def abandon(self) -> None:
        """Drop the unfinished part; committed parts stand."""
        if self._open is not None:
            self._open.attempt.drop()
            self._open = None

    def finish_part(self) -> None:
        """End the part in hand: a sample's, which cannot know its last row, commits; any other must be complete.

        Raises
        ------
        InvalidInputError
            ``part-incomplete``.
        """
        self._finish_open()

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


def _together(first: Callable[[], None], second: Callable[[], None], size_bytes: int) -> None:
    """Do two things with much data at once, else one after the other; what the first raises goes before."""
    if size_bytes < _TOGETHER_BYTES:
        first()
        second()
        return
    with ThreadPoolExecutor(1) as beside:
        done = beside.submit(second)
        first()
    done.result()


def check_unsealed(store: Home) -> None:
    """Raise ``sealed`` where the tokens are complete: appending is refused."""
    sealed = store.view.sealed("tokens")
    if sealed is not None:
        raise ConflictError(
            f"the tokens of {store.url} are sealed with {sealed['parts']} parts and {sealed['rows']} rows; "
            "rows cannot be added. Nothing was written. Make a new store for more rows.",
            kind="sealed",
        )
