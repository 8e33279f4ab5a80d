"""The loop of a run under a fault script: what each try of each part does, in simulated time, without a cluster."""

import heapq
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import JobError
from jobs.runtimes.post import Report
from jobs.runtimes.schedule import AHEAD, BARREN, TRIES, Failure, Schedule
from jobs.runtimes.work import START_SECONDS, work
from store.errors import InvalidInputError

SECONDS = {"ok": 10.0, "slow": 100.0, "fail": 5.0, "kill": 5.0, "refuse": 1.0, "twice": 10.0}


class FakeCrew:
    """Workers that do as the script says: part → what its first, second, … try does; then ``ok``."""

    def __init__(self, script=None, *, starts=True, dies=False):
        self.dies = dies
        self.script = script or {}
        self.starts = starts
        self.now = 0.0
        self.events = []
        self.count = itertools.count()
        self.lines = {}
        self.running = {}
        self.unwanted = set()
        self.tries = {}
        self.where = {}
        self.longest = 0
        self.committed = {}

    def clock(self):
        return self.now

    def hire(self):
        number = len(self.lines)
        self.lines[number] = []
        if self.dies:
            self._at(1.0, number, "dies")
            return
        if self.starts:
            self._at(1.0, number, {"pid": number})

    def fire(self, number):
        self.lines[number] = None
        self.running.pop(number, None)

    def send(self, number, part):
        assert self.lines[number] is not None, "a dead worker was sent a part"
        self.lines[number].append(part)
        self.where.setdefault(part, []).append(number)
        self.longest = max(self.longest, len(self.lines[number]))
        self._next(number)

    def drop(self, number, part):
        if self.running.get(number, (None,))[0] == part:
            self.running[number] = (part, "dropped")
            self._at(0.5, number, (part, "dropped"))
        else:
            self.unwanted.add((number, part))

    def answers(self, seconds):
        until = self.now + seconds
        while self.events and self.events[0][0] <= until:
            self.now, _, number, said = heapq.heappop(self.events)
            found = self._happens(number, said)
            if found:
                return found
        self.now = max(self.now, until)
        return []

    def _at(self, seconds, number, said):
        heapq.heappush(self.events, (self.now + seconds, next(self.count), number, said))

    def _next(self, number):
        if self.running.get(number) or not self.lines[number]:
            return
        part = self.lines[number][0]
        if (number, part) in self.unwanted:
            self.unwanted.discard((number, part))
            self.running[number] = (part, "dropped")
            self._at(0.0, number, (part, "dropped"))
            return
        attempt = self.tries[part] = self.tries.get(part, 0) + 1
        does = (self.script.get(part, []) + ["ok"] * attempt)[attempt - 1]
        self.running[number] = (part, does)
        self._at(SECONDS[does], number, (part, does))

    def _happens(self, number, said):
        if isinstance(said, dict):
            return [(number, said)]
        if said == "dies":
            self.fire(number)
            return [(number, Failure(kind="out-of-memory", line="the worker ran out of memory"))]
        part, does = said
        if self.lines[number] is None or self.running.get(number) != (part, does):
            return []  # it was told to drop the part, or is gone
        if does == "kill":
            self.fire(number)
            return [(number, Failure(kind="worker-died", line="killed"))]
        self.running.pop(number)
        self.lines[number].pop(0)
        self._next(number)
        if does == "fail":
            why = Failure(kind="OSError", line=f"part {part}")
            return [(number, Report(part=part, state="failed", failure=why))]
        if does == "refuse":
            error = InvalidInputError("no", kind="nonfinite")
            return [(number, Report(part=part, state="refused", error=error))]
        if does == "dropped":
            return [(number, Report(part=part, state="dropped"))]
        self.committed.setdefault(part, number)
        return [(number, Report(part=part, state="done", value=part * 10))] * (
            1 + (does == "twice")
        )


def _run(parts, crew, workers):
    schedule = Schedule(parts)
    for _ in range(workers):
        crew.hire()
    return list(work(schedule, crew, workers, clock=crew.clock)), schedule


