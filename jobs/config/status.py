"""Settings of ``status``."""

from dataclasses import dataclass

from tyro.conf import Positional

from jobs.config.base import Verb


@dataclass(frozen=True, kw_only=True)
class Status(Verb):
    """Show how far each group is: parts done, failed and left, rate, waiting for the store, time left.

    Example: actlake status ./store
    """

    url: Positional[str]
    """The store; somebody may be writing it."""
