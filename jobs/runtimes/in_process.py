"""``in_process``: one worker, here, part after part. For tests, debugging and one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ingest.contract import Worker


class InProcess:
    """Runs parts in order in this process; what a worker raises is raised."""

    def map(
        self, make_worker: Callable[[], Worker], parts: Sequence[int]
    ) -> Iterator[Mapping[str, Any]]:
        """Yield each part's record as it is done; no worker is made where there is nothing to do."""
        if not parts:
            return
        worker = make_worker()
        for part in parts:
            yield worker.run(part)
        worker.close()
