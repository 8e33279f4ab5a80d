"""Two processes on one store, in every order of their storage calls that matters: no step breaks a promise.

One does i calls, the other j, then each comes to its end, for all i and j; and for what is short, every order there is.
After every call a ledger says what no step may do; after each order what is read is right, and a rerun completes it.
"""

import contextlib
import dataclasses
import itertools
import re
import sys

import pytest

from store import ConflictError, StoreError
from store.attempts import Attempt
from store.groups import declare_group
from store.maintenance import collect, drop, retire
from store.opening import create_in, open_in
from store.purge import add_tombstone, purge
from store.schema import Column, Group
from store.testing.simulator import NONE, Actor, SimulatedStorage, Simulation
from store.testing.small import sequences_of, values_of
from store.testing.steps import (
    COLUMNS,
    ROWS,
    STRIDE,
    is_right,
    write_acts,
)

LENGTHS = (100, 120, 250)
"""Two parts; the first holds two documents."""


def copy_of(storage):
    """The same objects, in a storage of their own."""
    copy = SimulatedStorage()
    for key in storage.keys(""):
        copy.create(key, storage.get(key))
    copy.now = storage.now
    return copy


@pytest.fixture(scope="module")
def founded():
    """Sealed tokens of two parts."""
    storage = SimulatedStorage()
    made = create_in(storage, part_rows=ROWS, part_stride=STRIDE)
    tokens_in(made)
    return storage


def tokens_in(made):
    with made.writer("tokens", recipe={"by": "steps"}) as writer:
        for number, sequence in enumerate(sequences_of(LENGTHS), start=1):
            writer.put([sequence], position=number)
        writer.seal()


@pytest.fixture(scope="module")
def written(founded):
    """The same, with one part of a group; and what a dead writer of the other left."""
    storage = copy_of(founded)
    made = write_acts(open_in(storage), [0])
    dead = attempt(storage, made.id, made.view.group("acts"))
    dead.put("scalars.parquet", b"half", 1)
    storage.now += 1000.0
    return storage


def attempt(storage, store_id, group):
    return Attempt(storage=storage, store_id=store_id, group=group, part=1, stride_rows=STRIDE)


def told(*kinds):
    """A process that may be told of what the other one did, and of nothing else."""

    def wrap(run):
        def process(storage):
            try:
                run(storage)
            except StoreError as error:
                if error.kind not in kinds:
                    raise

        return process

    return wrap


# -- who meets whom ------------------------------------------------------------------------------------------


@told("group-recipe")
def writes_all(storage):
    write_acts(open_in(storage))


def writes_second(storage):
    write_acts(open_in(storage), [1])


@told("group-recipe")
def writes_other_recipe(storage):
    write_acts(open_in(storage), recipe="other")


def collects(storage):
    collect(open_in(storage), grace_seconds=500, clock=lambda: storage._inner.now)


def collects_all(storage):
    """With a grace that is no grace: whoever is at work is told."""
    collect(open_in(storage), grace_seconds=0, clock=lambda: storage._inner.now)


def seals(storage):
    open_in(storage).seal("acts")


def drops(storage):
    drop(open_in(storage), "acts", "a trial")


def retires(storage):
    retire(open_in(storage), [0], "old", group="acts")


def purges(storage):
    made = open_in(storage)
    with contextlib.suppress(StoreError):
        add_tombstone(made, [0], "asked to")
    purge(made.live(), "asked to")


def pins(storage):
    made = open_in(storage)
    pin = made.pin()
    assert list(made.view.parts("tokens")) == list(open_in(storage, pin).view.parts("tokens"))


def completes(storage):
    """What the rest is for most pairs: a rerun of the writer."""
    write_acts(open_in(storage))
    collect(open_in(storage), grace_seconds=0, clock=lambda: storage.now)
    report = is_right(storage, LENGTHS)
    assert report.orphans == []
    assert open_in(storage).view.sealed("acts") is not None


