"""How far a group reaches, and which of its parts a live reader sees."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from store import layout
from store.commits import exists, list_commits
from store.errors import CorruptError, NotFoundError
from store.storage import Storage


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """How far a group reaches: its committed parts and rows, and whether it is complete."""

    parts: int
    rows: int
    sealed: bool
    tokens_parts: int

    @property
    def complete(self) -> bool:
        """Whether every part of the tokens group is covered."""
        return self.parts == self.tokens_parts


def live_parts(
    storage: Storage,
    name: str,
    *,
    sealed: Mapping[str, Any] | None,
    ends: Mapping[str, Any] | None,
    retired: Collection[int],
    tokens: Collection[int] | None,
) -> dict[int, int]:
    """List a group's parts as they are now, part → n.

    Parameters
    ----------
    sealed, ends
        The seals of the group and of tokens, read before this call: whatever they count was committed before.
    retired
        Parts to leave out.
    tokens
        The parts of tokens this view saw (None for tokens): others are left out, so that a view of a store
        that grows meanwhile is of one piece.

    Raises
    ------
    CorruptError
        ``part-missing``: a record is gone. Tokens are written in part order, so a gap in them is damage, and
        so is a part a seal counts that is not there.
    """
    found = {
        part: n
        for part, n in list_commits(storage, name).items()
        if part not in retired
        and (ends is None or part < ends["parts"])
        and (tokens is None or part in tokens)
    }
    held = len(found)
    wanted = max(found, default=-1) + 1 if tokens is None else 0
    wanted = sealed["parts"] if sealed is not None else wanted
    for part in _absent(wanted, {*found, *retired}):
        # A listing made while records are added may miss one.
        if not exists(storage, layout.commit_key(name, part)):
            raise CorruptError(
                f"the commit record of part {part} of group {name!r} of {storage.url} is gone. Nothing was "
                "read from the group. Restore it from a copy, or open a pin of the rest.",
                kind="part-missing",
                group=name,
                part=part,
            )
        found[part] = 0
    return found if len(found) == held else dict(sorted(found.items()))


def _absent(wanted: int, present: Collection[int]) -> Iterator[int]:
    """Yield the numbers below ``wanted`` that are not there, at once: a hostile seal may want very many."""
    if sum(0 <= part < wanted for part in present) < wanted:
        yield from (part for part in range(wanted) if part not in present)


def retired_since(storage: Storage, name: str, part: int) -> float | None:
    """Return when a part was retired, in its own group or in tokens; None where it was not."""
    times = []
    for group in {name, "tokens"}:
        with contextlib.suppress(NotFoundError):
            times.append(storage.modified(layout.retired_key(group, part)))
    return max(times, default=None)
