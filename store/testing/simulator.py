"""A whole store's life in one thread at a time: writers, readers, gc, all at once, in an order that a seed decides.

Every actor is a thread that may do one storage call when the scheduler says so, and waits for its next turn; so a run is a
sequence of storage calls, the same for the same seed, and any of them may go wrong: the actor's process dies before or
after it, the call is refused, its answer is lost, a listing is an old one. Time is the number of calls so far.
"""

from __future__ import annotations

import contextlib
import functools
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from store.errors import UnavailableError
from store.memory import MemoryStorage
from store.storage import ReadInto, Stream, Written
from store.testing.faults import Killed
from store.testing.ledger import Ledger

PATIENCE_SECONDS = 60.0
"""Longest wait for an actor to come to its next call; one that computes for longer hangs."""
OLD_LISTINGS = 8


class SimulatedStorage(MemoryStorage):
    """Memory whose objects are dated by the simulation's clock."""

    def __init__(self) -> None:
        super().__init__("memory://simulated")
        self.now = 0.0
        self.listings: list[list[str]] = []
        self.ledger = Ledger()

    def create(self, key: str, data: bytes) -> bool:
        """See ``Storage``."""
        made = super().create(key, data)
        if made:
            self._times[key] = self.now
            self.listings = [*self.listings, sorted(self._objects)][-OLD_LISTINGS:]
            self.ledger.made(self, key, data)
        return made

    def delete(self, keys: Iterable[str]) -> None:
        """See ``Storage``."""
        for key in list(keys):
            self.ledger.deleting(self, key)
            super().delete([key])

    def modified(self, key: str) -> float:
        """See ``Storage``."""
        self.get(key)
        return self._times[key]


@dataclass(frozen=True, kw_only=True, slots=True)
class Odds:
    """How often a call goes wrong, by what happens."""

    killed_before: float = 0.004
    killed_after: float = 0.004
    refused: float = 0.004
    answer_lost: float = 0.004
    old_listing: float = 0.05

    def draw(self, rng: random.Random) -> str:
        """Return what happens to one call; empty for nothing."""
        roll = rng.random()
        for name in ("killed_before", "killed_after", "refused", "answer_lost"):
            roll -= getattr(self, name)
            if roll < 0:
                return name
        return ""


NONE = Odds(killed_before=0, killed_after=0, refused=0, answer_lost=0, old_listing=0)


def _closed() -> Any:
    """Return a lock that is held: cheaper than an event, for each is waited for once."""
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(eq=False)
class Actor:
    """One process of the simulation: a function that is given its own storage, called again when it died.

    Parameters
    ----------
    run
        What it does, from the start; raises ``Killed`` and ``UnavailableError`` through.
    lives
        How often it is started again.
    odds
        How often its calls go wrong.
    """

    name: str
    run: Callable[[ActorStorage], None]
    lives: int = 0
    odds: Odds = field(default_factory=Odds)
    failure: BaseException | None = None
    deaths: int = 0
    calls: int = 0
    _may_go: Any = field(default_factory=_closed)
    _waits: Any = field(default_factory=_closed)
    done: bool = False
    fate: str = ""
    """What happens to its next call."""


class Simulation:
    """Runs actors against one storage.

    Parameters
    ----------
    seed
        Decides who goes next and what goes wrong.
    check
        Called after every ``every`` calls, with nothing else going on; raises where an invariant is broken.
    schedule
        Who of the actors that wait goes next; default: the seed decides.
    """

    def __init__(
        self,
        actors: Sequence[Actor],
        seed: int,
        *,
        storage: SimulatedStorage | None = None,
        check: Callable[[SimulatedStorage], object] | None = None,
        every: int = 50,
        schedule: Callable[[Sequence[Actor]], Actor] | None = None,
    ) -> None:
        self.storage = SimulatedStorage() if storage is None else storage
        self.actors, self._check, self._every = list(actors), check, every
        self.rng = random.Random(f"simulation {seed}")
        self.schedule = self.rng.choice if schedule is None else schedule
        self.calls: list[str] = []

    def run(self) -> None:
        """Run until every actor is done or dead.

        Raises
        ------
        BaseException
            What an actor raised besides dying and being refused; what the check raised.
        """
        threads = [
            threading.Thread(target=self._live, args=[actor], daemon=True) for actor in self.actors
        ]
        for thread, actor in zip(threads, self.actors, strict=True):
            thread.start()
            self._await(actor)
        while waiting := [actor for actor in self.actors if not actor.done]:
            actor = self.schedule(waiting)
            actor.fate = actor.odds.draw(self.rng)
            self._step(actor)
            if self._check is not None and len(self.calls) % self._every == 0:
                self._check(self.storage)
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        failed = next((actor for actor in self.actors if actor.failure is not None), None)
        if failed is not None:
            assert failed.failure is not None
            raise failed.failure

    def _step(self, actor: Actor) -> None:
        self.storage.now += 1
        actor.calls += 1
        actor._may_go.release()
        self._await(actor)

    @staticmethod
    def _await(actor: Actor) -> None:
        if not actor._waits.acquire(timeout=PATIENCE_SECONDS):
            msg = f"actor {actor.name} neither called the storage nor ended within {PATIENCE_SECONDS} s"
            raise TimeoutError(msg)

    def _live(self, actor: Actor) -> None:
        try:
            while True:
                try:
                    actor.run(ActorStorage(self, actor))
                except (Killed, UnavailableError):
                    actor.deaths += 1
                    if actor.deaths > actor.lives:
                        return
                else:
                    return
        except BaseException as error:  # noqa: BLE001 - handed to whoever runs the simulation
            actor.failure = error
        finally:
            actor.done = True
            actor._waits.release()

    def call(self, actor: Actor, what: str, call: Callable[[], Any]) -> Any:
        """Do one storage call of an actor in its turn, or what its fate makes of it."""
        actor._waits.release()
        actor._may_go.acquire()
        self.calls.append(f"{actor.name}: {what}{f' ({actor.fate})' if actor.fate else ''}")
        if actor.fate == "killed_before":
            raise Killed
        if actor.fate == "refused":
            msg = f"{what} was refused on purpose. Try again."
            raise UnavailableError(msg)
        done = call()
        if actor.fate == "killed_after":
            raise Killed
        if actor.fate == "answer_lost":
            msg = f"{what} was done, its answer lost on purpose. Try again."
            raise UnavailableError(msg)
        return done


