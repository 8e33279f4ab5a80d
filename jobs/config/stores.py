"""Settings of ``inspect``, ``verify`` and ``report``."""

from dataclasses import dataclass

from tyro.conf import Positional

from jobs.config.base import Verb


@dataclass(frozen=True, kw_only=True)
class Inspect(Verb):
    """Show a store's groups, columns, coverage, bytes and recipes.

    Example: actlake inspect ./store
    """

    url: Positional[str]
    """The store."""
    pin: str | None = None
    """See what this pin lists."""


@dataclass(frozen=True, kw_only=True)
class Verify(Verb):
    """Read every committed byte back and check it; prints the digest. Exits 1 on damage.

    Example: actlake verify ./store
    """

    url: Positional[str]
    """The store."""


@dataclass(frozen=True, kw_only=True)
class ReportOn(Verb):
    """Draw the report of results as one HTML file.

    Example: actlake report actlake-demo/results/*  --on actlake-demo/store
    """

    results: Positional[tuple[str, ...]]
    """Result folders, in the order they should be told."""
    on: str | None = None
    """The store, for its summary."""
    out: str = "report.html"
    """File to write."""
