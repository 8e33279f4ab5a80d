"""What every suite of an evaluation is: settings, and figures that are computed once they are known to fit.

A suite refuses in ``prepare``, before a result is begun; what it returns then works.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from ingest.contract import Runtime
from jobs.codebook import Codebook
from jobs.errors import JobError
from jobs.runtimes.in_process import InProcess
from store import Store
from store.conditions import Condition
from store.registry import Registry

SUITES = Registry("suite", "jobs.dictionaries.suites")
CORE = "core"
"""Reconstruction and sparsity, which every evaluation holds."""

Figures = Callable[[], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is evaluated, and on which rows."""

    store: Store
    columns: tuple[str, ...]
    targets: tuple[str, ...]
    """What is rebuilt; empty: the columns that are read."""
    book: Codebook
    split: str | None
    """None: all."""
    where: tuple[Condition, ...]
    """Filter of the ordinary rows of the split."""
    runtime: Runtime = field(default_factory=InProcess)


class Suite(Protocol):
    """A frozen config, filed in `SUITES`."""

    kind: ClassVar[str]

    def described(self) -> dict[str, Any]:
        """Return the settings its figures depend on, JSON values."""
        ...

    def prepare(self, asked: Asked) -> Figures:
        """Return what computes the figures, by name.

        Raises
        ------
        JobError
            What is evaluated does not fit; nothing was computed.
        """
        ...


def suites_of(given: Sequence[str | Suite]) -> list[Suite]:
    """Return suites by name or as they are, each once, ``core`` left out.

    Raises
    ------
    JobError
        ``unknown-suite``.
    """
    known = SUITES.names()
    named = [one for one in given if isinstance(one, str) and one != CORE]
    if unknown := sorted(set(named) - set(known)):
        raise JobError(
            f"there is no suite {', '.join(unknown)}; known: {', '.join((CORE, *known))}. Nothing was written.",
            kind="unknown-suite",
        )
    found: dict[str, Suite] = {}
    for one in given:
        if one != CORE:
            suite = SUITES.get(one)() if isinstance(one, str) else one
            found[suite.kind] = suite
    return list(found.values())
