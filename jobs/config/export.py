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


@dataclass(frozen=True, kw_only=True)
class ExportDictionary(Verb):
    """What writing a dictionary in another library's format takes."""

    dictionary: Positional[str]
    """Folder of a trained dictionary."""
    out: str
    """Folder to write."""


@dataclass(frozen=True, kw_only=True)
class ExportSaeLens(ExportDictionary):
    """Write a dictionary as SAELens reads it: jumprelu, or one of its transcoders.

    Example: actlake export saelens runs/results/train-1a2b3c4d --out ./sae
    """


@dataclass(frozen=True, kw_only=True)
class ExportDictionaryLearning(ExportDictionary):
    """Write a dictionary as dictionary_learning reads it: JumpReluAutoEncoder.

    Example: actlake export dictionary_learning runs/results/train-1a2b3c4d --out ./trainer_0
    """


@dataclass(frozen=True, kw_only=True)
class ExportSparsify(ExportDictionary):
    """Write a dictionary as sparsify reads it: the k largest of each row in the threshold's place.

    Example: actlake export sparsify runs/results/train-1a2b3c4d --out ./layers.3
    """


@dataclass(frozen=True, kw_only=True)
class ImportDictionary(Verb):
    """What reading a dictionary in another library's format takes."""

    folder: Positional[str]
    """Folder as the library wrote it."""
    out: str
    """Folder to write, which eval and encode take."""
    site: str | None = None
    """Column of a store it is of, kept with it: eval and encode then need not be told."""


@dataclass(frozen=True, kw_only=True)
class ImportSaeLens(ImportDictionary):
    """Read a SAELens dictionary: cfg.json and sae_weights.safetensors.

    Example: actlake import saelens ./sae --site blocks.3.resid_post --out ./theirs
    """


@dataclass(frozen=True, kw_only=True)
class ImportDictionaryLearning(ImportDictionary):
    """Read a dictionary_learning dictionary: ae.pt, of which no code is run, and config.json.

    Example: actlake import dictionary_learning ./trainer_0 --site blocks.3.resid_post --out ./theirs
    """


@dataclass(frozen=True, kw_only=True)
class ImportSparsify(ImportDictionary):
    """Read a sparsify dictionary: cfg.json and sae.safetensors.

    Example: actlake import sparsify ./layers.3 --site blocks.3.resid_post --out ./theirs
    """
