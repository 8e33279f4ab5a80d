"""A worker's post: what runs in a process of its own around the plain worker class. Knows no cluster.

Whatever a worker raises becomes a small record here; nothing but records leaves the post.
"""

from __future__ import annotations

import os
import pickle
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ingest.contract import StoppedError, Worker
from jobs.runtimes.schedule import Failure
from store.errors import ActlakeError, CorruptError, UnavailableError

RECORD_BYTES = 16 << 20
"""What a worker may return for a part: a merged evaluation of width 4096 fits, activations do not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What became of one try at one part."""

    part: int
    state: Literal["done", "failed", "refused", "dropped"]
    value: Any = None
    """The worker's record where done."""
    failure: Failure | None = None
    """Where failed."""
    error: ActlakeError | None = None
    """Where refused: an error that every other try would meet as well."""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its class."""
    text = error.message if isinstance(error, ActlakeError) else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0][:300]


def failure_of(error: BaseException) -> Failure:
    """Return an error as a record."""
    if isinstance(error, ActlakeError):
        return Failure(kind=error.kind, line=first_line(error))
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return out_of_memory(first_line(error))
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return Failure(kind=type(error).__name__, line=first_line(error) + at)


def out_of_memory(what: str) -> Failure:
    """Return the record of a worker that had no more memory."""
    line = f"the worker ran out of memory ({what}); ask for less: a smaller --batch, or fewer --workers a machine"
    return Failure(kind="out-of-memory", line=line)


OF_ONE_PART = {"nonfinite", "not-codable", "rows-differ"}
"""Kinds of errors about the rows of one part: the others can be done."""
OF_ONE_MACHINE = {"model-differs", "model-not-found", "model-broken", "missing-package"}
"""Kinds of errors about the machine a worker is on: another may fare better."""


def same_everywhere(error: BaseException) -> bool:
    """Whether an error is about what was asked, so that no other worker or part would fare better.

    Storage that does not answer may answer next time, and damage concerns one part only.
    """
    return (
        isinstance(error, ActlakeError)
        and not isinstance(error, CorruptError | UnavailableError)
        and error.kind not in OF_ONE_PART | OF_ONE_MACHINE
    )


class Post:
    """Makes the worker when the first part comes, runs part after part, can be told to drop one.

    ``drop`` is called from another thread than all else.

    Parameters
    ----------
    threads
        Threads the worker computes with.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._make: Callable[[], Worker] | None = None
        self._worker: Worker | None = None
        self._lock = threading.Lock()
        self._at: int | None = None
        self._unwanted: set[int] = set()
        raise_priority()

    def begin(self, make_worker: Callable[[], Worker]) -> Mapping[str, Any]:
        """Take on a job, leaving the one before; return where this is and what it was given."""
        self._make, self._worker = make_worker, None
        with self._lock:
            self._unwanted.clear()
        return {"pid": os.getpid(), "nice": os.nice(0), "threads": self._threads}

    def run(self, part: int) -> Report:
        """Work on one part; never raises what the worker raises."""
        with self._lock:
            if part in self._unwanted:
                self._unwanted.discard(part)
                return Report(part=part, state="dropped")
            self._at = part
        try:
            set_threads(self._threads)  # of this very thread: OpenMP keeps a number for each
            if self._worker is None:
                assert self._make is not None, "no job was begun"
                self._worker = self._make()
            return _checked(part, self._worker.run(part))
        except StoppedError:
            return Report(part=part, state="dropped")
        except Exception as error:  # noqa: BLE001 - the one broad handler, at the worker's boundary
            return _report(part, error)
        finally:
            with self._lock:
                self._at = None

    def drop(self, part: int | None = None) -> None:
        """Stop working on a part, or on whichever is in hand, as soon as that is safe; leaves nothing behind."""
        with self._lock:
            if part is not None and part != self._at:
                self._unwanted.add(part)
                return
            stop = getattr(self._worker, "stop", None)
            if self._at is not None and stop is not None:
                stop()

    def close(self) -> ActlakeError | Failure | None:
        """Close the worker, where one was made; return what went wrong."""
        worker, self._worker = self._worker, None
        try:
            if worker is not None:
                worker.close()
        except Exception as error:  # noqa: BLE001 - as in run
            return error if isinstance(error, ActlakeError) else failure_of(error)
        return None


def _checked(part: int, value: Any) -> Report:
    size = len(pickle.dumps(value, protocol=5))
    if size > RECORD_BYTES:
        message = (
            f"the worker returned {size:,} bytes for part {part}; records between processes hold at most "
            f"{RECORD_BYTES:,}. What it wrote stands. Use --runtime in_process, or write rows to the store."
        )
        return Report(
            part=part,
            state="refused",
            error=ActlakeError(message, kind="record-too-large", part=part),
        )
    return Report(part=part, state="done", value=value)


def _report(part: int, error: Exception) -> Report:
    if same_everywhere(error):
        assert isinstance(error, ActlakeError)
        return Report(part=part, state="refused", error=error)
    return Report(part=part, state="failed", failure=failure_of(error))


def set_threads(threads: int) -> None:
    """Let this thread's torch compute with so many threads."""
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def raise_priority() -> None:
    """Undo a lowered priority where the system lets us: Ray starts workers at nice 15."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    except OSError:
        return
