"""``status``."""

from __future__ import annotations

from jobs import config as settings
from jobs.verbs.contract import Answer, Context


def status(config: settings.Status, _context: Context) -> Answer:
    """Say how far a store is."""
    from jobs.status import describe, status
    from store import open as open_store

    found = status(open_store(config.url))
    return Answer(found, describe(found))
