"""Runs of the simulator that a seed decides: processes that write, grow, end, remove, index, collect and read one store.

``run_seed`` runs what a seed stands for; what is read on the way is right, and at the end the store is the one that nothing
happened to.
"""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from store.compact import compact
from store.errors import ConflictError, CorruptError, NotFoundError, StoreError, UnavailableError
from store.maintenance import MOST_SKEW_SECONDS, collect, drop, retire
from store.purge import add_tombstone, purge
from store.reader import Store
from store.records import make_record
from store.storage import Storage
from store.testing.simulator import NONE, Account, Actor, SimulatedStorage, Simulation
from store.testing.small import sequences_of, values_of
from store.verify import Report, verify

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


def opened(storage: Storage, pin: str | None = None) -> Store:
    """Open the simulated store."""
    return Store(storage, {"store": ID, "part_rows": ROWS, "part_stride": STRIDE}, pin)


def founded() -> SimulatedStorage:
    """Return a store with nothing in it."""
    storage = SimulatedStorage()
    body = {"part_stride": STRIDE, "part_rows": ROWS, "probe": "0" * 16}
    storage.create("store.json", make_record("store", ID, body)[0])
    return storage


def held() -> npt.NDArray[np.int64]:
    """Return the token of each row; -1 where there is none."""
    tokens = np.full(len(PARTS) * STRIDE, -1, np.int64)
    numbers = iter(sequences_of([length for part in PARTS for length in part]))
    for part, lengths in enumerate(PARTS):
        ids = np.concatenate([next(numbers).token_ids for _ in lengths])
        tokens[part * STRIDE : part * STRIDE + len(ids)] = ids
    return tokens


HELD = held()


Run = Callable[[Any], None]


def late(run: Run, kinds: Collection[str] = LATE) -> Run:
    """Let an actor come back later where it was told to: a listing was old, or gc took it for dead."""

    def again(storage: Storage) -> None:
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
def write_tokens(storage: Storage) -> None:
    """Write all parts of the tokens from where they stand, and seal."""
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


