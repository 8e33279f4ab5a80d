"""Settings of where work runs, shared by the verbs that work part by part. None of them changes a result."""

from dataclasses import dataclass

from jobs.config.base import Verb, Words


@dataclass(frozen=True, kw_only=True)
class Placed(Verb):
    """What verbs over parts take besides their own settings."""

    runtime: str = "in_process"
    """Where parts are worked on: in_process (one worker, here) or ray (workers on this machine or a cluster)."""
    ray: str | None = None
    """Address of a Ray cluster, HOST:PORT or auto; means --runtime ray, which starts a Ray of its own without it."""
    workers: int | None = None
    """Ray workers at a time; default: as many as there is room for."""
    threads: int | None = None
    """Threads of a worker; default: as many as the group was begun with, else torch's own choice here."""
    resources: Words | None = None
    """What each Ray worker asks for beside threads and a GPU where it uses one, by name: gpu_node=1."""
