"""A state machine drives a store against a dict of arrays: append, write, crash, race, remove, purge, index, seal, pin."""

import contextlib
import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import store
import store.opening
from store import Document, NotFoundError, TokenSequence
from store.compact import compact
from store.maintenance import collect
from store.purge import add_tombstone, purge
from store.testing.faults import FaultyStorage, Killed, Plan
from store.testing.small import codes_of, values_of
from store.urls import open_storage

COLUMNS = {"h": "bfloat16[16]", "y": "int32"}
STRIDE = 512
tokens = st.lists(st.integers(0, 99), min_size=1, max_size=60)
_numbers = itertools.count()


@dataclass(frozen=True)
class Seen:
    """What a pin saw."""

    parts: int
    held: frozenset[int]
    coded: frozenset[int]
    removed: frozenset[int]
    emptied: frozenset[int]


class StoreMachine(RuleBasedStateMachine):
    """The model: the token ids of each part's two documents, which parts groups hold, which documents are gone; pins."""

    def __init__(self):
        super().__init__()
        self.url = f"memory://stateful-{next(_numbers)}"
        store.create(self.url, part_rows=256, part_stride=STRIDE)
        self.parts: list[tuple[list[int], list[int]]] = []
        self.held: set[int] = set()
        self.coded: set[int] = set()
        self.removed: set[int] = set()
        self.purged: set[int] = set()
        """Parts of which a purge took rows."""
        self.sealed = False
        self.pins: dict[str, Seen] = {}

    def opened(self, plan=None):
        made = store.open(self.url)
        if plan is None:
            return made
        numbers = {"part_rows": made.part_rows, "part_stride": made.part_stride}
        storage = FaultyStorage(open_storage(self.url), plan)
        return store.Store(storage, {"store": made.id, **numbers}, None)

    # -- writing ---------------------------------------------------------------------------------------

    def append(self, made, two):
        part = len(self.parts)
        writer = made.writer("tokens", recipe={})
        for at, ids in enumerate(two):
            document = Document(doc_id=2 * part + at, name=f"{part}.{at}")
            span = [(document, 0, len(ids))]
            writer.put([TokenSequence(token_ids=ids, spans=span)], position=part + 1)
        writer.flush()

    def write(self, made, part):
        with made.writer("acts", columns=COLUMNS, recipe={}) as writer:
            ids = np.array(self.rows([part], self.removed), np.int64)
            cut = len(ids) // 2
            for piece in (ids[:cut], ids[cut:]):
                declared = writer.group.columns.values()
                writer.put(piece, {c.name: values_of(piece, c) for c in declared})

    @precondition(lambda self: not self.sealed and len(self.parts) < 6)
    @rule(two=st.tuples(tokens, tokens))
    def append_part(self, two):
        self.append(self.opened(), two)
        self.parts.append(two)

    @precondition(lambda self: not self.sealed and len(self.parts) < 6)
    @rule(two=st.tuples(tokens, tokens), at=st.integers(1, 12))
    def append_part_and_die(self, two, at):
        plan = Plan(at=at, mode="killed-after")
        with contextlib.suppress(Killed):
            self.append(self.opened(plan), two)
        if any("tokens/commits" in what for what in plan.log[:at]):
            self.parts.append(two)

    @precondition(lambda self: self.parts)
    @rule(data=st.data())
    def write_part(self, data):
        part = data.draw(st.integers(0, len(self.parts) - 1))
        self.write(self.opened(), part)
        self.note(self.held, part)

    def note(self, group, part):
        if self.rows([part], self.removed):  # of a part that lost everything nothing is written
            group.add(part)

    @precondition(lambda self: self.parts)
    @rule(
        data=st.data(),
        at=st.integers(1, 25),
        mode=st.sampled_from(["killed-before", "killed-after"]),
    )
    def write_part_and_die(self, data, at, mode):
        part = data.draw(st.integers(0, len(self.parts) - 1))
        plan = Plan(at=at, mode=mode)
        with contextlib.suppress(Killed):
            self.write(self.opened(plan), part)
        done = plan.log[: at - (mode == "killed-before")] if plan.dead else plan.log
        if any("acts/commits" in what for what in done):
            self.held.add(part)

    @precondition(lambda self: len(self.held) < len(self.parts))
    @rule()
    def two_writers_race(self):
        part = min(set(range(len(self.parts))) - self.held)
        ids = np.array(self.rows([part], self.removed), np.int64)
        one, other = (self.opened().writer("acts", columns=COLUMNS, recipe={}) for _ in range(2))
        for writer in (one, other):
            declared = writer.group.columns.values()
            writer.put(ids, {c.name: values_of(ids, c) for c in declared})
        assert one.committed == other.committed
        self.note(self.held, part)

    @precondition(lambda self: self.parts)
    @rule(data=st.data())
    def write_codes(self, data):
        part = data.draw(st.integers(0, len(self.parts) - 1))
        ids = np.array(self.rows([part], self.removed), np.int64)
        made = self.opened()
        with made.writer("codes", columns={"codes": "codes"}, recipe={}) as writer:
            writer.put(ids, {"codes": codes_of(ids)})
        self.note(self.coded, part)

    @precondition(lambda self: self.parts and not self.sealed)
    @rule()
    def seal(self):
        self.opened().writer("tokens", recipe={}).seal()
        self.sealed = True

    # -- removing, purging, indexing -------------------------------------------------------------------

    @precondition(lambda self: len(self.removed) < 2 * len(self.parts))
    @rule(data=st.data())
    def remove_a_document(self, data):
        there = sorted(set(range(2 * len(self.parts))) - self.removed)
        document = data.draw(st.sampled_from(there))
        add_tombstone(self.opened(), [document], "asked to")
        self.removed.add(document)

    @precondition(lambda self: self.removed)
    @rule()
    def purge_what_was_removed(self):
        purge(self.opened(), "asked to")
        self.purged |= {document // 2 for document in self.removed}

    @precondition(lambda self: self.removed)
    @rule(at=st.integers(1, 40))
    def purge_and_die_and_purge(self, at):
        with contextlib.suppress(Killed):
            purge(self.opened(Plan(at=at, mode="killed-after")), "asked to")
        self.purge_what_was_removed()

    @precondition(lambda self: self.coded)
    @rule()
    def index(self):
        compact(self.opened())

    @rule()
    def collect(self):
        collect(self.opened(), grace_seconds=0)

    @precondition(lambda self: self.parts)
    @rule()
    def pin(self):
        self.pins[self.opened().pin()] = Seen(
            len(self.parts),
            frozenset(self.held),
            frozenset(self.coded),
            frozenset(self.removed),
            frozenset(part for part in self.purged if not self.rows([part], self.removed)),
        )

    # -- what is read ----------------------------------------------------------------------------------

    def rows(self, parts, removed):
        """Row ids of some parts without removed documents; what was purged has kept its numbers."""
        found = []
        for part in sorted(parts):
            one, other = self.parts[part]
            for document, low, ids in ((2 * part, 0, one), (2 * part + 1, len(one), other)):
                if document not in removed:
                    found += [part * STRIDE + low + at for at in range(len(ids))]
        return found

    def ids(self, removed, parts):
        return [
            token
            for part in range(parts)
            for at, ids in enumerate(self.parts[part])
            if 2 * part + at not in removed
            for token in ids
        ]

    @invariant()
    def what_is_read_is_the_model(self):
        made = self.opened()
        if not self.parts:
            return
        assert made.row_ids().tolist() == self.rows(range(len(self.parts)), self.removed)
        assert made.read("token_id").tolist() == self.ids(self.removed, len(self.parts))
        if "acts" in made.groups:
            ids = np.array(self.rows(self.held, self.removed), np.int64)
            for name in COLUMNS:
                assert np.array_equal(made.read(f"acts:{name}"), values_of(ids, made.column(name)))
        if "codes" in made.groups:
            ids = np.array(self.rows(self.coded, self.removed), np.int64)
            wanted = set(codes_of(ids).row.tolist()) if len(ids) else set()
            assert set(made.arrow("codes").column("row").to_pylist()) == wanted

    @invariant()
    def pins_see_what_they_saw_or_say_that_it_was_purged(self):
        for pin, seen in self.pins.items():
            gone = self.purged & set(range(seen.parts)) - {d // 2 for d in seen.removed}
            pinned = store.open(self.url, pin=pin)
            if gone:
                with pytest.raises(NotFoundError) as caught:
                    pinned.read("token_id")
                assert caught.value.kind == "purged"
            elif not self.purged & set(range(seen.parts)):
                assert pinned.row_ids().tolist() == self.rows(range(seen.parts), seen.removed)
                assert pinned.read("token_id").tolist() == self.ids(seen.removed, seen.parts)
                assert list(pinned.view.parts("acts") if seen.held else seen.held) == sorted(
                    seen.held
                )

    def teardown(self):
        if self.parts:
            report = store.verify(self.opened())
            assert report.problems == []


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=12,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.slow
def test_at_length():
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        StoreMachine,
        settings=settings(TestStore.settings, max_examples=50, stateful_step_count=25),
    )
