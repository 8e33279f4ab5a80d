"""A small store's whole life, step by step, and what its writer was told: the run that is cut, killed and raced.

Tokens, a group of dense and scalar columns, an asset, a pin, a group of which a part is retired and that is dropped, gc:
run again from any state it goes on there and ends at the same store. What was told must stand whatever happens later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from store import layout
from store.commits import exists
from store.errors import NotFoundError
from store.maintenance import collect, drop, retire
from store.opening import create_in, open_in
from store.reader import Store
from store.storage import Storage
from store.testing.small import sequences_of, values_of
from store.verify import Report, verify

ROWS, STRIDE = 256, 512
LENGTHS = (200, 70)
"""Two parts: the second sequence does not fit behind the first."""
ACTS = {"h": "bfloat16[16]", "f": "float32[2,9]", "y": "int32"}
TRIAL = {"z": "int16"}
ASSET = {"one": b"1", "two": b"22"}


@dataclass
class Told:
    """What the writer of a store has been told is done."""

    store: str | None = None
    commits: dict[tuple[str, int], str] = field(default_factory=dict)
    """(group, part) → hash of the record."""
    sealed: set[str] = field(default_factory=set)
    pins: dict[str, Mapping[str, list[int]]] = field(default_factory=dict)
    """Pin → group → the parts it was taken of."""
    assets: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    """Keys of records that end something."""

    def size(self) -> int:
        """Return a number that grows with everything told."""
        each = (self.commits, self.sealed, self.pins, self.assets, self.ended)
        return (self.store is not None) + sum(map(len, each))


class Life:
    """One process that writes a store from wherever it stands.

    Parameters
    ----------
    clock
        Now, for gc.
    """

    def __init__(self, storage: Storage, clock: Callable[[], float]) -> None:
        self.storage, self._clock, self.told = storage, clock, Told()

    def run(self) -> Store:
        """Do everything, in order."""
        self.begin()
        self.write_tokens()
        self.write_group("acts", ACTS)
        self.keep()
        self.end()
        return open_in(self.storage)

    def begin(self) -> None:
        """Make the store."""
        self.told.store = create_in(self.storage, part_rows=ROWS, part_stride=STRIDE).id

    def write_tokens(self) -> None:
        """Write the tokens group, part by part, and seal it."""
        made = open_in(self.storage)
        with made.writer("tokens", recipe={"by": "life"}) as writer:
            if not writer.sealed:
                done = writer.position or 0
                rest = sequences_of(LENGTHS[done:], first=done)
                for number, sequence in enumerate(rest, start=done + 1):
                    writer.put([sequence], position=number)
                    writer.flush()
                    last = writer.committed[-1]
                    self.told.commits["tokens", last.part] = last.hash
                writer.seal()
        self.told.sealed.add("tokens")

    def write_group(self, name: str, columns: Mapping[str, str]) -> None:
        """Write what is missing of a group, and seal it."""
        made = open_in(self.storage)
        with made.writer(name, columns=columns, recipe={"by": "life"}) as writer:
            for part in made.view.parts("tokens"):
                if writer.done(part):
                    continue
                ids = part * STRIDE + np.arange(made.view.commit("tokens", part).rows)
                declared = writer.group.columns.values()
                writer.put(ids, {column.name: values_of(ids, column) for column in declared})
                self.told.commits[name, part] = writer.committed[-1].hash
        if open_in(self.storage).view.sealed(name) is not None:
            self.told.sealed.add(name)

    def keep(self) -> None:
        """Put an asset and take a pin."""
        made = open_in(self.storage)
        self.told.assets[made.put_asset(ASSET)] = ASSET
        seen = {name: list(made.view.parts(name)) for name in ("tokens", "acts")}
        self.told.pins[made.pin(["acts"])] = seen

    def end(self) -> None:
        """Write a group, retire a part of it, collect, drop it, collect."""
        trial = layout.dropped_key("trial")
        if not exists(self.storage, trial):
            retired = layout.retired_key("trial", 0)
            if not exists(self.storage, retired):
                self.write_group("trial", TRIAL)
            retire(open_in(self.storage), [0], "not wanted", group="trial")
            self.told.ended.add(retired)
            self.collect()
            drop(open_in(self.storage), "trial", "it was one")
            self.told.ended.add(trial)
        self.collect()

    def collect(self) -> None:
        """Let gc run where nobody else is at work."""
        collect(open_in(self.storage), grace_seconds=0, clock=self._clock)


def check_told(storage: Storage, told: Told) -> None:
    """Raise unless everything a writer was told stands, and is right."""
    if told.store is None:
        return
    made = open_in(storage)
    assert made.id == told.store, "another store is there"
    for key in told.ended:
        dropped = layout.dropped_key(key.split("/")[1])
        assert exists(storage, key) or exists(storage, dropped), f"{key} is gone"
    for (group, part), digest in told.commits.items():
        ended = {layout.dropped_key(group), layout.retired_key(group, part)}
        if not any(exists(storage, key) for key in ended):
            assert made.view.commit(group, part).hash == digest, f"{group} {part} is another"
    for group in told.sealed:
        if not exists(storage, layout.dropped_key(group)):
            assert made.view.sealed(group), f"{group} is not sealed any more"
    for pin, seen in told.pins.items():
        check_rows(open_in(storage, pin), seen)
    for asset, files in told.assets.items():
        assert made.asset(asset) == files


def check_rows(made: Store, seen: Mapping[str, Sequence[int]] | None = None) -> None:
    """Raise unless every row of every group is what was written into it.

    Parameters
    ----------
    seen
        Group → the parts it must hold; default: whatever it holds.
    """
    for name in made.groups if seen is None else seen:
        parts = list(made.view.parts(name))
        assert seen is None or parts == list(seen[name]), f"{name} holds parts {parts}"
        if not parts:
            continue
        if name == "tokens":
            truth = np.concatenate(
                [np.asarray(sequence.token_ids) for sequence in sequences_of(LENGTHS)]
            )
            tokens = made.read("tokens:token_id")
            assert np.array_equal(tokens, truth[: len(tokens)]), "other tokens"
            continue
        ids = made.row_ids(group=name)
        for column in made.groups[name].columns.values():
            values: Any = made.read(f"{name}:{column.name}")
            assert np.array_equal(values, values_of(ids, column)), f"{name}:{column.name} is wrong"


def check_whole(storage: Storage) -> Report | None:
    """Raise unless what is visible is whole and right; return the report, None where there is no store yet."""
    try:
        made = open_in(storage)
    except NotFoundError:
        return None
    report = verify(made)
    assert report.problems == [], report.problems
    check_rows(made)
    return report
