"""Rows 19 to 29 of the fault table (store/FORMAT.md §10): what races, grows and ends while it is used."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import store
from store import ConflictError, NotFoundError, StoreError, layout
from store.maintenance import collect, drop
from store.opening import open_in
from store.purge import add_tombstone, purge
from store.records import make_record, read_record
from store.testing.faults import Before, Killed, Plan, harvest, overwrite, plant
from store.testing.small import sequences_of, tokens_store, values_of
from store.testing.steps import (
    COLUMNS,
    LENGTHS,
    ROWS,
    STRIDE,
    begun,
    begun_like,
    calls_of,
    ends_at,
    is_right,
    numbers_of,
    put_part,
    refused,
    through,
    whole,
    write_acts,
    write_tokens,
)
from store.testing.writer_process import write


@pytest.fixture(scope="module")
def digest(memory_url):
    return whole(memory_url()).digest()


@pytest.fixture
def made(url):
    return whole(url)


def test_row_19_of_two_recipes_that_create_one_group_one_is_told(url, digest):
    made = begun(url)
    log = calls_of(begun_like(made), lambda opened: write_acts(opened, []))
    assert numbers_of(log, "create groups/acts/group.json") == [1]
    plan = Before("create groups/acts/group.json", lambda: write_acts(made.live()))
    with pytest.raises(ConflictError) as caught:
        write_acts(through(made, plan), recipe="other")
    assert caught.value.kind == "group-recipe"
    assert "recipe" in caught.value.message
    assert made.live().groups["acts"].recipe == {"by": "steps"}
    ends_at(made.view.storage, digest)
    assert layout.group_key("acts") in set(made.view.storage.keys("groups"))
    assert open_in(made.view.storage).digest() == digest


def test_row_20_a_commit_of_tokens_that_lost_is_refused(memory_url, digest):
    """The loser of the tokens is told before a group can be made of its rows; a forged commit is no commit."""
    made = begun(memory_url(), tokens=0)
    first, second = (made.writer("tokens", recipe={"by": "steps"}) for _ in range(2))
    first.put([sequence(0)], position=1)
    second.put([sequence(1)], position=1)
    first.flush()
    with pytest.raises(ConflictError) as caught:
        second.flush()
    assert caught.value.kind == "tokens-raced"
    write_acts(write_tokens(made.live()))
    assert is_right(made.view.storage).digest == digest
    storage, key = made.view.storage, layout.commit_key("acts", 1)
    record = read_record(storage.get(key), "commit", made.id, key)
    body = {k: v for k, v in record.items() if k not in {"v", "kind", "store", "self"}}
    overwrite(storage, key, make_record("commit", made.id, {**body, "tokens": record["self"]})[0])
    refused(made, "tokens-mismatch")
    assert next(one["kind"] for one in store.verify(made.live()).problems) == "tokens-mismatch"


def sequence(number):
    return next(sequences_of(LENGTHS[number : number + 1], first=number))


# -- what grows and what ends while it is used ---------------------------------------------------------------


def test_row_21_tokens_that_grow_while_a_group_follows_are_of_one_piece(url, digest):
    made = begun(url, tokens=1)
    views = []
    for parts in range(1, 4):
        made = write_acts(write_tokens(made, until=parts))
        pin = made.pin()
        views.append((made.live(), pin))
        assert len(views[-1][0].read("acts:h")) == len(made.row_ids())
        assert made.view.sealed("acts") is None
    for parts, (view, pin) in enumerate(views, start=1):
        for seen in (view, store.open(made.url, pin=pin)):
            assert (
                list(seen.view.parts("acts"))
                == list(seen.view.parts("tokens"))
                == list(range(parts))
            )
            assert len(seen.read("token_id")) == len(seen.read("acts:h"))
    follower = write_acts(write_tokens(made))
    assert follower.view.sealed("acts") is not None
    ends_at(made.view.storage, digest)


def test_row_22_a_group_dropped_while_pinned_is_said_and_the_rest_stands(made):
    pin = made.pin()
    early = store.open(made.url, pin=pin)
    rows = early.read("acts:h")
    drop(made, "acts", "a mistake")
    assert np.array_equal(early.read("acts:h"), rows)  # its bytes stay for the grace
    pinned = store.open(made.url, pin=pin)
    with pytest.raises(NotFoundError) as caught:
        pinned.read("acts:h")
    assert caught.value.kind == "purged"
    assert len(pinned.read("token_id")) == 580
    collect(made.live(), grace_seconds=0)
    assert len(store.open(made.url, pin=pin).read("token_id")) == 580
    with pytest.raises(ConflictError):
        write_acts(made.live())


def test_row_23_a_group_that_covers_some_parts_says_so_wherever_it_is_read(url):
    made = write_acts(begun(url), [0, 2])
    coverage = made.coverage["acts"]
    assert (coverage.parts, coverage.tokens_parts, coverage.complete) == (2, 3, False)
    assert not coverage.sealed
    ids = made.row_ids(group="acts")
    assert ids.tolist() == [*range(200), *range(1024, 1154)]
    assert np.array_equal(made.read("acts:h"), values_of(ids, made.column("acts:h")))
    with pytest.raises(NotFoundError):
        made.gather("acts:h", [512])
    seen = np.concatenate([w.row_ids for w in made.windows(["acts:h", "tokens:pos"], seed=1)])
    assert sorted(seen.tolist()) == ids.tolist()
    assert write_acts(made).coverage["acts"].complete


def test_row_25_an_actor_that_outlives_its_driver_does_no_harm(tmp_path, memory_url):
    """The driver is killed; what it started writes on, beside the writers of the next run."""
    driver = (
        "import subprocess, sys;"
        "p = subprocess.Popen([sys.executable, '-m', 'store.testing.writer_process', sys.argv[1]]);"
        "print(p.pid, flush=True); p.wait()"
    )
    path = str(tmp_path / "s")
    command = [sys.executable, "-c", driver, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        actor = int(process.stdout.readline())
        assert process.stdout.readline() == "writing\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
        os.kill(actor, 0)  # it goes on
        digest = write(path).digest()
        assert process.stdout.read() == ""  # until the actor has ended
    report = store.verify(store.open(path))
    assert (report.problems, report.orphans) == ([], [])
    assert report.digest == digest == write(memory_url()).digest()


# -- what came later: assets, purges, seals ------------------------------------------------------------------


def test_row_27_an_asset_without_its_manifest_is_no_asset(made, digest):
    files = {"a": b"1", "b": b"22"}
    log = calls_of(made, lambda opened: opened.put_asset(files))
    (asset,) = made.view.storage.folders("assets")
    made.view.storage.delete(list(made.view.storage.keys("assets")))
    for at in range(1, len(log)):
        with pytest.raises(Killed):
            through(made, Plan(at=at, mode="killed-after")).put_asset(files)
        with pytest.raises(NotFoundError):
            made.asset(asset)
        assert made.put_asset(files) == asset
        assert made.asset(asset) == files
        made.view.storage.delete([f"assets/{asset}/manifest.json"])
        assert store.verify(made.live()).orphans == [f"assets/{asset}"]
        assert collect(made.live(), grace_seconds=0).keys
    ends_at(made.view.storage, digest)


KEPT = [*range(100, 220), *range(512, 642)]
"""Rows that are left of the store below when its first document is removed."""


def two_in_a_part(url):
    """A store whose first part holds two documents."""
    return write_acts(tokens_store(url, (100, 120, 130), part_rows=ROWS, part_stride=STRIDE))


def test_row_28_a_purge_that_died_shows_no_removed_row_and_is_completed_by_the_next(memory_url):
    objects = harvest(two_in_a_part(memory_url()).url)

    def marked():
        opened = store.open(plant(memory_url(), objects))
        add_tombstone(opened, [0], "asked to")
        return opened.live()

    log = calls_of(marked(), lambda opened: purge(opened, "asked to"))
    seen = set()
    for at in range(1, len(log) + 1):
        made = marked()
        with pytest.raises(Killed):
            purge(through(made, Plan(at=at, mode="killed-before")), "asked to")
        assert made.live().row_ids().tolist() == KEPT
        seen.add(read_or_kind(made))
        purge(made.live(), "asked to")
        collect(made.live(), grace_seconds=0)
        report = store.verify(made.live())
        assert (report.problems, report.orphans) == ([], [])
        assert read_or_kind(made) == "right"
    assert seen == {"right", "purge-unfinished"}


def read_or_kind(made):
    """``right``, or the kind of the error."""
    try:
        values = made.live().read("acts:h")
    except StoreError as error:
        return error.kind
    assert np.array_equal(values, values_of(KEPT, made.column("acts:h")))
    return "right"


def test_row_29_a_writer_that_began_before_a_purge_is_refused_until_the_next_purge(url):
    made = two_in_a_part(url)
    writer = made.writer("late", columns=COLUMNS, recipe={"by": "steps"})
    add_tombstone(made, [0], "asked to")
    purge(made.live(), "asked to")
    put_part(writer, made, 0)  # with the rows that were removed: it does not know
    put_part(writer, made, 1)
    with pytest.raises(StoreError) as caught:
        writer.close()
    assert "actlake purge" in caught.value.message
    assert refused(made, "purge-unfinished", column="late:h")
    assert read_or_kind(made) == "right"
    purge(made.live(), "again")
    late = made.live()
    assert np.array_equal(late.read("late:h"), values_of(KEPT, late.column("late:h")))
    collect(late, grace_seconds=0)
    report = store.verify(made.live())
    assert (report.problems, report.orphans) == ([], [])