class ActorStorage:
    """The storage as one actor sees it: every call takes a turn."""

    def __init__(self, simulation: Simulation, actor: Actor) -> None:
        self._simulation, self._actor = simulation, actor
        self.url = simulation.storage.url
        self.call_bytes, self.calls_at_once = 1, 1
        self._dead = False

    def _do(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        if self._dead:  # no handler of a dead process does anything any more
            raise Killed
        try:
            return self._simulation.call(self._actor, what, lambda: call(*arguments))
        except Killed:
            self._dead = True
            raise

    @property
    def _inner(self) -> SimulatedStorage:
        return self._simulation.storage

    def create(self, key: str, data: bytes) -> bool:
        """See ``Storage``."""
        return bool(self._do(f"create {key}", self._inner.create, key, data))

    def put(self, key: str, data: bytes) -> Written:
        """See ``Storage``."""
        written: Written = self._do(f"put {key}", self._inner.put, key, data)
        return written

    def stream(self, key: str) -> Stream:
        """See ``Storage``."""
        return _Stream(self, key, self._inner.stream(key))

    def get(self, key: str, most: int | None = None) -> bytes:
        """See ``Storage``."""
        return bytes(self._do(f"get {key}", self._inner.get, key, most))

    def size(self, key: str) -> int:
        """See ``Storage``."""
        return int(self._do(f"size {key}", self._inner.size, key))

    def modified(self, key: str) -> float:
        """See ``Storage``."""
        return float(self._do(f"modified {key}", self._inner.modified, key))

    def read_into(self, key: str, ranges: Sequence[tuple[int, Any]]) -> None:
        """See ``Storage``."""
        self._do(f"read {key}", self._inner.read_into, key, ranges)

    @contextlib.contextmanager
    def reading(self, key: str, soon: Sequence[Sequence[int]] = ()) -> Iterator[ReadInto]:
        """See ``Storage``."""
        del soon
        yield functools.partial(self.read_into, key)

    def mapped(self, key: str) -> None:
        """Return None: what is mapped is read without a turn."""

    def settle(self, prefix: str) -> None:
        """See ``Storage``."""
        self._do(f"settle {prefix}", self._inner.settle, prefix)

    def _listed(self, prefix: str) -> list[str]:
        simulation, held = self._simulation, self._inner.listings
        if held and simulation.rng.random() < self._actor.odds.old_listing:
            base = prefix if not prefix or prefix.endswith("/") else prefix + "/"
            old = simulation.rng.choice(held)
            # What is deleted is never listed again: services promise that much, and readers rely on it for nothing.
            return [key for key in old if key.startswith(base) and key in self._inner._objects]
        return list(self._inner.keys(prefix))

    def keys(self, prefix: str) -> Iterator[str]:
        """See ``Storage``; the listing may be an old one."""
        return iter(self._do(f"keys {prefix}", self._listed, prefix))

    def folders(self, prefix: str) -> list[str]:
        """See ``Storage``; the listing may be an old one."""
        base = prefix if not prefix or prefix.endswith("/") else prefix + "/"
        keys = self._do(f"folders {prefix}", self._listed, prefix)
        inside = (key[len(base) :] for key in keys)
        return sorted({name.partition("/")[0] for name in inside if "/" in name})

    def delete(self, keys: Iterable[str]) -> None:
        """See ``Storage``; a process may die between two objects."""
        for key in list(keys):
            self._do(f"delete {key}", self._inner.delete, [key])

    def local_path(self, key: str) -> None:
        """See ``Storage``."""
        self._inner.local_path(key)


class _Stream:
    def __init__(self, storage: ActorStorage, key: str, inner: Stream) -> None:
        self._storage, self._key, self._inner = storage, key, inner

    def write(self, *buffers: Any) -> None:
        """See ``Stream``; bytes on their way are seen by nobody and take no turn."""
        self._inner.write(*buffers)

    def finish(self) -> Written:
        """See ``Stream``."""
        written: Written = self._storage._do(f"finish {self._key}", self._inner.finish)
        return written

    def abandon(self) -> None:
        """See ``Stream``."""
        self._inner.abandon()


@dataclass
class Account:
    """What happened in some runs."""

    deaths: int = 0
    calls: int = 0
    deleted: int = 0

    @classmethod
    def of(cls, actors: Sequence[Actor], simulation: Simulation) -> Account:
        """Count what happened in one run."""
        deleted = simulation.storage.ledger.deleted
        return cls(sum(actor.deaths for actor in actors), len(simulation.calls), deleted)

    def __add__(self, other: Account) -> Account:
        return Account(
            self.deaths + other.deaths, self.calls + other.calls, self.deleted + other.deleted
        )
