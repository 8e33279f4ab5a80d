"""Map over parts, merge in a fixed order: the same bits whoever works and whichever part is done first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from ingest.contract import Runtime
from jobs.contract import Mergeable, PartWorker

M = TypeVar("M", bound=Mergeable)


class OrderedMerge(Generic[M]):
    """Merges partials along one binary tree over their indices, whatever order they arrive in.

    Holds the partials that arrived early and one per level of the tree (the logarithm of the count).
    """

    def __init__(self) -> None:
        self._waiting: dict[int, M | None] = {}
        self._next = 0
        self._levels: list[tuple[int, M]] = []

    def add(self, index: int, partial: M | None) -> None:
        """Take the partial of an index, each index from 0 on once; None adds nothing."""
        self._waiting[index] = partial
        while self._next in self._waiting:
            arrived = self._waiting.pop(self._next)
            self._next += 1
            if arrived is not None:
                self._push(arrived)

    def _push(self, partial: M) -> None:
        level = 0
        while self._levels and self._levels[-1][0] == level:
            partial = self._levels.pop()[1].merge(partial)
            level += 1
        self._levels.append((level, partial))

    def result(self) -> M | None:
        """Return the merged whole, or None where nothing was added."""
        assert not self._waiting, f"index {self._next} never arrived"
        levels = list(self._levels)
        if not levels:
            return None
        _, whole = levels.pop()
        while levels:
            whole = levels.pop()[1].merge(whole)
        return whole


def map_merge(
    runtime: Runtime,
    make_worker: Callable[[], PartWorker],
    parts: Sequence[int],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Return the merged partials of some parts, or None where no part adds anything.

    Parameters
    ----------
    runtime
        Where parts are worked on.
    progress
        Called with (parts done, parts).
    """
    index = {part: number for number, part in enumerate(parts)}
    merged: OrderedMerge[Any] = OrderedMerge()
    for done, (part, partial) in enumerate(runtime.map(make_worker, parts), start=1):
        merged.add(index[part], partial)
        if progress is not None:
            progress(done, len(parts))
    return merged.result()
