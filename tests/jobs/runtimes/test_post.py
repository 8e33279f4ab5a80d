"""A worker's post: whatever happens inside comes out as a small record."""

import os
import pickle
import threading

import pytest

from ingest.contract import StoppedError
from jobs.runtimes import post
from jobs.runtimes.post import Post, failure_of, same_everywhere
from store.errors import ConflictError, CorruptError, InvalidInputError, UnavailableError


class Plain:
    """Returns, or raises, what it is given."""

    def __init__(self, gives):
        self.gives = gives
        self.closed = 0

    def run(self, part):
        if isinstance(self.gives, BaseException):
            raise self.gives
        return self.gives

    def close(self):
        self.closed += 1


def _post(gives):
    worker = Plain(gives)
    held = Post(threads=1)
    held.begin(lambda: worker)
    return held, worker


def test_a_record_comes_back_with_its_part():
    held, worker = _post({"rows": 5})
    report = held.run(3)
    assert (report.part, report.state, report.value) == (3, "done", {"rows": 5})
    assert held.close() is None
    assert worker.closed == 1


FAILED = {
    "any other": (OSError("disk on fire\nand more"), "OSError", "disk on fire"),
    "memory": (MemoryError(), "out-of-memory", "--batch"),
    "torch's memory": (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 TB"),
        "out-of-memory",
        "--batch",
    ),
    "storage": (UnavailableError("no answer"), "unavailable", "no answer"),
    "damage": (CorruptError("chunk 3", kind="chunk-damaged"), "chunk-damaged", "chunk 3"),
}


@pytest.mark.parametrize(("error", "kind", "says"), FAILED.values(), ids=list(FAILED))
def test_what_may_go_better_elsewhere_is_a_failed_try(error, kind, says):
    report = _post(error)[0].run(0)
    assert (report.state, report.failure.kind) == ("failed", kind)
    assert says in report.failure.line
    assert "\n" not in report.failure.line
    assert pickle.loads(pickle.dumps(report)) == report


@pytest.mark.parametrize("error", [InvalidInputError("x"), ConflictError("y")])
def test_what_is_the_same_everywhere_is_refused_with_the_error_itself(error):
    report = pickle.loads(pickle.dumps(_post(error)[0].run(0)))
    assert report.state == "refused"
    assert type(report.error) is type(error)
    assert report.error.kind == error.kind


def test_a_large_record_is_refused(monkeypatch):
    monkeypatch.setattr(post, "RECORD_BYTES", 1000)
    report = _post(b"x" * 2000)[0].run(4)
    assert report.state == "refused"
    assert report.error.kind == "record-too-large"
    assert "2,0" in str(report.error)


def test_a_worker_that_cannot_be_made_is_a_failed_try():
    held = Post(threads=1)

    def make():
        raise ImportError("no module named moon")

    held.begin(make)
    assert held.run(0).failure.kind == "ImportError"


class Slow:
    """Works until it is stopped."""

    def __init__(self):
        self.working, self.stopped = threading.Event(), threading.Event()

    def run(self, part):
        self.working.set()
        assert self.stopped.wait(20)
        raise StoppedError

    def stop(self):
        self.stopped.set()

    def close(self):
        pass


def test_a_part_in_hand_is_dropped_from_another_thread():
    worker, held, found = Slow(), Post(threads=1), []
    held.begin(lambda: worker)
    thread = threading.Thread(target=lambda: found.append(held.run(7)))
    thread.start()
    assert worker.working.wait(20)
    held.drop(8)  # not in hand: remembered
    assert not worker.stopped.is_set()
    held.drop(7)
    thread.join(20)
    assert [(report.part, report.state) for report in found] == [(7, "dropped")]
    assert held.run(8).state == "dropped"


def test_a_new_job_forgets_what_the_old_one_dropped():
    held, _ = _post(1)
    held.drop(5)
    held.begin(lambda: Plain(2))
    assert held.run(5).value == 2


def test_close_tells_what_went_wrong():
    held, worker = _post(1)
    worker.close = lambda: (_ for _ in ()).throw(ConflictError("other", kind="sealed-differs"))
    held.run(0)
    assert held.close().kind == "sealed-differs"


def test_the_facts_are_those_of_the_process():
    facts = Post(threads=3).begin(lambda: Plain(1))
    assert facts == {"pid": os.getpid(), "nice": os.nice(0), "threads": 3}


def test_threads_are_set_for_the_thread_that_works():
    import torch

    before = torch.get_num_threads()
    seen = []
    held = Post(threads=before + 1)
    held.begin(lambda: type("W", (), {"run": lambda _, p: torch.get_num_threads()})())
    try:
        thread = threading.Thread(target=lambda: seen.append(held.run(0).value))
        thread.start()
        thread.join(20)
    finally:
        torch.set_num_threads(before)
    assert seen == [before + 1]


def test_only_what_was_asked_is_the_same_everywhere():
    assert same_everywhere(InvalidInputError("x"))
    assert not same_everywhere(ValueError("x"))
    assert not same_everywhere(UnavailableError("x"))
    assert not same_everywhere(InvalidInputError("row 5", kind="nonfinite"))  # of one part
    assert not same_everywhere(InvalidInputError("x", kind="model-differs"))  # of one machine
    assert failure_of(ValueError("")).line.startswith("ValueError")
