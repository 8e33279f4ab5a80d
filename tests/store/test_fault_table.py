"""Rows 1 to 13 of the fault table (store/FORMAT.md §10): each event really happens, and what is left is looked at.

What dies, races, is late or loses power. See also ``test_fault_table_damage.py`` and ``test_fault_table_growth.py``.
"""

from pathlib import Path

import numpy as np
import pytest

import store
from store import NotFoundError, StoreError, UnavailableError
from store.attempts import Attempt
from store.commits import exists
from store.maintenance import collect, retire
from store.pins import load_pin
from store.posix import PosixStorage
from store.testing.faults import Before, FaultyStorage, Killed, Plan
from store.testing.life import Life, check_told, check_whole
from store.testing.power import EXTREMES, Disk, Process
from store.testing.small import values_of
from store.testing.steps import (
    ACTS_OBJECTS,
    COLUMNS,
    begun,
    begun_like,
    calls_of,
    ends_at,
    is_right,
    numbers_of,
    put_part,
    seen_through,
    through,
    whole,
    write_acts,
    write_tokens,
)

RECORD = "create groups/acts/commits/000000/00000001.0.json"
PART = "groups/acts/parts/00000001/"


@pytest.fixture(scope="module")
def digest(memory_url):
    return whole(memory_url()).digest()


@pytest.fixture
def made(url):
    return begun(url)


def dies(made, at, mode, step=write_acts):
    """Run a step that is killed at its n-th call; check that only the part at work was lost."""
    with pytest.raises(Killed):
        step(through(made, Plan(at=at, mode=mode)))
    is_right(made.view.storage)
    return made.live()


def left_of(made, part=1, group="acts"):
    """How many objects a part's attempts left."""
    return len(list(made.view.storage.keys(f"groups/{group}/parts/{part:08d}")))


def finished(made, digest):
    """Run again what was interrupted: the undisturbed store, and nothing beside it."""
    write_acts(write_tokens(made.live()))
    ends_at(made.view.storage, digest)


# -- a process dies ------------------------------------------------------------------------------------------


def test_row_01_a_writer_killed_inside_an_object_leaves_nothing_that_is_read(made, digest):
    log = calls_of(begun_like(made), write_acts)
    for at in numbers_of(log, f"write {PART}"):
        for mode in ("killed-before", "killed-after"):
            seen = dies(made, at, mode)
            assert list(seen.view.parts("acts")) == [0]
            assert not any(key.endswith("c/0/0") for key in made.view.storage.keys(PART))
            with pytest.raises(NotFoundError):
                seen.gather("acts:h", [512])
            clean(made)
    finished(made, digest)


def clean(made):
    """Take back what a killed writer made, so that the next one starts where it did."""
    storage = made.view.storage
    storage.delete([key for key in storage.keys("groups/acts") if not key.endswith("group.json")])


def test_row_02_a_writer_killed_between_objects_leaves_an_attempt_that_nobody_names(made, digest):
    log = calls_of(begun_like(made), write_acts)
    ends = [at for at in numbers_of(log, "") if PART in log[at - 1] and "write" not in log[at - 1]]
    assert len(ends) == ACTS_OBJECTS
    for count, at in enumerate(ends[:-1], start=1):
        seen = dies(made, at, "killed-after")
        assert left_of(made) >= count
        assert list(seen.view.parts("acts")) == [0]
        assert store.verify(seen).orphans
        clean(made)
    finished(made, digest)


def test_row_03_a_writer_killed_before_the_record_lost_one_part_and_no_more(made, digest):
    (at,) = numbers_of(calls_of(begun_like(made), write_acts), RECORD)
    seen = dies(made, at, "killed-before")
    assert left_of(made) == ACTS_OBJECTS
    assert list(seen.view.parts("acts")) == [0]
    (orphan,) = store.verify(seen).orphans
    assert collect(seen).keys == []  # it may be at work
    finished(made, digest)
    assert not list(made.view.storage.keys(orphan))


# -- an answer is lost or late -------------------------------------------------------------------------------


def test_row_04_a_commit_whose_answer_was_lost_is_found_again(made, digest):
    (at,) = numbers_of(calls_of(begun_like(made), write_acts), RECORD)
    write_acts(through(made, Plan(at=at, mode="answer-lost")))  # nobody is told of it
    assert store.verify(made.live()).orphans == []
    finished(made, digest)


