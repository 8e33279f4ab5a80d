"""Settings of ``gc``, ``drop``, ``retire``, ``tombstone``, ``purge``, ``compact`` and ``doctor``."""

from dataclasses import dataclass

from tyro.conf import Positional

from jobs.config.base import Names, Numbers, Verb


@dataclass(frozen=True, kw_only=True)
class Gc(Verb):
    """Delete what no reader can reach: leavings of dead writers, dropped groups, retired parts.

    Example: actlake gc ./store --dry-run
    """

    url: Positional[str]
    """The store."""
    older_than: str = "7d"
    """Age from which leavings are taken for dead: 7d, 12h, 30m; 0 where nobody is at work."""
    dry_run: bool = False
    """Say what would go; delete nothing."""


@dataclass(frozen=True, kw_only=True)
class Drop(Verb):
    """Take a group out of a store for good; gc frees its bytes later.

    Example: actlake drop ./store acts-2 --reason "wrong layer"
    """

    url: Positional[str]
    """The store."""
    group: Positional[str]
    """The group; its name is never used again."""
    reason: str
    """Why; kept in the store."""


@dataclass(frozen=True, kw_only=True)
class Retire(Verb):
    """Take parts out of a group, or out of the whole store: the old end of a ring. Row ids stay.

    Example: actlake retire ./store --parts 0-99 --reason "older than a month"
    """

    url: Positional[str]
    """The store."""
    parts: str
    """Parts: 3,7 or 0-99."""
    reason: str
    """Why; kept in the store."""
    group: str = "tokens"
    """Group the parts are retired in; tokens stands for all groups."""


@dataclass(frozen=True, kw_only=True)
class Tombstone(Verb):
    """Remove documents: no reader shows their rows from now on. Their bytes stay until purge.

    Example: actlake tombstone ./store --documents 17,203 --reason "licence withdrawn"
    """

    url: Positional[str]
    """The store."""
    documents: Numbers
    """Their doc_id, as the table documents lists them: 3,7."""
    reason: str
    """Why; kept in the store."""


@dataclass(frozen=True, kw_only=True)
class Purge(Verb):
    """Delete the bytes of all removed documents from the tokens and every group. Row ids and other values stay.

    Example: actlake purge ./store --reason "licence withdrawn"
    """

    url: Positional[str]
    """The store."""
    reason: str
    """Why; kept in the commits that replace the old ones."""


@dataclass(frozen=True, kw_only=True)
class Compact(Verb):
    """Make indexes: small tables of many parts in few files, codes sorted by latent over all parts. Rows are not touched.

    Example: actlake compact ./store --groups codes
    """

    url: Positional[str]
    """The store."""
    groups: Names | None = None
    """Groups whose tables get indexes; default: all."""
    scratch: str | None = None
    """Folder for scratch files, about half of the codes' size; default: the system's."""
    remove: bool = False
    """Delete the indexes instead; gc frees their bytes later."""


@dataclass(frozen=True, kw_only=True)
class Doctor(Verb):
    """Try out whether a storage keeps what a store needs: atomic records, listings, ranges, a clock. Exits 1 if not.

    Example: actlake doctor s3://bucket/prefix
    """

    url: Positional[str]
    """Where a store is, or is to be."""
