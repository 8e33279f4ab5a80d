"""The model with something changed: what is changed, where, and what that does to a metric."""

from jobs.interventions.ablate import ablate_heads, head_ablations
from jobs.interventions.contract import OPERATIONS, Intervention
from jobs.interventions.runner import Runner, site_means, site_values

__all__ = [
    "OPERATIONS",
    "Intervention",
    "Runner",
    "ablate_heads",
    "head_ablations",
    "site_means",
    "site_values",
]
