"""Which group keeps a statistic's partials, and under which recipe: the same for live and offline runs. Pure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingest.contract import SequenceBlock
from ingest.models.facts import ModelFacts
from jobs.circuits.contract import Statistic
from store.records import canonical, sha256
from store.registry import to_json

COLUMN = "state"
COLUMNS = {COLUMN: "partial"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """One statistic of one store."""

    statistic: Statistic
    sites: tuple[str, ...]
    recipe: Mapping[str, Any]
    """Statistic with its version, what the columns were made from, and the columns' declarations."""

    @property
    def group(self) -> str:
        """Group of its partials: ``stat.<kind>-<hash8>``, the hash that of the recipe."""
        return f"stat.{self.statistic.kind}-{sha256(canonical(self.recipe))[:8]}"

    def narrowed(self, block: SequenceBlock) -> SequenceBlock:
        """Return a block with the statistic's own sites only, in its order."""
        sites = {site: block.sites[site] for site in self.sites}
        return dataclasses.replace(block, sites=sites)


def described(statistic: Statistic) -> dict[str, Any]:
    """Return a statistic as JSON: kind, fields and version."""
    return {**to_json(statistic), "version": statistic.version}


def settled(statistic: Statistic, stored: Sequence[str]) -> Statistic:
    """Return a statistic of any sites bound to those stored, in an order of their own; another as it is."""
    if getattr(statistic, "sites", None) == () and stored:
        sites = tuple(sorted(stored, key=_natural))
        return dataclasses.replace(statistic, sites=sites)  # type: ignore[type-var]
    return statistic


def _natural(site: str) -> list[tuple[int, str]]:
    """Return a key that puts block 2 before block 10."""
    pieces = re.split(r"(\d+)", site)
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]


def planned(
    statistic: Statistic,
    sites: Sequence[str],
    base: Mapping[str, Any],
    specs: Mapping[str, str],
) -> Planned:
    """Return the plan of a statistic.

    Parameters
    ----------
    sites
        What it requires of the model.
    base
        What decides the sites' values besides their names; see ``jobs.sequences.base_of``.
    specs
        Site → declaration of its column, as stored or as it would be: ``bfloat16[384]``.
    """
    recipe = {
        "schema": 1,
        "statistic": described(statistic),
        "source": dict(base),
        "columns": {site: specs[site] for site in sites},
    }
    return Planned(statistic=statistic, sites=tuple(sites), recipe=recipe)


def spec_of(dtype: str, model: ModelFacts, site: str) -> str:
    """Return how a column of a site is declared in a dtype."""
    return f"{dtype}[{','.join(map(str, model.shape(site)))}]"
