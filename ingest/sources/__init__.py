"""Sources of rows, one per file; each is a frozen config whose name is what ``--source`` takes."""

from ingest.sources.registry import SOURCES

__all__ = ["SOURCES"]