class Late(FaultyStorage):
    """A storage whose answer to one create is a time-out; the record lands when ``land`` is called, or never."""

    def __init__(self, inner, key):
        super().__init__(inner, Plan())
        self.key, self.data = key, None

    def create(self, key, data):
        if key == self.key and self.data is None:
            self.data = data
            msg = f"create {key} timed out on purpose. Try again."
            raise UnavailableError(msg)
        return super().create(key, data)

    def land(self):
        return self.inner.create(self.key, self.data)


def timed_out(made):
    """A writer whose record is on its way: its files must stay, for the record may still land."""
    late = Late(made.view.storage, RECORD.removeprefix("create "))
    with pytest.raises(UnavailableError):
        write_acts(seen_through(made, lambda _: late))
    assert list(made.live().view.parts("acts")) == [0]
    assert left_of(made) == ACTS_OBJECTS
    return late


def test_row_05_a_commit_that_timed_out_is_made_again_whenever_the_first_lands(made, digest):
    never = timed_out(made)
    assert not exists(made.view.storage, never.key)
    clean(made)
    before = timed_out(made)
    assert before.land()
    assert list(is_right(made.view.storage) and made.live().view.parts("acts")) == [0, 1]
    finished(made, digest)


def test_row_05_a_record_that_lands_behind_another_is_nothing(made, digest):
    late = timed_out(made)
    write_acts(made.live())
    assert not late.land()
    finished(made, digest)


# -- several at once -----------------------------------------------------------------------------------------


def test_row_06_of_two_attempts_the_first_record_wins_and_the_other_leaves_nothing(made, digest):
    plan = Before(RECORD, lambda: write_acts(made.live()))
    write_acts(through(made, plan))
    assert plan.done
    report = is_right(made.view.storage)
    assert (report.orphans, report.digest) == ([], digest)


def test_row_07_a_writer_that_wakes_behind_gc_is_told_and_names_nothing(made, digest):
    """Its files were taken for those of a dead one: a record that named them would be damage."""
    write_acts(made, [0])
    finish_shards = Attempt._finish_shards

    def finish_and_sleep(self):
        finish_shards(self)
        assert len(collect(made.live(), grace_seconds=0).keys) == ACTS_OBJECTS

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attempt, "_finish_shards", finish_and_sleep)
        with pytest.raises(StoreError) as caught:
            write_acts(made.live(), [1])
    assert caught.value.kind == "attempt-collected"
    assert "grace" in caught.value.message
    assert list(made.live().view.parts("acts")) == [0]
    finished(made, digest)


def test_row_07_a_writer_that_wakes_behind_another_has_lost(made, digest):
    slow = made.writer("acts", columns=COLUMNS, recipe={"by": "steps"})
    finished(made, digest)
    for part in range(3):
        put_part(slow, made, part)
    slow.close()
    assert len({commit.attempt for commit in slow.committed}) == 3
    ends_at(made.view.storage, digest)


def test_row_08_readers_do_not_see_a_loser_delete_its_files(made):
    reader = store.open(made.url)
    seen = []

    def look():
        for one in (reader, made.live()):
            ids = one.row_ids(group="acts")
            assert np.array_equal(one.read("acts:h"), values_of(ids, one.column("acts:h")))
            seen.append(len(ids))

    reader = write_acts(made, [0])
    look()
    plan = Before(RECORD, lambda: write_acts(made.live(), [1]))
    opened = through(made, plan)
    plan.run = looking(plan.run, look)
    write_acts(opened, [1])
    assert set(seen) == {200, 450}
    assert len(seen) == 2 * (1 + 2 * ACTS_OBJECTS)


def looking(run, look):
    """Look before every object that is deleted, and behind it."""

    def run_and_look(what, call, *arguments):
        if not what.startswith("delete"):
            return run(what, call, *arguments)
        look()
        return run(what, call, *arguments), look()

    return run_and_look


def test_row_09_two_who_pin_at_once_make_one_pin(made, monkeypatch):
    monkeypatch.setattr("store.pins._INLINE_ENTRIES", 2)  # so that it has segments
    made = write_acts(made)
    pins = []
    plan = Before("create pins/", lambda: pins.append(made.live().pin()))
    pins.append(through(made, plan).pin())
    assert len(set(pins)) == 1
    assert len(list(made.view.storage.keys("pins"))) == 1
    assert np.array_equal(store.open(made.url, pin=pins[0]).read("acts:h"), made.read("acts:h"))


