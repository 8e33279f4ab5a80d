"""``in_process``: one worker, here, part after part. For tests, debugging and one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ingest.contract import Worker


class InProcess:
    """Runs parts in order in this process; what a worker raises is raised."""

    def map(
        self, make_worker: Callable[[], Worker], parts: Sequence[int]
    ) -> Iterator[tuple[int, Any]]:
        """Yield (part, what the worker returned) in order; no worker is made where there is nothing to do."""
        if not parts:
            return
        worker = make_worker()
        for part in parts:
            yield part, worker.run(part)
        worker.close()
