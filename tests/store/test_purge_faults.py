"""Purges that are killed, refused, raced: the next one completes them, nobody reads a wrong row meanwhile."""

import contextlib
import itertools

import numpy as np
import pytest

import store
from store.maintenance import collect
from store.purge import add_tombstone, purge
from store.testing.faults import FaultyStorage, Killed, Plan, harvest, plant
from store.testing.removed import (
    check_holds_nothing_of,
    packed_store,
)
from store.testing.small import values_of
from store.urls import open_storage


def read_now(made):
    """What a reader gets: bytes, or the kind of the error."""
    try:
        return made.live().read("acts:h").tobytes()
    except store.StoreError as error:
        return error.kind


@pytest.mark.parametrize("mode", ["killed-before", "killed-after", "refused", "answer-lost"])
def test_a_purge_killed_at_any_call_is_completed_by_the_next(mode, memory_url):
    objects = harvest(packed_store(memory_url()).url)
    undisturbed = store.open(plant(memory_url(), objects))
    add_tombstone(undisturbed, [0], "asked to")
    purge(undisturbed, "asked to")
    wanted, ids = undisturbed.live().digest(), undisturbed.live().row_ids()
    for at in itertools.count(1):
        made = store.open(plant(memory_url(), objects))
        add_tombstone(made, [0], "asked to")
        plan = Plan(at=at, mode=mode)
        storage = FaultyStorage(open_storage(made.url), plan)
        numbers = {"part_rows": made.part_rows, "part_stride": made.part_stride}
        dying = store.Store(storage, {"store": made.id, **numbers}, None)
        try:
            purge(dying, "asked to")
            struck = False
        except (Killed, store.UnavailableError):
            struck = True
        assert read_now(made) in {
            "purge-unfinished",
            values_of(ids, made.column("acts:h")).tobytes(),
        }
        purge(made, "asked to")
        assert made.live().digest() == wanted
        collect(made, grace_seconds=0)
        report = store.verify(made.live())
        assert (report.problems, report.orphans) == ([], [])
        check_holds_nothing_of(made.live(), {0})
        if plan.calls < at:
            break
    assert at > 10
    assert not struck


def test_a_part_that_goes_whole_is_gone_though_the_purge_was_killed(memory_url):
    objects = harvest(packed_store(memory_url()).url)
    for at in itertools.count(1):
        made = store.open(plant(memory_url(), objects))
        add_tombstone(made, [2], "asked to")
        plan = Plan(at=at, mode="killed-before")
        numbers = {"part_rows": made.part_rows, "part_stride": made.part_stride}
        storage = FaultyStorage(open_storage(made.url), plan)
        with contextlib.suppress(Killed):
            purge(store.Store(storage, {"store": made.id, **numbers}, None), "asked to")
        purge(made, "asked to")
        assert not [key for key in made.view.storage.keys("groups") if "/parts/00000001" in key]
        assert made.live().row_ids().tolist() == list(range(200))
        assert store.verify(made.live()).ok
        if plan.calls < at:
            break
    assert at > 2


def test_of_two_purges_at_once_each_part_is_written_once(url):
    made = packed_store(url)
    add_tombstone(made, [0], "asked to")
    other = made.live()
    purge(made, "one")
    assert purge(other, "two") == []
    assert store.verify(made.live()).ok


def test_gc_takes_what_a_killed_purge_did_not_delete(memory_url):
    made = packed_store(memory_url())
    add_tombstone(made, [0], "asked to")
    old = made.view.commit("acts", 0).prefix
    storage = made.view.storage
    kept = {key: storage.get(key) for key in storage.keys(old)}
    purge(made, "asked to")
    for key, data in kept.items():
        storage.put(key, data)
    assert store.verify(made.live()).orphans == [old.rstrip("/")]
    assert sorted(collect(made, grace_seconds=0).keys) == sorted(kept)


def test_a_writer_that_comes_in_behind_a_purge_is_said_and_put_right(url):
    made = packed_store(url)
    writer = made.writer("late", columns={"h": "float32[16]"}, recipe={})
    ids = made.row_ids()
    add_tombstone(made, [0], "asked to")
    purge(made, "asked to")
    writer.put(ids, {"h": values_of(ids, writer.group.columns["h"])})
    with pytest.raises(store.StoreError, match="actlake purge"):
        writer.close()
    after = made.live()
    with pytest.raises(store.StoreError) as caught:
        after.read("late:h")
    assert caught.value.kind == "purge-unfinished"
    assert "actlake purge" in caught.value.message
    assert not store.verify(after).ok
    assert [one.groups for one in purge(after, "again")] == [("late",)]
    kept = after.row_ids()
    assert np.array_equal(made.live().read("late:h"), values_of(kept, made.live().column("late:h")))
    assert store.verify(made.live()).ok
