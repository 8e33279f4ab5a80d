"""Settings of ``export zarr``."""

from dataclasses import dataclass

from tyro.conf import Positional

from jobs.config.base import Verb, Words


@dataclass(frozen=True, kw_only=True)
class ExportZarr(Verb):
    """Show whole columns as Zarr arrays indexed by row id: links to the shards, copies, or references.

    Example: actlake export zarr ./store --out columns.zarr
    """

    url: Positional[str]
    """The store."""
    out: str
    """Folder to make."""
    groups: Words | None = None
    """Groups; default: all with dense columns."""
    mode: str = "link"
    """link, copy, or refs (one file for fsspec's reference://, also of stores in buckets)."""
    dtype: str = "uint16"
    """What bfloat16 columns say they are: uint16, or bfloat16 for readers that know it."""
    pin: str | None = None
    """Export what this pin lists."""
