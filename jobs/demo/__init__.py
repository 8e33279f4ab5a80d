"""The demo: the whole product on real input, in a few minutes, on any machine."""

from jobs.demo.run import Outcome, demo
from jobs.demo.sources import source_for

__all__ = ["Outcome", "demo", "source_for"]
