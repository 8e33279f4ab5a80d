"""A state machine drives a store against a dict of arrays: append, write, crash, race, seal, pin, verify."""

import contextlib
import itertools

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import store
import store.opening
from store import TokenSequence
from store.testing.faults import FaultyStorage, Killed, Plan
from store.testing.small import values_of
from store.urls import open_storage

COLUMNS = {"h": "bfloat16[16]", "y": "int32"}
_numbers = itertools.count()


class StoreMachine(RuleBasedStateMachine):
    """The model: token ids of each committed part, the committed parts of a group, pins and their rows."""

    def __init__(self):
        super().__init__()
        self.url = f"memory://stateful-{next(_numbers)}"
        store.create(self.url, part_rows=256, part_stride=512)
        self.parts: list[list[int]] = []
        self.held: set[int] = set()
        self.sealed = False
        self.pins: dict[str, tuple[int, frozenset[int]]] = {}

    def opened(self, plan=None):
        made = store.open(self.url)
        if plan is None:
            return made
        numbers = {"part_rows": made.part_rows, "part_stride": made.part_stride}
        storage = FaultyStorage(open_storage(self.url), plan)
        return store.Store(storage, {"store": made.id, **numbers}, None)

    def append(self, made, ids):
        writer = made.writer("tokens", recipe={})
        writer.put([TokenSequence(token_ids=ids)], position=len(self.parts) + 1)
        writer.flush()

    def write(self, made, part, value_seed=0):
        with made.writer("acts", columns=COLUMNS, recipe={}) as writer:
            ids = part * 512 + np.arange(len(self.parts[part]))
            cut = len(ids) // 2
            for piece in (ids[:cut], ids[cut:]):
                declared = writer.group.columns.values()
                writer.put(piece, {c.name: values_of(piece, c, value_seed) for c in declared})

    @precondition(lambda self: not self.sealed and len(self.parts) < 6)
    @rule(ids=st.lists(st.integers(0, 99), min_size=1, max_size=256))
    def append_part(self, ids):
        self.append(self.opened(), ids)
        self.parts.append(ids)

    @precondition(lambda self: not self.sealed and len(self.parts) < 6)
    @rule(ids=st.lists(st.integers(0, 99), min_size=1, max_size=40), at=st.integers(1, 12))
    def append_part_and_die(self, ids, at):
        plan = Plan(at=at, mode="killed-after")
        with contextlib.suppress(Killed):
            self.append(self.opened(plan), ids)
        if any("tokens/commits" in what for what in plan.log[:at]):
            self.parts.append(ids)

    @precondition(lambda self: self.parts)
    @rule(data=st.data())
    def write_part(self, data):
        part = data.draw(st.integers(0, len(self.parts) - 1))
        self.write(self.opened(), part)
        self.held.add(part)

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
        one, other = (self.opened().writer("acts", columns=COLUMNS, recipe={}) for _ in range(2))
        ids = part * 512 + np.arange(len(self.parts[part]))
        for writer in (one, other):
            declared = writer.group.columns.values()
            writer.put(ids, {c.name: values_of(ids, c) for c in declared})
        assert one.committed == other.committed
        self.held.add(part)

    @precondition(lambda self: self.parts and not self.sealed)
    @rule()
    def seal(self):
        self.opened().writer("tokens", recipe={}).seal()
        self.sealed = True

    @precondition(lambda self: self.parts)
    @rule()
    def pin(self):
        self.pins[self.opened().pin()] = (len(self.parts), frozenset(self.held))

    def rows(self, parts):
        return [p * 512 + i for p in sorted(parts) for i in range(len(self.parts[p]))]

    @invariant()
    def what_is_read_is_the_model(self):
        made = self.opened()
        if not self.parts:
            return
        assert made.row_ids().tolist() == self.rows(range(len(self.parts)))
        assert made.read("token_id").tolist() == [t for ids in self.parts for t in ids]
        if "acts" in made.groups:
            ids = np.array(self.rows(self.held), np.int64)
            for name in COLUMNS:
                assert np.array_equal(made.read(f"acts:{name}"), values_of(ids, made.column(name)))
        for pin, (parts, held) in self.pins.items():
            pinned = store.open(self.url, pin=pin)
            assert pinned.row_ids().tolist() == self.rows(range(parts))
            assert list(pinned.view.parts("acts") if held else held) == sorted(held)

    def teardown(self):
        if self.parts:
            report = store.verify(self.opened())
            assert report.problems == []


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=12,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
