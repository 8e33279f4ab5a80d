"""A small store step by step: three parts, two groups, and what must be true of it whatever happened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from store.errors import NotFoundError, StoreError
from store.maintenance import collect
from store.opening import create, open_in
from store.reader import Store
from store.storage import Storage
from store.testing.faults import FaultyStorage, Plan
from store.testing.small import sequences_of, values_of
from store.verify import Report, verify
from store.writer import Writer

LENGTHS = (200, 250, 130)
"""One sequence a part: no two fit together."""
ROWS, STRIDE = 256, 512
COLUMNS = {"h": "bfloat16[16]", "y": "int32"}
ACTS_OBJECTS = 3
"""Objects of a part of ``acts``: a shard, its description, a table."""


def write_tokens(made: Store, *, until: int | None = None, recipe: str = "steps") -> Store:
    """Write parts of tokens from where they stand up to a number of them; all, and the seal, where that is None."""
    with made.writer("tokens", recipe={"by": recipe}) as writer:
        done = 0 if writer.sealed else writer.position or 0
        end = len(LENGTHS) if until is None else until
        for number in range(len(LENGTHS) if writer.sealed else done, end):
            (sequence,) = sequences_of(LENGTHS[number : number + 1], first=number)
            writer.put([sequence], position=number + 1)
            writer.flush()
        if until is None and not writer.sealed:
            writer.seal()
    return made.refresh()


def put_part(writer: Writer, made: Store, part: int) -> None:
    """Write one part of a group."""
    ids = part * STRIDE + np.arange(made.view.commit("tokens", part).slots)
    columns = writer.group.columns.values()
    writer.put(ids, {column.name: values_of(ids, column) for column in columns})


def write_acts(
    made: Store,
    parts: Iterable[int] | None = None,
    *,
    group: str = "acts",
    recipe: str = "steps",
    columns: Mapping[str, str] = COLUMNS,
) -> Store:
    """Write what is missing of a group in some parts, default all; it is sealed where that completes it."""
    with made.writer(group, columns=columns, recipe={"by": recipe}) as writer:
        for part in made.view.parts("tokens") if parts is None else parts:
            if not writer.done(part):
                put_part(writer, made, part)
    return made.refresh()


def begun(url: Any, *, tokens: int | None = None) -> Store:
    """Make a store with some parts of tokens; sealed where that is None."""
    return write_tokens(create(url, part_rows=ROWS, part_stride=STRIDE), until=tokens)


def whole(url: Any) -> Store:
    """Make the whole store, undisturbed."""
    return write_acts(begun(url))


def through(made: Store, plan: Plan) -> Store:
    """Return a store as a process sees it whose calls follow a plan."""
    return seen_through(made, lambda inner: FaultyStorage(inner, plan))


def seen_through(made: Store, wrap: Callable[[Storage], Any]) -> Store:
    """Return a store as a process sees it whose storage is wrapped."""
    numbers = {"part_rows": made.part_rows, "part_stride": made.part_stride}
    return Store(wrap(made.view.storage), {"store": made.id, **numbers}, None)


def numbers_of(log: Iterable[str], start: str, end: str = "") -> list[int]:
    """Return the numbers, from 1, of the calls that start and end so."""
    found = enumerate(log, start=1)
    return [at for at, what in found if what.startswith(start) and what.endswith(end)]


def calls_of(made: Store, step: Callable[[Store], Any]) -> list[str]:
    """Return the writing calls that a step makes."""
    plan = Plan()
    step(through(made, plan))
    return plan.log


def truth_of(made: Store, name: str, lengths: Sequence[int]) -> dict[str, Any]:
    """Return what the columns of a group hold at the rows it shows."""
    ids = made.row_ids(group=name)
    if name != "tokens":
        columns = made.groups[name].columns.values()
        return {f"{name}:{column.name}": values_of(ids, column) for column in columns}
    held = np.full(STRIDE * (1 + int(ids.max(initial=0)) // STRIDE), -1)
    part = at = 0
    for sequence in sequences_of(lengths):
        if at + len(sequence) > ROWS:
            part, at = part + 1, 0
        if (low := part * STRIDE + at) < len(held):
            held[low : low + len(sequence)] = sequence.token_ids
        at += len(sequence)
    return {"token_id": held[ids]}


def is_right(
    storage: Storage, lengths: Sequence[int] = LENGTHS, allowed: Sequence[str] = ()
) -> Report | None:
    """Raise unless all that a reader sees is whole and what was written; None where there is no store yet.

    Parameters
    ----------
    allowed
        Kinds of error that may stand for the rows.
    """
    try:
        made = open_in(storage)
    except NotFoundError:
        return None
    report = verify(made)
    problems = [one for one in report.problems if one["kind"] not in allowed]
    assert problems == [], problems
    for name in made.groups:
        try:
            if made.view.parts(name):
                for column, values in truth_of(made, name, lengths).items():
                    assert np.array_equal(made.read(column), values), f"{column} is wrong"
        except StoreError as error:
            if error.kind not in allowed:
                raise
    return report


def ends_at(storage: Storage, digest: str, lengths: Sequence[int] = LENGTHS) -> None:
    """Raise unless a store is right, complete, and nothing is left in it after gc."""
    collect(open_in(storage), grace_seconds=0)
    report = is_right(storage, lengths)
    assert report is not None
    assert (report.digest, report.orphans) == (digest, [])


def begun_like(made: Store) -> Store:
    """Return a store in memory that is begun as this one was, to count calls on."""
    return begun(f"memory://like-{made.id}-{len(list(made.view.storage.keys('')))}")


def refused(made: Store, *kinds: str, column: str = "acts:h") -> StoreError:
    """Raise unless reading a column raises an error of one of some kinds, and so returns no row; return it."""
    try:
        made.live().read(column)
    except StoreError as error:
        if error.kind in kinds:
            return error
        raise
    raise AssertionError(f"{column} was read; expected {kinds}")
