"""Settings of ``query`` and ``tables``."""

from dataclasses import dataclass

from tyro.conf import Positional

from jobs.config.base import Verb


@dataclass(frozen=True, kw_only=True)
class Query(Verb):
    """Ask a store in SQL: tokens, sequences, documents and every group join by row.

    Example: actlake query ./store "SELECT split, count(*) AS n FROM tokens GROUP BY split"
    """

    url: Positional[str]
    """The store."""
    sql: Positional[str]
    """A SELECT in Polars' dialect."""
    max_rows: int = 50
    """Rows printed at most; --json prints all."""
    without_indexes: bool = False
    """Read every part's own files: slower, and right where an index is damaged."""


@dataclass(frozen=True, kw_only=True)
class Tables(Verb):
    """List the tables a query may use, with their columns.

    Example: actlake tables ./store
    """

    url: Positional[str]
    """The store."""
