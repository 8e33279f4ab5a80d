"""All that can happen to a store, in order, by one process that goes on wherever the last one stopped.

Tokens, two groups, an asset, a pin, an index, a part retired, a group dropped, a document removed and purged, gc.
"""

from __future__ import annotations

from collections.abc import Callable

from store import layout
from store.commits import exists
from store.compact import compact
from store.maintenance import collect, drop, retire
from store.opening import create_in, open_in
from store.purge import add_tombstone, purge
from store.reader import Store
from store.storage import Storage
from store.testing.small import sequences_of
from store.testing.steps import ROWS, STRIDE, write_acts
from store.tombstones import list_tombstones

LENGTHS = (100, 120, 250, 130)
"""Three parts; the first holds two documents, of which one is removed."""
REMOVED = 0
SCORES = {"s": "float32", "g": "int8[4,5]"}
TRIAL = {"z": "int16"}


def write_rows(made: Store) -> Store:
    """Write the tokens, part by part, and seal them."""
    with made.writer("tokens", recipe={"by": "whole life"}) as writer:
        if not writer.sealed:
            done = writer.position or 0
            for number in range(done, len(LENGTHS)):
                writer.put(
                    list(sequences_of(LENGTHS[number : number + 1], first=number)),
                    position=number + 1,
                )
            writer.seal()
    return made.refresh()


def live(storage: Storage, clock: Callable[[], float]) -> Store:
    """Do everything that is not done yet; return the store."""
    made = write_rows(create_in(storage, part_rows=ROWS, part_stride=STRIDE))
    removed = list_tombstones(storage)
    if not removed:
        write_acts(made)
        write_acts(made, group="scores", columns=SCORES)
        end_trial(made)
        made = made.live()
        made.pin()
        made.put_asset({"one": b"1", "two": b"22"})
        retire(made, [1], "too old", group="scores")
        compact(made.live())
        add_tombstone(made.live(), [REMOVED], "asked to")
    purge(made.live(), "asked to")
    compact(made.live())
    collect(open_in(storage), grace_seconds=0, clock=clock)
    return open_in(storage)


def end_trial(made: Store) -> None:
    """Write a group that is dropped again."""
    if not exists(made.view.storage, layout.dropped_key("trial")):
        write_acts(made, group="trial", columns=TRIAL)
        drop(made.live(), "trial", "it was one")
