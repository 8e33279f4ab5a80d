"""What a circuit statistic is: a frozen config, and the mergeable partial it fills block by block.

Laws every statistic keeps (one test over the registry): any split of the blocks merges to the whole; ``empty`` is
merge's identity; the order of parts does not matter (counts are exact, sums of floats agree to 1e-6 relative or
better); a state survives its bytes; a live run gives the bits of one from the store. For the last, a partial may
depend on nothing but the blocks it was given: accumulate in float64, on the CPU, in the blocks' own order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from ingest.contract import SequenceBlock
from ingest.models.facts import ModelFacts
from store.registry import Registry

Array = np.ndarray[Any, np.dtype[Any]]
State = dict[str, Array]
"""Name → array of float64 or int64: what the store keeps of a part."""
Table = Mapping[str, Any]
"""Column → array (or list of text), all of one length."""

__all__ = [
    "STATISTICS",
    "Array",
    "ModelFacts",
    "Partial",
    "SequenceBlock",
    "State",
    "Statistic",
    "Table",
]

STATISTICS = Registry("statistic", "jobs.circuits.statistics")


class Partial(Protocol):
    """What a statistic knows of some sequences."""

    def update(self, block: SequenceBlock) -> None:
        """Take in a block; sequences come whole, each once."""

    def merge(self, other: Self) -> Self:
        """Return the partial of both together; neither is changed."""

    def state(self) -> State:
        """Return what makes the partial again, of a size that does not grow with the rows."""

    def finalize(self) -> dict[str, Table]:
        """Return the tables, by name."""


class Statistic(Protocol):
    """A frozen keyword-only config, filed with ``@STATISTICS.register("name")``; every field has a default and is hashed.

    A statistic of any sites has a field ``sites`` that is empty by default: whoever runs it fills in those the
    store holds. One that may look at some blocks only has a field ``layers``, empty for all.
    """

    kind: ClassVar[str]
    version: ClassVar[int]
    """Raised where equal blocks give other numbers than before; part of the recipe."""

    def requires(self, model: ModelFacts) -> tuple[str, ...]:
        """Return the sites it reads of a model.

        Raises
        ------
        ActlakeError
            The model has no such thing (a bidirectional one has no induction heads, say).
        """

    def empty(self, model: ModelFacts) -> Partial:
        """Return the partial of no rows."""

    def from_state(self, model: ModelFacts, state: State) -> Partial:
        """Undo ``Partial.state``."""
