"""Circuit statistics: mergeable, live while harvesting or from the store, any number in one read."""

from jobs.circuits.contract import STATISTICS

__all__ = ["STATISTICS"]
