"""Faults on purpose: a storage that dies or lies at its n-th call, and damage to stored bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from store.errors import UnavailableError
from store.memory import MemoryStorage
from store.storage import ReadInto, Storage, Stream, Written
from store.urls import open_storage


class Killed(BaseException):
    """The process is gone: no handler of ours may do anything after this."""


@dataclass
class Plan:
    """What happens at which call.

    Parameters
    ----------
    at
        Number of the writing call, from 1, at which the fault strikes; 0 never.
    mode
        ``killed-before`` and ``killed-after``: the process dies before or after the call took effect.
        ``refused``: the call raises and did nothing. ``answer-lost``: the call took effect and raises.
    reads
        Reading calls count, too.
    """

    at: int = 0
    mode: str = "killed-before"
    reads: bool = False
    calls: int = 0
    dead: bool = False
    log: list[str] = field(default_factory=list)

    def run(self, what: str, call: Any, *arguments: Any) -> Any:
        """Do one writing call, or what the plan makes of it."""
        self.calls += 1
        self.log.append(what)
        if self.dead or (self.calls == self.at and self.mode == "killed-before"):
            self.dead = True
            raise Killed
        if self.calls == self.at and self.mode == "refused":
            raise UnavailableError(f"{what} was refused on purpose. Try again.")
        done = call(*arguments)
        if self.calls == self.at and self.mode == "killed-after":
            self.dead = True
            raise Killed
        if self.calls == self.at and self.mode == "answer-lost":
            raise UnavailableError(f"{what} was done, its answer lost on purpose. Try again.")
        return done


class Before(Plan):
    """Does something of its own, once, before the first writing call that starts so."""

    def __init__(self, start: str, do: Callable[[], Any]) -> None:
        super().__init__()
        self.start, self.do, self.done = start, do, False

    def run(self, what: str, call: Any, *arguments: Any) -> Any:
        """See ``Plan``."""
        if what.startswith(self.start) and not self.done:
            self.done = True
            self.do()
        return super().run(what, call, *arguments)


class FaultyStorage:
    """A storage whose calls follow a plan; reading calls only die with the process where the plan does not count them."""

    def __init__(self, inner: Storage, plan: Plan) -> None:
        self.inner, self.plan, self.url = inner, plan, inner.url
        self.call_bytes, self.calls_at_once = inner.call_bytes, inner.calls_at_once

    def _read(self, what: str, call: Any, *arguments: Any) -> Any:
        if self.plan.reads:
            return self.plan.run(what, call, *arguments)
        if self.plan.dead:
            raise Killed
        return call(*arguments)

    def create(self, key: str, data: bytes) -> bool:
        """See ``Storage``."""
        return bool(self.plan.run(f"create {key}", self.inner.create, key, data))

    def put(self, key: str, data: bytes) -> Written:
        """See ``Storage``."""
        written: Written = self.plan.run(f"put {key}", self.inner.put, key, data)
        return written

    def stream(self, key: str) -> Stream:
        """See ``Storage``."""
        if self.plan.dead:
            raise Killed
        return _FaultyStream(self.inner.stream(key), self.plan, key)

    def delete(self, keys: Iterable[str]) -> None:
        """See ``Storage``; a process may die between two objects."""
        for key in list(keys):
            self.plan.run(f"delete {key}", self.inner.delete, [key])

    def get(self, key: str, most: int | None = None) -> bytes:
        """See ``Storage``."""
        return bytes(self._read(f"get {key}", self.inner.get, key, most))

    def size(self, key: str) -> int:
        """See ``Storage``."""
        return int(self._read(f"size {key}", self.inner.size, key))

    def modified(self, key: str) -> float:
        """See ``Storage``."""
        return float(self._read(f"modified {key}", self.inner.modified, key))

    def read_into(self, key: str, ranges: Sequence[tuple[int, Any]]) -> None:
        """See ``Storage``."""
        self._read(f"read {key}", self.inner.read_into, key, ranges)

    @contextmanager
    def reading(self, key: str, soon: Sequence[Sequence[int]] = ()) -> Iterator[ReadInto]:  # noqa: ARG002
        """See ``Storage``; every read is a call of its own."""
        yield functools.partial(self.read_into, key)

    def mapped(self, key: str) -> memoryview | None:
        """See ``Storage``."""
        found: memoryview | None = self._read(f"map {key}", self.inner.mapped, key)
        return found

    def settle(self, prefix: str) -> None:
        """See ``Storage``."""
        self._read(f"settle {prefix}", self.inner.settle, prefix)

    def keys(self, prefix: str) -> Iterator[str]:
        """See ``Storage``."""
        return iter(list(self._read(f"keys {prefix}", self.inner.keys, prefix)))

    def folders(self, prefix: str) -> list[str]:
        """See ``Storage``."""
        return list(self._read(f"folders {prefix}", self.inner.folders, prefix))

    def local_path(self, key: str) -> Path | None:
        """See ``Storage``."""
        if self.plan.dead:
            raise Killed
        return self.inner.local_path(key)


class _FaultyStream:
    def __init__(self, inner: Stream, plan: Plan, key: str) -> None:
        self._inner, self._plan, self._key = inner, plan, key

    def write(self, *buffers: Any) -> None:
        self._plan.run(f"write {self._key}", self._inner.write, *buffers)

    def finish(self) -> Written:
        written: Written = self._plan.run(f"finish {self._key}", self._inner.finish)
        return written

    def abandon(self) -> None:
        if not self._plan.dead:
            self._inner.abandon()


# -- damage ------------------------------------------------------------------------------------------------


def overwrite(storage: Storage, key: str, data: bytes | None) -> None:
    """Replace an object behind the store's back, or remove it where ``data`` is None."""
    if isinstance(storage, MemoryStorage):
        storage.delete([key])
        if data is not None:
            storage.create(key, data)
        return
    path = storage.local_path(key)
    assert path is not None
    if data is None:
        path.unlink()
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def flip(data: bytes, at: int, bit: int = 0) -> bytes:
    """Return bytes with one bit turned over."""
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)


def plant(url: str, objects: Mapping[str, bytes]) -> str:
    """Lay the objects of a store down behind a URL, without ceremony; return the URL."""
    storage = open_storage(url)
    for key, data in objects.items():
        overwrite(storage, key, data)
    return url


def harvest(url: str) -> dict[str, bytes]:
    """Return every object behind a URL."""
    storage = open_storage(url)
    return {key: storage.get(key) for key in storage.keys("")}