def completes_purge(storage):
    """A writer may have come in behind the purge: the next one sees to it."""
    is_right(storage, LENGTHS, ["purge-unfinished"])
    purge(open_in(storage), "again")
    made = open_in(storage)
    with made.writer("acts", columns=COLUMNS, recipe={"by": "steps"}) as writer:
        for part in made.view.parts("tokens"):
            if not writer.done(part):
                ids = made.row_ids()
                ids = ids[ids // STRIDE == part]
                declared = writer.group.columns.values()
                writer.put(ids, {c.name: values_of(ids, c) for c in declared})
    collect(open_in(storage), grace_seconds=0, clock=lambda: storage.now)
    report = is_right(storage, LENGTHS)
    assert report.orphans == []
    assert open_in(storage).row_ids(group="acts").tolist() == [*range(100, 220), *range(512, 762)]


def is_dropped(storage):
    assert "acts" not in open_in(storage).groups
    collect(open_in(storage), grace_seconds=0, clock=lambda: storage.now)
    assert {key.partition("/parts/")[1] for key in storage.keys("groups/acts")} == {""}
    assert is_right(storage, LENGTHS).orphans == []


def is_retired(storage):
    write_acts(open_in(storage))
    collect(open_in(storage), grace_seconds=0, clock=lambda: storage.now)
    assert list(open_in(storage).view.parts("acts")) == [1]
    assert is_right(storage, LENGTHS).orphans == []


GONE = ("group-dropped", "group-missing", "object-missing", "not-found")
ALL = 1_000_000
PAIRS = {
    "two writers of one part": ("written", writes_second, writes_second, completes),
    "two writers of a new group": ("founded", writes_all, writes_all, completes),
    "two recipes of a new group": ("founded", writes_all, writes_other_recipe, None),
    "a writer and gc": ("written", writes_second, collects, completes),
    "a writer and who seals": ("written", writes_second, seals, completes),
    "a writer and who pins": ("written", writes_second, pins, completes),
    "a writer and who drops": ("written", told(*GONE)(writes_second), drops, is_dropped),
    "a writer and who retires": ("written", writes_second, retires, is_retired),
    "a writer and a purge": (
        "written",
        told("purge-unfinished", "removed-since")(writes_second),
        purges,
        completes_purge,
    ),
    "two purges": (
        "written",
        told("object-missing")(purges),
        told("object-missing")(purges),
        completes_purge,
    ),
    "a purge and gc": ("written", purges, collects, completes_purge),
}


def turns(first, second):
    """A schedule: i calls of the first process, j of the second, then each to its end, the first first."""

    def schedule(waiting):
        if len(waiting) == 1:
            return waiting[0]
        one, two = waiting
        return one if one.calls < first or two.calls >= second else two

    return schedule


def run(start, one, two, schedule):
    """Run two processes in an order; return the simulation."""
    actors = [Actor("one", one, odds=NONE), Actor("two", two, odds=NONE)]
    simulation = Simulation(actors, 0, storage=copy_of(start), schedule=schedule)
    simulation.run()
    return simulation


def state_of(storage):
    """What a storage holds, whatever its attempts are called."""
    return tuple(sorted(re.sub(r"/[0-9a-f]{16,64}", "/…", key) for key in storage.keys("")))


def grid(start, one, two, rest, *, most=ALL):
    """Run (i, j) for all i and j, or about ``most`` of them; return (orders, states that were looked at)."""
    alone = [run(start, one, two, turns(*far)) for far in ((10_000, 0), (0, 10_000))]
    lengths = [max(sim.actors[n].calls for sim in alone) for n in (0, 1)]
    pauses = list(itertools.product(*(range(n + 1) for n in lengths)))
    seen = set()
    chosen = pauses[:: max(1, len(pauses) // most)]
    for i, j in chosen:
        try:
            storage = run(start, one, two, turns(i, j)).storage
            state = state_of(storage)
            if state not in seen:
                seen.add(state)
                (completes_either if rest is None else rest)(storage)
        except (AssertionError, StoreError) as error:
            error.add_note(f"{i} calls of one, {j} of the other")
            raise
    return len(chosen), len(seen)


def completes_either(storage):
    """Whichever came first, the store is whole; a rerun of the same recipe completes it."""
    made = open_in(storage)
    report = is_right(storage, LENGTHS)
    write_acts(made, recipe=made.groups["acts"].recipe["by"])
    collect(open_in(storage), grace_seconds=0, clock=lambda: storage.now)
    report = is_right(storage, LENGTHS)
    assert report.orphans == []


@pytest.mark.parametrize("pair", PAIRS)
def test_two_processes_in_some_orders(pair, request):
    start, one, two, rest = PAIRS[pair]
    orders, states = grid(request.getfixturevalue(start), one, two, rest, most=23)
    assert orders >= 23
    assert states > 0


def in_orders(pair, request, capsys, most):
    start, one, two, rest = PAIRS[pair]
    orders, states = grid(request.getfixturevalue(start), one, two, rest, most=most)
    with capsys.disabled():
        sys.stdout.write(f"\n{pair}: {orders} orders, {states} ends\n")


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_two_processes_in_many_orders_of_two_pauses(pair, request, capsys):
    in_orders(pair, request, capsys, ALL if pair == "two writers of one part" else 500)


@pytest.mark.loops
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("pair", PAIRS)
def test_two_processes_in_every_order_of_two_pauses(pair, request, capsys):
    in_orders(pair, request, capsys, ALL)


class Unwatched:
    """A ledger that lets everything pass."""

    def made(self, *_):
        pass

    deleting = made


def test_gc_without_grace_beside_a_writer_costs_its_part_and_never_shows_a_wrong_row(written):
    """What its documentation says not to do: the writer is told, or who reads is."""
    ends, seen = set(), set()
    for i, j in itertools.product(range(30, 70, 2), range(0, 40, 4)):
        storage = copy_of(written)
        storage.ledger = Unwatched()
        outcome = told("attempt-collected")
        actors = [
            Actor("one", outcome(writes_second), odds=NONE),
            Actor("two", collects_all, odds=NONE),
        ]
        Simulation(actors, 0, storage=storage, schedule=turns(i, j)).run()
        if state_of(storage) in seen:
            continue
        seen.add(state_of(storage))
        report = is_right(storage, LENGTHS, ["object-missing"])
        ends.add(report.problems[0]["kind"] if report.problems else "whole")
        if not report.problems:
            completes(storage)
    assert ends <= {"whole", "object-missing"}
    assert "whole" in ends


# -- every order there is ------------------------------------------------------------------------------------


class Orders:
    """Every order of the calls of two processes, one after the other: the next time another choice is made."""

    def __init__(self):
        self.plan, self.at = [], 0

    def __call__(self, waiting):
        if len(waiting) == 1:
            return waiting[0]
        if self.at == len(self.plan):
            self.plan.append(0)
        self.at += 1
        return waiting[self.plan[self.at - 1]]

    def further(self):
        """Go to the next order; return whether there is one."""
        while self.plan and self.plan[-1] == 1:
            self.plan.pop()
        self.at = 0
        if self.plan:
            self.plan[-1] = 1
        return bool(self.plan)


def in_every_order(start, one, two, check):
    orders, count = Orders(), 0
    while True:
        check(run(start, one, two, orders).storage)
        count += 1
        if not orders.further():
            return count


def declares(recipe, outcomes):
    def process(storage):
        made = open_in(storage)
        columns = {"h": Column.parse("h", COLUMNS["h"])}
        group = Group(name="new", columns=columns, recipe={"by": recipe}, aligned_to="tokens")
        try:
            declare_group(storage, made.id, group)
        except ConflictError as error:
            outcomes.append(error.kind)
        else:
            outcomes.append(recipe)

    return process


def test_two_recipes_declare_one_group_in_every_order(founded):
    outcomes = []

    def check(storage):
        assert sorted(outcomes) in (["group-recipe", "one"], ["group-recipe", "two"])
        assert open_in(storage).groups["new"].recipe["by"] in outcomes
        outcomes.clear()

    orders = in_every_order(founded, declares("one", outcomes), declares("two", outcomes), check)
    assert orders > 30


def commits(made, winners):
    """One attempt of a part, from its last object on."""
    group = made.view.group("acts")
    only = {"y": Column.parse("y", "int32")}  # one object: there are few enough orders to take all
    group = dataclasses.replace(group, columns=only)

    def process(storage):
        mine = attempt(storage, made.id, group)
        mine.put("scalars.parquet", b"rows", 1)
        commit = mine.commit(1, tokens=None, summary={}, provenance={})
        winners.append((mine.id, commit.attempt))

    return process


def test_two_attempts_commit_one_part_in_every_order(written):
    winners = []

    def check(storage):
        (one, first), (two, second) = winners
        assert first == second
        assert first in {one, two}
        left = {key.split("/")[4] for key in storage.keys("groups/acts/parts/00000001")}
        assert left & {one, two} == {first}
        winners.clear()

    process = commits(open_in(written), winners)
    assert in_every_order(written, process, process, check) > 100