def test_row_10_a_segment_without_its_pin_is_no_pin_and_serves_the_next(made, monkeypatch):
    monkeypatch.setattr("store.pins._INLINE_ENTRIES", 2)
    made = write_acts(made)
    log = calls_of(made, lambda opened: opened.pin())
    pin = made.pin()
    made.view.storage.delete([f"pins/{pin}.json", *made.view.storage.keys("segments")])
    for at in numbers_of(log, "create segments/"):
        dies(made, at, "killed-after", step=lambda opened: opened.pin())
        assert not list(made.view.storage.keys("pins"))
        assert not collect(made.live(), grace_seconds=0).keys
    assert made.live().pin() == pin
    assert len(load_pin(made.view.storage, made.id, pin).commits) == 6


# -- gc, listings, power -------------------------------------------------------------------------------------


def test_row_11_gc_deletes_nothing_a_pin_sees_and_what_was_retired_is_said(made):
    made = write_acts(made)
    pin = made.pin()
    early = store.open(made.url, pin=pin)
    rows = early.read("acts:h")
    assert collect(made, grace_seconds=0).keys == []
    assert np.array_equal(store.open(made.url, pin=pin).read("acts:h"), rows)
    retire(made, [1], "old", group="acts")
    assert np.array_equal(early.read("acts:h"), rows)  # within the grace it goes on
    collect(made.live(), grace_seconds=0)
    with pytest.raises(NotFoundError) as caught:
        store.open(made.url, pin=pin).read("acts:h")
    assert caught.value.kind == "purged"
    assert pin in caught.value.message
    assert np.array_equal(store.open(made.url, pin=pin).gather("acts:h", range(200)), rows[:200])


class OldListing(FaultyStorage):
    """A storage that lists what there was when it was made."""

    def __init__(self, inner):
        super().__init__(inner, Plan())
        self.old = sorted(inner.keys(""))

    def keys(self, prefix):
        return iter([key for key in self.old if key.startswith(f"{prefix.rstrip('/')}/")])

    def folders(self, prefix):
        base = f"{prefix.rstrip('/')}/"
        inside = [key.removeprefix(base) for key in self.old if key.startswith(base)]
        return sorted({name.partition("/")[0] for name in inside if "/" in name})


def test_row_12_an_old_listing_is_late_and_never_wrong(made, digest):
    olds = []
    for part in range(3):
        olds.append(OldListing(made.view.storage))
        made = write_acts(made, [part])
    for parts, old in enumerate(olds):
        seen = seen_through(made, lambda _, old=old: old)
        if "acts" in seen.groups and seen.view.sealed("acts") is None:
            ids = seen.row_ids(group="acts")
            assert sorted(set(ids // 512)) == list(range(parts))
            assert np.array_equal(seen.read("acts:h"), values_of(ids, seen.column("acts:h")))
        elif "acts" in seen.groups:  # a seal counts parts, so what is listed late is looked for
            assert len(seen.read("acts:h")) == 580
        if "acts" in seen.groups:
            write_acts(seen)  # writes again what it does not see, and loses
        else:  # not even what it declared itself: that is said, and it may come back
            with pytest.raises(NotFoundError) as caught:
                write_acts(seen)
            assert caught.value.kind == "group-missing"
    ends_at(made.view.storage, digest)


@pytest.mark.parametrize("luck", EXTREMES.values(), ids=EXTREMES)
def test_row_13_power_that_fails_around_a_commit_leaves_the_part_whole_or_invisible(luck):
    """The disk keeps what was synced, and of the rest what luck decides; see test_power.py for all calls."""
    root = Path("/disk/store")

    def alive(disk, plan=None):
        return Life(PosixStorage(root, Process(disk, plan)), lambda: disk.now)

    undisturbed = alive(Disk())
    wanted = undisturbed.run().digest()
    log = undisturbed.storage.system.plan.log
    for at in numbers_of(log, "link 0000000", ".0.json"):
        for mode in ("killed-before", "killed-after"):
            disk = Disk()
            life = alive(disk, Plan(at=at, mode=mode))
            with pytest.raises(Killed):
                life.run()
            left = disk.after_power_cut(luck)
            check_told(PosixStorage(root, Process(left)), life.told)
            check_whole(PosixStorage(root, Process(left)))
            assert alive(left).run().digest() == wanted
