"""Sequences go into the tokens group, from wherever its writer stands to the end of their source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from store import TokensWriter

Progress = Callable[[str, int, int | None], None]
"""(phase, rows done, rows in all where known)."""


class Sequences(Protocol):
    """What makes sequences of a source, from any position on."""

    def sequences(self, position: Any) -> Iterator[tuple[Any, Any]]:
        """Yield (a sequence, or a list of those that stay together; position behind it)."""

    def check(self) -> None:
        """Raise unless the source makes at least one sequence."""


def write_sequences(
    rows: Sequences, writer: TokensWriter, progress: Progress, limit: int | None
) -> None:
    """Write what is missing of the tokens group and seal it where the source ends."""
    if writer.sealed:
        return
    with writer:
        count = writer.rows
        for found, position in rows.sequences(writer.position):
            together = found if isinstance(found, list) else [found]
            writer.put(together, position=position)
            count += sum(map(len, together))
            progress("tokens", count, limit)
        if not count:
            rows.check()
        writer.seal()
