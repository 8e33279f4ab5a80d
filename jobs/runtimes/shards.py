"""``--shard i/n``: plain processes that share a store and nothing else, for schedulers that start such.

Process i of n works on the parts ≡ i modulo n. All of them may write the tokens: the same source cuts the same
parts, and of two commits of one part the first stands. Whoever commits the last part seals the group.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ingest.contract import Worker
from jobs.errors import UsageError
from jobs.runtimes.in_process import InProcess


@dataclass(frozen=True, kw_only=True, slots=True)
class Shards:
    """Runs one share of the parts, in this process."""

    index: int
    """Which share, from 0."""
    count: int
    """Shares there are."""
    threads: int | None = None
    """Threads to compute with; None leaves torch as it is."""

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UsageError(
                f"shard {self.index}/{self.count} was asked for; the first of {max(self.count, 1)} is 0. "
                "Nothing was started. Say --shard I/N with 0 ≤ I < N."
            )

    @classmethod
    def parse(cls, text: str, *, threads: int | None = None) -> Shards:
        """Read ``"0/3"``."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if found is None:
            raise UsageError(
                f"--shard is {text!r}; it takes I/N, as 0/3 for the first of three. Nothing was started."
            )
        return cls(index=int(found[1]), count=int(found[2]), threads=threads)

    def map(
        self, make_worker: Callable[[], Worker], parts: Sequence[int]
    ) -> Iterator[tuple[int, Any]]:
        """Yield (part, what the worker returned) for this share; chosen by number, so all shares agree."""
        mine = [part for part in parts if part % self.count == self.index]
        return InProcess(threads=self.threads).map(make_worker, mine)