def write_group(name: str, *, patience: int = 30, kinds: Collection[str] = LATE) -> Run:
    """Follow the tokens as they grow, until they are sealed and every part is there."""

    def run(storage: Storage) -> None:
        for _ in range(patience):
            made = opened(storage)
            if "tokens" not in made.groups:
                continue
            with made.writer(name, columns=COLUMNS, recipe={"by": name}) as writer:
                # As the writer sees them: some may be removed.
                rows = cast("Store", writer._store).row_ids()
                for part in writer._store.view.parts("tokens"):
                    if not writer.done(part):
                        ids = rows[rows // STRIDE == part]
                        declared = writer.group.columns.values()
                        writer.put(ids, {c.name: values_of(ids, c) for c in declared})
            if made.refresh().view.sealed(name):
                return

    return late(run, kinds)


def right(made: Store, name: str) -> None:
    """Check that what a group says is what was written into it."""
    ids = made.row_ids(group=name)
    for column in COLUMNS:
        declared = made.column(f"{name}:{column}")
        assert np.array_equal(made.read(f"{name}:{column}"), values_of(ids, declared)), name


def read_all(storage: Storage, allowed: Collection[str] = ()) -> Store:
    """Read every row of every group; those allowed may be gone meanwhile."""
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


Seen = dict[str, dict[str, list[int]]]
"""Pin → group → its rows."""


def check_pins(storage: Storage, pins: Seen) -> None:
    """Check that what a pin saw it still sees."""
    for pin, held in list(pins.items()):
        pinned = opened(storage, pin)
        for name, ids in held.items():
            assert pinned.row_ids(group=name).tolist() == ids
            if name != "tokens":
                right(pinned, name)


def reader(rounds: int, *, allowed: Collection[str] = ()) -> Run:
    """Read everything again and again, and through the pins taken on the way."""
    pins: Seen = {}

    def look(storage: Storage) -> None:
        made = read_all(storage, allowed)
        if made.groups and made.row_ids().size:
            held = {name: made.row_ids(group=name).tolist() for name in made.groups}
            pins[made.pin()] = held
        check_pins(storage, pins)

    def run(storage: Any) -> None:
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


def collector(rounds: int, *, skew: float = 0.0) -> Run:
    """Gc beside the others, whose clock is off; where it is off by far, it deletes nothing and says so."""

    def run(storage: Any) -> None:
        for _ in range(rounds):
            try:
                collect(
                    opened(storage),
                    grace_seconds=GRACE,
                    clock=lambda: float(storage._inner.now) + skew,
                )
            except StoreError as error:
                if error.kind != "clock-skew":
                    raise
                assert abs(skew) > MOST_SKEW_SECONDS - GRACE

    return run


def finished(storage: SimulatedStorage) -> Report:
    """Let one undisturbed process do what is left, and gc what the dead left behind."""
    rest = [Actor("rest tokens", write_tokens, odds=NONE)]
    Simulation(rest, 0, storage=storage).run()
    Simulation([Actor("rest acts", write_group("acts"), odds=NONE)], 0, storage=storage).run()
    storage.now += 10 * GRACE
    collect(opened(storage), grace_seconds=GRACE, clock=lambda: storage.now)
    made = opened(storage)
    report = verify(made)
    assert report.ok, report.problems
    assert report.orphans == []
    only_what_is_named(made)
    return report


def only_what_is_named(made: Store) -> None:
    """Check that of all attempts ever made those are left that a reader may be sent to."""
    storage = made.view.storage
    there = {tuple(key.split("/")[1:5:1]) for key in storage.keys("groups") if "/parts/" in key}
    named = {
        (name, "parts", f"{part:08d}", made.view.stored_commit(name, part).attempt)
        for name in made.groups
        for part in made.view.parts(name)
    }
    assert there == named


@functools.cache
def wholes() -> dict[str, str | None]:
    """Return the digests of stores nothing happened to."""
    storage, other = founded(), founded()
    Simulation([Actor("tokens", write_tokens, odds=NONE)], 0, storage=other).run()
    return {"all": finished(storage).digest, "without one": rests(other).digest}


def grown(seed: int) -> Account:
    """Two writers of tokens, two and one of groups, readers with pins, gc; then the rest: the undisturbed digest."""
    storage = founded()

    def tokens(storage: Storage) -> None:
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
    assert finished(storage).digest == wholes()["all"]
    return Account.of(actors, simulation)


def ended(seed: int) -> Account:
    """Drop a group and retire parts while others write, read and collect: gone, or right, never wrong."""
    storage = founded()
    Simulation([Actor("tokens", write_tokens, odds=NONE)], 0, storage=storage).run()
    gone = ("acts", "more")

    def dropper(storage: Storage) -> None:
        for _ in range(20):
            made = opened(storage)
            if "more" in made.groups and made.view.parts("more"):
                drop(made, "more", "a trial")
                return

    def retirer(storage: Storage) -> None:
        for _ in range(20):
            made = opened(storage)
            if "acts" in made.groups and (parts := list(made.view.parts("acts"))):
                retire(made, parts[:1], "old", group="acts")
                return

    def more(storage: Storage) -> None:
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


def without_one(storage: Storage) -> None:
    """Remove the document, if that is not done; purge."""
    made = opened(storage)
    if not list(storage.keys("tombstones")):
        add_tombstone(made, [REMOVED], "asked to")
    try:
        purge(made.live(), "asked to")
    except StoreError as error:
        raise (error.__cause__ or error) from None  # what kept the first part, as ``late`` knows it


def rests(storage: SimulatedStorage) -> Report:
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


def purged(seed: int) -> Account:
    """Remove a document, purge, index tables and collect while others write and read."""
    storage = founded()
    Simulation([Actor("tokens", write_tokens, odds=NONE)], 0, storage=storage).run()

    def glance(storage: Storage) -> None:
        try:
            read_all(storage)
        except StoreError as error:
            if error.kind not in BETWEEN:
                raise

    def look(storage: Storage) -> None:
        for _ in range(6):
            glance(storage)

    def index(storage: Storage) -> None:
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
    assert rests(storage).digest == wholes()["without one"]
    return account


def run_seed(seed: int) -> Account:
    """Run what a seed stands for; an error says how to replay it."""
    try:
        return (grown, ended, purged)[seed % 3](seed)
    except BaseException as error:
        msg = (
            f"seed {seed} fails: ACTLAKE_SEED={seed} pytest -m loops tests/store/test_simulator.py"
        )
        raise AssertionError(msg) from error


def run_seeds(seeds: Sequence[int], processes: int) -> tuple[Account, float]:
    """Run many seeds, in processes of their own; return what happened and the seconds it took."""
    started = time.monotonic()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        accounts = pool.map(run_seed, seeds, chunksize=max(1, min(20, len(seeds) // processes)))
        return sum(accounts, Account()), time.monotonic() - started
