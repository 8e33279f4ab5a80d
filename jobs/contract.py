"""What jobs over parts agree on."""

from __future__ import annotations

from typing import Any, Protocol, Self


class Mergeable(Protocol):
    """A partial result: associative ``merge``; two orders of merging may differ in the last bits of floats."""

    def merge(self, other: Self) -> Self:
        """Return the partial of both shares together; neither is changed."""


class PartWorker(Protocol):
    """A plain class a runtime may place anywhere: turns one part into a partial."""

    def run(self, part: int) -> Any:
        """Return the part's ``Mergeable``, or None where the part adds nothing."""

    def close(self) -> None:
        """Let go of what the worker holds."""
