"""Many processes on one store, in orders and with faults that a seed decides: what is read is right, always.

Twenty seeds here, two hundred in the slow tests, as many as one likes by hand:
``ACTLAKE_SEEDS=1000000 pytest -m loops tests/store/test_simulator.py``. A seed that fails says so: run it alone with
``ACTLAKE_SEED=<n>``.
"""

import os
import re
import sys

import numpy as np
import pytest

import store
from store import ConflictError, NotFoundError, StoreError
from store.errors import CorruptError, UnavailableError
from store.maintenance import collect, drop, retire
from store.reader import Store
from store.schema import make_record
from store.testing.simulator import NONE, Actor, Odds, SimulatedStorage, Simulation
from store.testing.small import sequences_of, values_of

ID, STRIDE, ROWS = "0" * 32, 512, 256
LENGTHS = (200, 250, 130, 256, 90)
LATE = {"group-missing", "part-missing"}
"""What a reader is told of what an old listing does not show yet."""
GONE = {*LATE, "purged", "object-missing"}
COLUMNS = {"h": "bfloat16[16]", "y": "int32"}
GRACE = 100_000.0
"""Longer than any run: a gc beside the others must find nothing to delete; what it deletes is tried when all are done."""


def opened(storage, pin=None):
    return Store(storage, {"store": ID, "part_rows": ROWS, "part_stride": STRIDE}, pin)


def founded():
    storage = SimulatedStorage()
    body = {"part_stride": STRIDE, "part_rows": ROWS, "probe": "0" * 16}
    storage.create("store.json", make_record("store", ID, body)[0])
    return storage


def late(run):
    """Let an actor come back later where a listing was so old that something was not there yet."""

    def again(storage):
        try:
            run(storage)
        except NotFoundError as error:
            msg = f"a listing was old: {error}"
            raise UnavailableError(msg) from error

    return again


@late
def write_tokens(storage):
    with opened(storage).writer("tokens", recipe={"source": "simulated"}) as writer:
        if writer.sealed:
            return
        for number, sequence in enumerate(sequences_of(LENGTHS), start=1):
            if writer.position is not None and number <= writer.position:
                continue
            writer.put([sequence], position=number)
            writer.flush()
        writer.seal()


def write_group(name, *, patience=30):
    @late
    def run(storage):
        """Follow the tokens as they grow, until they are sealed and every part is there."""
        for _ in range(patience):
            made = opened(storage)
            if "tokens" not in made.groups:
                continue
            with made.writer(name, columns=COLUMNS, recipe={"by": name}) as writer:
                for part in made.view.parts("tokens"):
                    if not writer.done(part):
                        rows = made.view.commit("tokens", part).rows
                        ids = part * STRIDE + np.arange(rows)
                        declared = writer.group.columns.values()
                        writer.put(ids, {c.name: values_of(ids, c) for c in declared})
            if made.refresh().view.sealed(name):
                return

    return run


def right(made, name):
    """What a group says is what was written into it."""
    ids = made.row_ids(group=name)
    for column in COLUMNS:
        declared = made.column(f"{name}:{column}")
        assert np.array_equal(made.read(f"{name}:{column}"), values_of(ids, declared)), name


def read_all(storage, allowed=()):
    made = opened(storage)
    if "tokens" in made.groups:
        truth = np.concatenate([np.asarray(s.token_ids) for s in sequences_of(LENGTHS)])
        tokens = made.read("token_id")
        assert np.array_equal(tokens, truth[: len(tokens)])
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


def collector(rounds, grace=GRACE):
    def run(storage):
        for _ in range(rounds):
            collect(opened(storage), grace_seconds=grace, clock=lambda: storage._inner.now)

    return run


def finished(storage):
    """Let one undisturbed process do what is left, and gc what the dead left behind."""
    rest = [Actor("rest tokens", write_tokens, odds=NONE)]
    Simulation(rest, 0, storage=storage).run()
    Simulation([Actor("rest acts", write_group("acts"), odds=NONE)], 0, storage=storage).run()
    storage.now += 10 * GRACE
    collect(opened(storage), clock=lambda: storage.now)
    made = opened(storage)
    report = store.verify(made)
    assert report.ok, report.problems
    assert report.orphans == []
    return report


@pytest.fixture(scope="module")
def whole():
    storage = founded()
    return finished(storage).digest


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
        Actor("reader 1", reader(6), lives=2),
        Actor("reader 2", reader(4), lives=2),
        Actor("gc", collector(4), lives=2),
    ]
    simulation = Simulation(actors, seed, storage=storage, check=read_all, every=200)
    simulation.run()
    assert finished(storage).digest == whole
    return sum(actor.deaths for actor in actors), len(simulation.calls)


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
        Actor("reader", reader(8, allowed=gone), lives=2),
        Actor("gc", collector(5, grace=GRACE), lives=2),
    ]
    Simulation(actors, seed, storage=storage, check=lambda s: read_all(s, gone), every=200).run()
    finished(storage)
    made = opened(storage)
    right(made, "acts")
    return sum(actor.deaths for actor in actors)


@pytest.mark.parametrize("seed", range(10))
def test_many_processes_and_faults_end_at_the_undisturbed_store(whole, seed):
    grown(seed, whole)


@pytest.mark.parametrize("seed", range(10))
def test_groups_that_end_while_they_are_used_are_gone_or_right(seed):
    ended(seed)


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


def _many(seeds, whole):
    deaths = calls = 0
    for seed in seeds:
        try:
            died, made = grown(seed, whole)
            deaths, calls = deaths + died + ended(seed), calls + made
        except BaseException as error:
            msg = f"seed {seed} fails: ACTLAKE_SEED={seed} pytest -m loops tests/store/test_simulator.py"
            raise AssertionError(msg) from error
    return deaths, calls


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_seeds(whole):
    deaths, _ = _many(range(1000, 1200), whole)
    assert deaths > 200


@pytest.mark.loops
@pytest.mark.timeout(86_400)
def test_as_many_seeds_as_one_likes(whole, capsys):
    one = os.environ.get("ACTLAKE_SEED")
    seeds = (
        [int(one)] if one else range(10_000, 10_000 + int(os.environ.get("ACTLAKE_SEEDS", "2000")))
    )
    deaths, calls = _many(seeds, whole)
    with capsys.disabled():
        sys.stdout.write(f"\n{len(seeds)} seeds, {calls} storage calls, {deaths} deaths\n")