SCRIPTS = {
    "undisturbed": ({}, {}),
    "slow": ({3: ["slow"]}, {}),
    "fails once": ({3: ["fail"]}, {3: 2}),
    "fails twice": ({0: ["fail", "fail"]}, {0: 3}),
    "killed": ({5: ["kill"]}, {5: 2}),
    "all killed once": ({p: ["kill"] for p in range(12)}, dict.fromkeys(range(12), 2)),
    "delivered twice": ({7: ["twice"]}, {}),
    "killed, then failing": ({2: ["kill", "fail"]}, {2: 3}),
}


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize(("script", "tries"), SCRIPTS.values(), ids=list(SCRIPTS))
def test_every_part_is_delivered_once_whatever_happens(script, tries, workers):
    crew = FakeCrew(script)
    found, schedule = _run(list(range(12)), crew, workers)
    assert sorted(found) == [(part, part * 10) for part in range(12)]
    assert not schedule.given_up
    assert {part: crew.tries[part] for part in tries} == tries
    assert crew.longest <= AHEAD


def test_a_part_that_fails_is_tried_elsewhere():
    crew = FakeCrew({4: ["fail", "fail"]})
    _run(list(range(9)), crew, 3)
    assert len(set(crew.where[4])) == len(crew.where[4]) == 3


@pytest.mark.parametrize("does", ["fail", "kill"])
def test_a_part_that_always_fails_is_given_up_after_three_tries_and_the_run_goes_on(does):
    crew = FakeCrew({4: [does] * 9})
    found, schedule = _run(list(range(9)), crew, 2)
    assert [part for part, _ in sorted(found)] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert set(schedule.given_up) == {4}
    assert crew.tries[4] == TRIES


def test_a_straggler_is_stolen_and_the_loser_told_to_drop_it():
    crew = FakeCrew({5: ["slow"]})
    found, _ = _run(list(range(6)), crew, 2)
    assert len(found) == 6
    assert crew.tries[5] == 2
    assert crew.now < SECONDS["slow"]


def test_what_waits_behind_a_straggler_is_stolen_at_once():
    crew = FakeCrew({0: ["slow"]})
    found, _ = _run(list(range(8)), crew, 2)
    assert len(found) == 8
    assert crew.now < SECONDS["slow"]


def test_nothing_is_stolen_where_all_go_at_one_speed():
    crew = FakeCrew()
    _run(list(range(7)), crew, 3)
    assert set(crew.tries.values()) == {1}


def test_an_error_that_is_the_same_everywhere_ends_the_run_at_once():
    crew = FakeCrew({2: ["refuse"]})
    with pytest.raises(InvalidInputError, match="nonfinite"):
        _run(list(range(100)), crew, 2)
    assert crew.tries[2] == 1
    assert len(crew.tries) < 10


@pytest.mark.parametrize("does", ["fail", "kill"])
def test_a_run_in_which_nothing_succeeds_is_given_up(does):
    crew = FakeCrew({part: [does] * 9 for part in range(1000)})
    with pytest.raises(JobError, match="workers-fail"):
        _run(list(range(1000)), crew, 2)
    assert sum(crew.tries.values()) <= BARREN * 3 + 2


def test_workers_that_die_before_their_first_part_say_of_what():
    with pytest.raises(
        JobError, match=r"workers-fail.*out-of-memory: the worker ran out of memory"
    ):
        _run([0, 1], FakeCrew(dies=True), 2)


def test_the_last_failure_is_the_one_met_last():
    schedule = Schedule([0, 1])
    schedule.join(7)
    for part, now in ((1, 1.0), (0, 2.0)):
        schedule.failed(7, part, Failure(kind="OSError", line=f"part {part}"), now)
    assert schedule.last_failure().line == "part 0"


def test_a_worker_that_fails_again_and_again_is_replaced():
    crew = FakeCrew({part: ["fail"] for part in range(4)})
    found, _ = _run(list(range(20)), crew, 1)
    assert len(found) == 20
    assert len(crew.lines) > 1


def test_workers_that_never_come_up_are_an_error():
    crew = FakeCrew(starts=False)
    with pytest.raises(JobError, match="no-workers"):
        _run([0, 1], crew, 2)
    assert START_SECONDS <= crew.now < START_SECONDS + 5


@given(
    script=st.dictionaries(
        st.integers(0, 14), st.lists(st.sampled_from(sorted(set(SECONDS) - {"refuse"})), max_size=2)
    ),
    workers=st.integers(1, 4),
)
def test_any_script_with_two_faults_a_part_ends_with_every_part_once(script, workers):
    crew = FakeCrew(script)
    found, schedule = _run(list(range(15)), crew, workers)
    assert sorted(part for part, _ in found) == list(range(15))
    assert not schedule.given_up
    assert set(crew.committed) == set(range(15))
