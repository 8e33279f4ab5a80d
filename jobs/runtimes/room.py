"""How many workers fit where. Pure arithmetic over what nodes offer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """What one worker asks for."""

    cpus: int = 1
    gpus: float = 0
    named: Mapping[str, float] = field(default_factory=dict)

    def amounts(self) -> dict[str, float]:
        """Return resource → amount, without zeros, in Ray's names."""
        found = {"CPU": self.cpus, "GPU": self.gpus, **self.named}
        return {name: amount for name, amount in found.items() if amount > 0}

    def __str__(self) -> str:
        return ", ".join(f"{name} {amount:g}" for name, amount in self.amounts().items())


def room(ask: Ask, nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many workers fit on some nodes, each wholly on one.

    Parameters
    ----------
    nodes
        What each node offers in all: resource → amount.
    """
    amounts = ask.amounts()
    return sum(
        min(math.floor(node.get(name, 0) / amount + 1e-9) for name, amount in amounts.items())
        for node in nodes
    )
