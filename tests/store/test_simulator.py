"""Many processes on one store, in orders and with faults that a seed decides: what is read is right, always.

Some seeds here, two thousand in the slow tests, as many as one likes by hand:
``ACTLAKE_SEEDS=1000000 pytest -m loops tests/store/test_simulator.py``. A seed that fails says so: run it alone with
``ACTLAKE_SEED=<n>``. After every call a ledger says what no step may do (``store.testing.ledger``), after some of them and at
the end all is read.
"""

import os
import re
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest

import store
from store import ConflictError, NotFoundError, StoreError
from store.commits import Attempt, Item
from store.compact import compact
from store.errors import CorruptError, UnavailableError
from store.maintenance import MOST_SKEW_SECONDS, collect, drop, retire
from store.purge import add_tombstone, purge
from store.reader import Store
from store.records import make_record
from store.testing.ledger import Ledger
from store.testing.simulator import NONE, Actor, Odds, SimulatedStorage, Simulation
from store.testing.small import sequences_of, values_of

ID, STRIDE, ROWS = "0" * 32, 512, 256
PARTS = ((100, 120), (250,), (130,))
"""The sequences of each part, a document each."""
REMOVED = 0
KEPT = [*range(100, 220), *range(512, 762), *range(1024, 1154)]
"""Rows that are left when that document is removed."""
LATE = {"group-missing", "part-missing"}
"""What a reader is told of what an old listing does not show yet."""
GONE = {*LATE, "purged", "object-missing"}
BETWEEN = {
    *GONE,
    "purge-unfinished",
    "removed-since",
    "not-found",
    "index-damaged",
    "asset-missing",
    "asset-damaged",
}
"""What a reader, writer or builder may be told while rows are removed: each time an error, never a row."""
COLUMNS = {"h": "bfloat16[16]", "y": "int32"}
GRACE = 300.0
"""In calls of all processes: longer than any writer waits between two of its objects, shorter than a run."""


def opened(storage, pin=None):
    return Store(storage, {"store": ID, "part_rows": ROWS, "part_stride": STRIDE}, pin)


def founded():
    storage = SimulatedStorage()
    body = {"part_stride": STRIDE, "part_rows": ROWS, "probe": "0" * 16}
    storage.create("store.json", make_record("store", ID, body)[0])
    return storage


def held():
    """Token of each row; -1 where there is none."""
    tokens = np.full(len(PARTS) * STRIDE, -1)
    numbers = iter(sequences_of([length for part in PARTS for length in part]))
    for part, lengths in enumerate(PARTS):
        ids = np.concatenate([next(numbers).token_ids for _ in lengths])
        tokens[part * STRIDE : part * STRIDE + len(ids)] = ids
    return tokens


HELD = held()


def late(run, kinds=LATE):
    """Let an actor come back later where it was told to: a listing was old, or gc took it for dead."""

    def again(storage):
        try:
            run(storage)
        except StoreError as error:
            if error.kind not in {*kinds, "attempt-collected"} and not isinstance(
                error, NotFoundError
            ):
                raise
            msg = f"not now: {error}"
            raise UnavailableError(msg) from error

    return again


@late
def write_tokens(storage):
    with opened(storage).writer("tokens", recipe={"source": "simulated"}) as writer:
        if writer.sealed:
            return
        first = 0
        for number, lengths in enumerate(PARTS, start=1):
            if writer.position is None or number > writer.position:
                writer.put(list(sequences_of(lengths, first=first)), position=number)
                writer.flush()
            first += len(lengths)
        writer.seal()


