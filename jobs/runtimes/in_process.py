"""``in_process``: one worker, here, part after part. For tests, debugging and one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ingest.contract import Worker
from jobs.runtimes.post import set_threads


class InProcess:
    """Runs parts in order in this process; what a worker raises is raised.

    Parameters
    ----------
    threads
        Threads to compute with; None leaves torch as it is.
    """

    def __init__(self, *, threads: int | None = None) -> None:
        self._threads = threads

    def map(
        self, make_worker: Callable[[], Worker], parts: Sequence[int]
    ) -> Iterator[tuple[int, Any]]:
        """Yield (part, what the worker returned) in order; no worker is made where there is nothing to do."""
        if not parts:
            return
        if self._threads is not None:
            set_threads(self._threads)
        worker = make_worker()
        for part in parts:
            yield part, worker.run(part)
        worker.close()
