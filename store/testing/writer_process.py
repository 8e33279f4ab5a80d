"""A small writer process without torch, to be killed: tokens, a dense group, scalars and codes, in small parts.

``python -m store.testing.writer_process URL`` goes on where the store stands and exits with 0 when it is complete.
It says ``writing`` when it starts to write, so that whoever started it knows when to aim.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from store.opening import create
from store.reader import Store
from store.testing.small import SCALARS, codes_of, sequences_of, values_of
from store.tokens import TokenSequence

LENGTHS = [60 + (number * 37) % 140 for number in range(40)]
DENSE = {"h": "bfloat16[64]", "f": "float32[16]"}
PIECE_ROWS = 100


def write_tokens(store: Store) -> None:
    """Write the tokens group from where its last part ends, and seal it."""
    with store.writer("tokens", recipe={"by": "writer_process"}) as writer:
        if writer.sealed:
            return
        done = writer.position or 0
        rest: Iterator[TokenSequence] = sequences_of(LENGTHS[done:], first=done)
        for number, sequence in enumerate(rest, start=done + 1):
            writer.put([sequence], position=number)
        writer.seal()


def write_group(store: Store, name: str, columns: dict[str, str]) -> None:
    """Write what is missing of a group, in pieces that are no whole chunks."""
    with store.writer(name, columns=columns, recipe={"by": "writer_process"}) as writer:
        for part in store.view.parts("tokens"):
            rows = store.view.commit("tokens", part).rows
            for low in range(0, 0 if writer.done(part) else rows, PIECE_ROWS):
                ids = part * store.part_stride + np.arange(low, min(low + PIECE_ROWS, rows))
                values = {
                    column.name: codes_of(ids) if column.kind == "codes" else values_of(ids, column)
                    for column in writer.group.columns.values()
                }
                writer.put(ids, values)


def write(url: str) -> Store:
    """Make the store, or complete it."""
    store = create(url, part_rows=512, part_stride=1024)
    write_tokens(store)
    store = store.refresh()
    write_group(store, "acts", {**DENSE, **SCALARS})
    write_group(store, "codes", {"codes": "codes"})
    return store.refresh()


def main() -> int:
    """Complete the store named on the command line."""
    sys.stdout.write("writing\n")
    sys.stdout.flush()
    write(sys.argv[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