def write_group(name, *, patience=30, kinds=LATE):
    def run(storage):
        """Follow the tokens as they grow, until they are sealed and every part is there."""
        for _ in range(patience):
            made = opened(storage)
            if "tokens" not in made.groups:
                continue
            with made.writer(name, columns=COLUMNS, recipe={"by": name}) as writer:
                rows = writer._store.row_ids()  # as the writer sees them: some may be removed
                for part in writer._store.view.parts("tokens"):
                    if not writer.done(part):
                        ids = rows[rows // STRIDE == part]
                        declared = writer.group.columns.values()
                        writer.put(ids, {c.name: values_of(ids, c) for c in declared})
            if made.refresh().view.sealed(name):
                return

    return late(run, kinds)


def right(made, name):
    """What a group says is what was written into it."""
    ids = made.row_ids(group=name)
    for column in COLUMNS:
        declared = made.column(f"{name}:{column}")
        assert np.array_equal(made.read(f"{name}:{column}"), values_of(ids, declared)), name


def read_all(storage, allowed=()):
    made = opened(storage)
    if "tokens" in made.groups:
        assert np.array_equal(made.read("token_id"), HELD[made.row_ids()])
    for name in made.groups:
        if name != "tokens":
            try:
                right(made, name)
            except CorruptError:
                if name not in allowed:  # gone while it was read, as whoever drops it accepts
                    raise
    return made


def check_pins(storage, pins):
    """What a pin saw it sees for ever."""
    for pin, held in list(pins.items()):
        pinned = opened(storage, pin)
        for name, ids in held.items():
            assert pinned.row_ids(group=name).tolist() == ids
            if name != "tokens":
                right(pinned, name)


def reader(rounds, *, allowed=()):
    pins = {}

    def look(storage):
        made = read_all(storage, allowed)
        if made.groups and made.row_ids().size:
            held = {name: made.row_ids(group=name).tolist() for name in made.groups}
            pins[made.pin()] = held
        check_pins(storage, pins)

    def run(storage):
        for _ in range(rounds):
            try:
                look(storage)
            except NotFoundError as error:
                if error.kind not in (GONE if allowed else LATE):
                    raise
            except CorruptError:
                if not allowed:
                    raise

    return run


def collector(rounds, *, skew=0.0):
    """Gc beside the others, whose clock is off; where it is off by far, it deletes nothing and says so."""

    def run(storage):
        for _ in range(rounds):
            try:
                clock = lambda: storage._inner.now + skew  # noqa: E731 - as gc takes it
                collect(opened(storage), grace_seconds=GRACE, clock=clock)
            except StoreError as error:
                if error.kind != "clock-skew":
                    raise
                assert abs(skew) > MOST_SKEW_SECONDS - GRACE

    return run


def finished(storage):
    """Let one undisturbed process do what is left, and gc what the dead left behind."""
    rest = [Actor("rest tokens", write_tokens, odds=NONE)]
    Simulation(rest, 0, storage=storage).run()
    Simulation([Actor("rest acts", write_group("acts"), odds=NONE)], 0, storage=storage).run()
    storage.now += 10 * GRACE
    collect(opened(storage), grace_seconds=GRACE, clock=lambda: storage.now)
    made = opened(storage)
    report = store.verify(made)
    assert report.ok, report.problems
    assert report.orphans == []
    only_what_is_named(made)
    return report


def only_what_is_named(made):
    """Of all attempts ever made, those are left that a reader may be sent to."""
    storage = made.view.storage
    there = {tuple(key.split("/")[1:5:1]) for key in storage.keys("groups") if "/parts/" in key}
    named = {
        (name, "parts", f"{part:08d}", made.view.stored_commit(name, part).attempt)
        for name in made.groups
        for part in made.view.parts(name)
    }
    assert there == named


@pytest.fixture(scope="module")
def wholes():
    """The digests of stores nothing happened to."""
    storage, other = founded(), founded()
    Simulation([Actor("tokens", write_tokens, odds=NONE)], 0, storage=other).run()
    return {"all": finished(storage).digest, "without one": rests(other).digest}


def grown(seed, whole):
    """Two writers of tokens, two and one of groups, readers with pins, gc; then the rest: the undisturbed digest."""
    storage = founded()

    def tokens(storage):
        try:
            write_tokens(storage)
        except ConflictError:  # of two writers of tokens one may stop with an error
            return

    actors = [
        Actor("tokens 1", tokens, lives=3),
        Actor("tokens 2", tokens, lives=1),
        Actor("acts 1", write_group("acts"), lives=3),
        Actor("acts 2", write_group("acts"), lives=2),
        Actor("reader 1", reader(4), lives=2),
        Actor("reader 2", reader(3), lives=2),
        Actor("gc", collector(6), lives=2),
        Actor("gc of tomorrow", collector(1, skew=86_400.0), lives=1),
    ]
    simulation = Simulation(actors, seed, storage=storage, check=read_all, every=200)
    simulation.run()
    assert finished(storage).digest == whole
    return Account.of(actors, simulation)


def ended(seed):
    """A group is dropped and parts are retired while others write, read and collect: gone, or right, never wrong."""
    storage = founded()
    Simulation([Actor("tokens", write_tokens, odds=NONE)], 0, storage=storage).run()
    gone = ("acts", "more")

    def dropper(storage):
        for _ in range(20):
            made = opened(storage)
            if "more" in made.groups and made.view.parts("more"):
                drop(made, "more", "a trial")
                return

    def retirer(storage):
        for _ in range(20):
            made = opened(storage)
            if "acts" in made.groups and (parts := list(made.view.parts("acts"))):
                retire(made, parts[:1], "old", group="acts")
                return

    def more(storage):
        try:
            write_group("more")(storage)
        except StoreError as error:
            if error.kind not in {"group-dropped", *GONE}:
                raise

    actors = [
        Actor("acts", write_group("acts"), lives=3),
        Actor("more", more, lives=2),
        Actor("dropper", dropper, lives=3),
        Actor("retirer", retirer, lives=3),
        Actor("reader", reader(6, allowed=gone), lives=2),
        Actor("gc", collector(8, skew=-1800.0), lives=2),
    ]
    simulation = Simulation(
        actors, seed, storage=storage, check=lambda s: read_all(s, gone), every=200
    )
    simulation.run()
    account = Account.of(actors, simulation)
    finished(storage)
    right(opened(storage), "acts")
    return account


def without_one(storage):
    """Remove the document, if that is not done; purge."""
    made = opened(storage)
    if not list(storage.keys("tombstones")):
        add_tombstone(made, [REMOVED], "asked to")
    try:
        purge(made.live(), "asked to")
    except StoreError as error:
        raise (
            error.__cause__ or error
        ) from None  # what kept the first part, so that it is known for late


def rests(storage):
    """Let one undisturbed process remove what is to be removed, and write the rest."""
    storage.now += 10 * GRACE
    without_one(storage)
    Simulation([Actor("rest acts", write_group("acts"), odds=NONE)], 0, storage=storage).run()
    compact(opened(storage))
    report = finished(storage)
    made = opened(storage)
    assert made.row_ids().tolist() == made.row_ids(group="acts").tolist() == KEPT
    right(made, "acts")
    return report


def purged(seed, whole):
    """A document is removed and purged, tables are indexed, gc deletes, while others write and read."""
    storage = founded()
    Simulation([Actor("tokens", write_tokens, odds=NONE)], 0, storage=storage).run()

    def glance(storage):
        try:
            read_all(storage)
        except StoreError as error:
            if error.kind not in BETWEEN:
                raise

    def look(storage):
        for _ in range(6):
            glance(storage)

    def index(storage):
        for _ in range(2):
            compact(opened(storage))

    actors = [
        Actor("acts 1", write_group("acts", kinds=BETWEEN), lives=4),
        Actor("acts 2", write_group("acts", kinds=BETWEEN), lives=2),
        Actor("purger", late(without_one, BETWEEN), lives=3),
        Actor("indexer", late(index, {*BETWEEN, "index-raced"}), lives=3),
        Actor("reader", look, lives=2),
        Actor("gc", collector(6, skew=600.0), lives=2),
    ]
    simulation = Simulation(actors, seed, storage=storage, check=glance, every=200)
    simulation.run()
    account = Account.of(actors, simulation)
    assert rests(storage).digest == whole
    return account


@dataclass
class Account:
    """What happened in some runs."""

    deaths: int = 0
    calls: int = 0
    deleted: int = 0

    @classmethod
    def of(cls, actors, simulation):
        deleted = simulation.storage.ledger.deleted
        return cls(sum(actor.deaths for actor in actors), len(simulation.calls), deleted)

    def __add__(self, other):
        return Account(
            self.deaths + other.deaths, self.calls + other.calls, self.deleted + other.deleted
        )


def run_seed(seed, wholes):
    """Run what a seed stands for."""
    if seed % 3 == 0:
        return grown(seed, wholes["all"])
    return ended(seed) if seed % 3 == 1 else purged(seed, wholes["without one"])


@pytest.mark.parametrize("seed", range(0, 24, 3))
def test_many_processes_and_faults_end_at_the_undisturbed_store(wholes, seed):
    run_seed(seed, wholes)


@pytest.mark.parametrize("seed", range(1, 22, 3))
def test_groups_that_end_while_they_are_used_are_gone_or_right(wholes, seed):
    run_seed(seed, wholes)


@pytest.mark.parametrize("seed", range(2, 20, 3))
def test_rows_that_are_removed_while_others_write_are_gone_and_the_rest_is_right(wholes, seed):
    run_seed(seed, wholes)


def test_a_seed_is_one_order_of_calls():
    def calls(seed):
        actors = [Actor("t", write_tokens, lives=2), Actor("r", reader(3), lives=2)]
        simulation = Simulation(actors, seed, storage=founded())
        simulation.run()
        # Attempts have random ids, and pins name them.
        return [re.sub("[0-9a-f]{16,}", "…", call) for call in simulation.calls]

    assert calls(3) == calls(3) != calls(4)


def test_faults_strike():
    """The odds are such that processes die; else the rest would prove little."""
    storage = founded()
    odds = Odds(killed_before=0.05, killed_after=0.05, refused=0.05, answer_lost=0.05)
    actor = Actor("t", write_tokens, lives=50, odds=odds)
    simulation = Simulation([actor], 1, storage=storage)
    simulation.run()
    assert actor.deaths > 3
    for fate in ("killed_before", "killed_after", "refused", "answer_lost"):
        assert any(f"({fate})" in call for call in simulation.calls), fate


def _many(seeds, wholes):
    account = Account()
    for seed in seeds:
        try:
            account += run_seed(seed, wholes)
        except BaseException as error:
            msg = f"seed {seed} fails: ACTLAKE_SEED={seed} pytest -m loops tests/store/test_simulator.py"
            raise AssertionError(msg) from error
    return account


def _say(capsys, seeds, account, seconds):
    with capsys.disabled():
        sys.stdout.write(f"\n{len(seeds)} seeds in {seconds:.0f} s: {account}\n")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_seeds(wholes, capsys):
    seeds, started = range(1000, 3000), time.monotonic()
    account = _many(seeds, wholes)
    _say(capsys, seeds, account, time.monotonic() - started)
    assert account.deaths > len(seeds)
    assert account.deleted > len(seeds)


@pytest.mark.loops
@pytest.mark.timeout(0)
def test_as_many_seeds_as_one_likes(wholes, capsys):
    one, started = os.environ.get("ACTLAKE_SEED"), time.monotonic()
    many = int(os.environ.get("ACTLAKE_SEEDS", "20000"))
    seeds = [int(one)] if one else range(10_000, 10_000 + many)
    _say(capsys, seeds, _many(seeds, wholes), time.monotonic() - started)


def test_a_seed_that_fails_says_how_to_replay_it(wholes, monkeypatch):
    monkeypatch.setattr(Ledger, "deleting", lambda *_: pytest.fail("nothing may be deleted"))
    with pytest.raises(
        AssertionError, match=r"seed 5 fails: ACTLAKE_SEED=5 pytest -m loops tests/"
    ):
        _many([5], wholes)


def test_the_ledger_catches_what_no_step_may_do(monkeypatch):
    """Else it would prove little."""
    storage = founded()
    Simulation([Actor("tokens", write_tokens, odds=NONE)], 0, storage=storage).run()
    key = next(key for key in storage.keys("groups/tokens/parts"))
    with pytest.raises(AssertionError, match="a record names it"):
        storage.delete([key])
    with pytest.raises(AssertionError, match="was deleted"):
        storage.delete(["groups/tokens/sealed.json"])
    made = opened(storage)
    attempt = Attempt(
        storage=storage,
        store_id=ID,
        group=made.view.group("tokens"),
        part=9,
        stride_rows=STRIDE,
    )
    attempt._items.append(Item(path="tokens.parquet", size=1, crc32c="00000000", rows=1))
    monkeypatch.setattr(Attempt, "_check_kept", lambda self: None)
    with pytest.raises(AssertionError, match="which is not there"):
        attempt.commit(1, tokens=None, summary={}, provenance={})
