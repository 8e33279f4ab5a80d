"""A whole life, in which every single storage call goes wrong in every way there is: read, run again, compare.

Some calls here, all writing calls and a part of the reading ones in the slow tests, all with ``-m loops``. A process that is
killed behind a call leaves what one leaves that is killed before the next, so a state that was looked at is not looked at
again: it is known by its keys, for what they hold follows from them.
"""

import itertools
import re
import sys
import time
from collections import Counter

import pytest

from store import StoreError, UnavailableError
from store.memory import MemoryStorage
from store.testing.faults import FaultyStorage, Killed, Plan
from store.testing.steps import ends_at, is_right
from store.testing.whole_life import LENGTHS, live

MODES = ("killed-before", "killed-after", "refused", "answer-lost")
BETWEEN = ("purge-unfinished",)
"""What a group is that a purge has not come to yet: an error, and no row."""


class Points:
    """Lives that go wrong at one call, and what comes of them."""

    def __init__(self):
        storage, plan, every = MemoryStorage(), Plan(), Plan(reads=True)
        self.digest = live(FaultyStorage(storage, plan), time.time).digest()
        live(FaultyStorage(MemoryStorage(), every), time.time)
        self.writes, self.calls = plan.calls, every.calls
        self.log = every.log
        self.seen, self.struck, self.looks = set(), 0, 0
        self.outcomes = Counter()
        ends_at(storage, self.digest, LENGTHS)

    def strike(self, at, mode, *, reads=False):
        """One life that goes wrong at its n-th call; then what readers see, and the rest of it."""
        storage, plan = MemoryStorage(), Plan(at=at, mode=mode, reads=reads)
        try:
            live(FaultyStorage(storage, plan), time.time)
            self.outcomes["got over"] += 1
        except (Killed, UnavailableError) as error:
            self.outcomes[type(error).__name__] += 1
        assert plan.calls >= at
        self.struck += 1
        state = tuple(sorted(re.sub(r"/[0-9a-f]{16,64}", "/…", key) for key in storage.keys("")))
        if state in self.seen:
            return
        self.seen.add(state)
        self.looks += 1
        try:
            is_right(storage, LENGTHS, BETWEEN)
            live(storage, time.time)
            ends_at(storage, self.digest, LENGTHS)
        except (AssertionError, StoreError) as error:
            error.add_note(
                f"call {at} of {'all' if reads else 'the writing'} calls, {mode}: {plan.log[at - 1]}"
            )
            raise

    def everywhere(self, *, write_step=1, read_step=1, read_modes=("refused",)):
        """Go wrong at each call."""
        for mode, at in itertools.product(MODES, range(1, self.writes + 1, write_step)):
            self.strike(at, mode)
        for mode, at in itertools.product(read_modes, range(1, self.calls + 1, read_step)):
            self.strike(at, mode, reads=True)
        return self


def test_a_life_has_every_kind_of_call():
    points = Points()
    kinds = {what.split(" ")[0] for what in points.log}
    assert kinds == {
        *[
            "create",
            "put",
            "write",
            "finish",
            "delete",
            "get",
            "size",
            "modified",
            "read",
            "settle",
            "keys",
            "folders",
        ]
    }
    assert points.writes > 150
    assert points.calls > 900


def test_some_calls_of_a_whole_life_go_wrong_and_a_rerun_ends_at_the_undisturbed_store():
    points = Points().everywhere(write_step=37, read_step=149)
    assert set(points.outcomes) == {"got over", "Killed", "UnavailableError"}


@pytest.mark.slow
def test_every_writing_call_of_a_whole_life_goes_wrong_in_every_way(capsys):
    points = Points().everywhere(read_step=4)
    assert points.struck >= 4 * points.writes
    assert points.looks > 100
    with capsys.disabled():
        sys.stdout.write(
            f"\n{points.struck} crash points, {points.looks} states: {dict(points.outcomes)}\n"
        )


@pytest.mark.loops
def test_every_call_of_a_whole_life_goes_wrong_in_every_way(capsys):
    points = Points().everywhere(read_modes=MODES)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{points.struck} crash points, {points.looks} states: {dict(points.outcomes)}\n"
        )
