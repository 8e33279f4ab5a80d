"""From settings to a runtime, opened and closed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from ingest.contract import Runtime
from jobs.errors import UsageError
from jobs.runtimes.in_process import InProcess
from jobs.runtimes.ray import Ray
from jobs.runtimes.shards import Shards
from store import StoreError
from store import open as open_store

RUNTIMES = ("in_process", "ray")


class Placement(Protocol):
    """The settings this file reads; ``jobs.config.Placed`` has them."""

    @property
    def runtime(self) -> str:
        """A name in ``RUNTIMES``."""

    @property
    def ray(self) -> str | None:
        """Address of a cluster."""

    @property
    def workers(self) -> int | None:
        """Ray workers at a time."""

    @property
    def threads(self) -> int | None:
        """Threads of a worker."""

    @property
    def resources(self) -> Sequence[str] | None:
        """``name=amount`` a Ray worker asks for."""


@contextmanager
def runtime_for(
    placement: Placement,
    *,
    shard: str | None = None,
    gpus: float = 0,
    url: str | None = None,
    group: str | None = None,
) -> Iterator[Runtime]:
    """Open the runtime some settings ask for, and close it; see ``chosen``.

    Raises
    ------
    UsageError
        See ``chosen``.
    JobError, RefusedError
        The cluster is not there, or has no room for a worker.
    """
    runtime = chosen(placement, shard=shard, gpus=gpus, url=url, group=group)
    if isinstance(runtime, Ray):
        with runtime:
            yield runtime
    else:
        yield runtime


def chosen(
    placement: Placement,
    *,
    shard: str | None = None,
    gpus: float = 0,
    url: str | None = None,
    group: str | None = None,
) -> Runtime:
    """Return the runtime some settings ask for; nothing is started.

    Parameters
    ----------
    shard
        ``i/n``: the share of a plain process.
    gpus
        GPUs a Ray worker needs.
    url, group
        What is completed: its threads are kept, since values may differ in their last bits where threads do.

    Raises
    ------
    UsageError
        An unknown runtime, or settings that contradict one another.
    """
    name = "ray" if placement.ray is not None else placement.runtime
    _check(placement, name, shard)
    threads = placement.threads or begun_with(url, group)
    if shard is not None:
        return Shards.parse(shard, threads=threads)
    if name == "in_process":
        return InProcess(threads=threads)
    return Ray(
        address=placement.ray,
        workers=placement.workers,
        threads=threads,
        gpus=gpus,
        resources=dict(map(_amount, placement.resources or ())),
    )


def begun_with(url: str | None, group: str | None) -> int | None:
    """Return the threads the first commit of a group was made with; None where there is none."""
    if url is None or group is None:
        return None
    try:
        view = open_store(url).view
        first = next(iter(view.parts(group)), None)
        found = None if first is None else view.commit(group, first).provenance.get("threads")
    except StoreError:  # whoever opens it to work on it says what is wrong
        return None
    return int(found) if found else None


def _check(placement: Placement, name: str, shard: str | None) -> None:
    if name not in RUNTIMES:
        raise UsageError(
            f"there is no runtime {name!r}; known: {', '.join(RUNTIMES)}. Nothing was started.",
            kind="unknown-name",
        )
    for word in ("workers", "threads"):
        value = getattr(placement, word)
        if value is not None and value <= 0:
            raise UsageError(
                f"--{word} is {value}; it must be positive. Nothing was started.", kind="bad-number"
            )
    if shard is not None and name == "ray":
        raise UsageError(
            "--shard is for plain processes, which share the parts among them; Ray shares them itself. Nothing was "
            "started. Say one of --shard and --runtime ray."
        )
    if name != "ray" and (placement.workers or placement.resources):
        raise UsageError(
            f"--workers and --resources are about Ray's workers; the runtime is {name}. Nothing was started. Say "
            "--runtime ray, or leave them out."
        )


def _amount(text: str) -> tuple[str, float]:
    name, _, amount = text.partition("=")
    try:
        number = float(amount or 1)
    except ValueError:
        number = 0.0
    if not name or not 0 < number < float("inf"):
        raise UsageError(
            f"--resources has {text!r}; it takes NAME=AMOUNT, as gpu_node=1. Nothing was started.",
            kind="bad-number",
        )
    return name, number
