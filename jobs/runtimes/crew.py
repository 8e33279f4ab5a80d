"""A crew: the actors of a Ray runtime and what they have been asked. Ray itself is handed in."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Mapping
from typing import Any

from ingest.contract import Worker
from jobs.errors import JobError
from jobs.runtimes.post import Post, out_of_memory
from jobs.runtimes.room import Ask
from jobs.runtimes.schedule import Failure
from store.errors import ActlakeError

FACTORY_BYTES = 64 << 20
"""What makes a worker may weigh this much: a dictionary to evaluate fits, a model does not belong in it."""
DROP_SECONDS = 10.0
"""How long workers get to drop their parts when a run ends early."""
CLOSE_SECONDS = 60.0
_CAUSE = 160


def packed(dumps: Callable[[Any], bytes], make_worker: Callable[[], Worker]) -> bytes:
    """Return a factory as bytes; raise ``worker-too-large`` where it holds what it should load."""
    data = dumps(make_worker)
    if len(data) > FACTORY_BYTES:
        raise JobError(
            f"what makes a worker weighs {len(data):,} bytes; at most {FACTORY_BYTES:,} are sent to other processes. "
            "No part was begun. Let the worker load it itself, or use --runtime in_process.",
            kind="worker-too-large",
        )
    return data


class _Actor(Post):
    """A post that unpacks its factory itself, when a part comes: what fails then is reported like all else."""

    def begin(self, packed: Any) -> Mapping[str, Any]:
        """Take on a job."""
        return super().begin(lambda: pickle.loads(packed)())


class RayCrew:
    """The actors by number, and what they have been asked; they outlive a job, since processes cost seconds."""

    def __init__(self, ray: Any, ask: Ask) -> None:
        self._ray = ray
        self.ask = ask
        self._threads = ask.cpus
        self._class = ray.remote(concurrency_groups={"control": 1})(_Actor).options(
            num_cpus=ask.cpus,
            num_gpus=ask.gpus,
            resources=dict(ask.named),
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(ask.cpus)}},
        )
        self._actors: dict[int, Any] = {}
        self._asked: dict[Any, tuple[int, int | None]] = {}
        self._next = 0

    def begin(self, make_worker: Callable[[], Worker], count: int) -> None:
        """Take on a job with so many workers; each is there once ``answers`` tells."""
        self._packed = self._ray.put(packed(self._ray.cloudpickle.dumps, make_worker))
        for number in list(self._actors)[count:]:
            self.fire(number)
        for number in self._actors:
            self._greet(number)
        while len(self._actors) < count:
            self.hire()

    def hire(self) -> None:
        """Ask for one more worker."""
        number, self._next = self._next, self._next + 1
        self._actors[number] = self._class.remote(self._threads)
        self._greet(number)

    def _greet(self, number: int) -> None:
        self._asked[self._actors[number].begin.remote(self._packed)] = (number, None)

    def send(self, number: int, part: int) -> None:
        """Give a worker a part."""
        self._asked[self._actors[number].run.remote(part)] = (number, part)

    def drop(self, number: int, part: int) -> None:
        """Tell a worker that a part is no longer wanted."""
        self._actors[number].drop.options(concurrency_group="control").remote(part)

    def answers(self, seconds: float) -> list[tuple[int, Any]]:
        """Wait for something to happen; return (worker, its report, its greeting or the failure that ended it)."""
        ready, _ = self._ray.wait(list(self._asked), timeout=seconds, num_returns=1)
        found = []
        for ref in ready:
            number, _ = self._asked.pop(ref)
            try:
                found.append((number, self._ray.get(ref)))
            except self._ray.exceptions.RayError as error:
                self.fire(number)
                memory = isinstance(error, self._ray.exceptions.OutOfMemoryError)
                found.append((number, death(error, memory=memory)))
        return found

    def fire(self, number: int) -> None:
        """End a worker; nothing more is heard of it."""
        self._asked = {ref: who for ref, who in self._asked.items() if who[0] != number}
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._actors.pop(number))

    def end(self) -> None:
        """Drop what is in hand; workers that do not let go of it in ten seconds are ended."""
        for number, part in self._asked.values():
            if part is not None and number in self._actors:
                self.drop(number, part)
        busy = [ref for ref, (_, part) in self._asked.items() if part is not None]
        if busy:
            self._ray.wait(busy, num_returns=len(busy), timeout=DROP_SECONDS)
        ready, _ = (
            self._ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
            if self._asked
            else ([], [])
        )
        for number, _ in [who for ref, who in self._asked.items() if ref not in ready]:
            if number in self._actors:
                self.fire(number)
        self._asked = {}

    def close(self) -> None:
        """Let every worker finish what it holds open; raise what went wrong."""
        for number, actor in list(self._actors.items()):
            try:
                said = self._ray.get(actor.close.remote(), timeout=CLOSE_SECONDS)
            except self._ray.exceptions.RayError:
                self.fire(number)  # what it held open others find by themselves
                continue
            if isinstance(said, ActlakeError):
                raise said
            if said is not None:
                raise JobError(
                    f"a worker could not finish: {said}. Its parts are committed. Run the same again."
                )

    def dismiss(self) -> None:
        """End all workers."""
        for number in list(self._actors):
            self.fire(number)


def death(error: Exception, *, memory: bool) -> Failure:
    """Say why a worker is gone, as far as is known.

    Parameters
    ----------
    memory
        Whether Ray's own watch killed it.
    """
    text = " ".join(str(error).split())
    if memory or "out of memory" in text.lower():
        return out_of_memory("it was killed for it")
    # Ids, addresses and advice stand before what happened.
    what = text.partition("Worker exit detail: ")[2] or text.partition("cause: ")[2] or text
    hint = (
        "; where nobody killed it the system may have, for memory: try a smaller --batch or fewer --workers"
        if "SIGKILL" in text or "unexpectedly" in text or "SYSTEM_ERROR" in text
        else ""
    )
    return Failure(kind="worker-died", line=what[:_CAUSE] + hint)
