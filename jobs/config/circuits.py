"""Settings of ``stats``."""

from dataclasses import dataclass

from tyro.conf import Positional

from jobs.config.base import Names, Numbers, Words
from jobs.config.placement import Placed


@dataclass(frozen=True, kw_only=True)
class Stats(Placed):
    """Compute circuit statistics over stored sequences, all in one read; parts done before are not read again.

    Example: actlake stats ./store --stats moments,massive_activations --out ./runs
    """

    url: Positional[str]
    """The store."""
    stats: Words
    """Statistics by name; commas for several."""
    group: Words | None = None
    """Groups that hold the columns; default: wherever they are."""
    sites: Names | None = None
    """Sites of statistics that take any (moments); default: all that are stored."""
    layers: Numbers | None = None
    """Blocks to look at, from 0; default: all."""
    params: Words | None = None
    """Other settings of statistics, as massive_activations.ratio=50."""
    model: str | None = None
    """Folder of the model, for stores that do not say how it attends."""
    out: str = "."
    """Folder that gets results/."""
    keep: bool = True
    """Keep each part's share in the store, so that more rows later cost only themselves."""
