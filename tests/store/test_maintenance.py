"""Dropping, retiring, collecting: what is gone is gone for every reader, what is read is never deleted."""

import numpy as np
import pytest

import store
from store import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    StoreError,
    UnavailableError,
)
from store.groups import seal
from store.layout import commit_key, dropped_key, retired_key
from store.maintenance import GRACE_SECONDS, MOST_SKEW_SECONDS, collect, doctor, drop, retire
from store.testing.faults import FaultyStorage, Killed, Plan
from store.testing.small import fill, small_store, tokens_store, values_of
from store.urls import open_storage

COLUMNS = {"h": "bfloat16[16]", "y": "int32"}
LATER = 2 * GRACE_SECONDS


@pytest.fixture
def made(url):
    """A store of its own for each test, on every storage: tokens and two groups."""
    opened = fill(tokens_store(url), "acts", COLUMNS)
    return fill(opened, "more", {"f": "float32[16]"}, seed=1)


def aged(opened, seconds):
    """Let everything in a store be as old."""
    storage = opened.view.storage
    modified = storage.modified
    storage.modified = lambda key: modified(key) - (0 if "probe-" in key else seconds)
    return opened


def dead_writer(opened, at):
    """Leave what a writer leaves that is killed at its n-th call."""
    numbers = {"part_rows": opened.part_rows, "part_stride": opened.part_stride}
    storage = FaultyStorage(open_storage(opened.url), Plan(at=at, mode="killed-after"))
    dying = store.Store(storage, {"store": opened.id, **numbers}, None)
    with pytest.raises(Killed):
        fill(dying, "dying", COLUMNS)


def keys_of(opened):
    return sorted(opened.view.storage.keys(""))


def test_what_a_dead_writer_left_goes_when_it_is_old_and_nothing_else(made):
    before, digest = keys_of(made), made.digest()
    dead_writer(made, at=6)
    left = store.verify(made.refresh()).orphans
    assert left
    assert collect(made.refresh()).keys == []  # it may be at work
    opened = aged(made.refresh(), LATER)
    plan = collect(opened, dry_run=True)
    assert plan.keys
    assert collect(opened).keys == plan.keys
    assert plan.bytes > 0
    assert collect(opened).keys == []
    assert set(keys_of(made)) - set(before) == {"groups/dying/group.json"}
    report = store.verify(store.open(made.url))
    assert (report.ok, report.orphans) == (True, [])
    assert store.open(made.url).digest(["tokens", "acts", "more"]) == digest


def test_an_attempt_goes_whole_or_not_at_all(made):
    """Its writer is at work while the youngest of its objects is young, however old the first are."""
    storage, at = made.view.storage, 4
    objects = []
    while len(objects) < 2:  # until its first objects are whole
        at += 1
        dead_writer(made, at=at)
        (attempt, *_) = [k for k in store.verify(made.refresh()).orphans if "/parts/" in k] or [""]
        objects = sorted(storage.keys(attempt)) if attempt else []
    modified = storage.modified
    opened = made.refresh()
    young = objects[-1]
    storage.modified = lambda key: modified(key) - (0 if key == young or "probe-" in key else LATER)
    assert not set(collect(opened).keys) & set(objects)
    storage.modified = modified


def test_a_dropped_group_is_gone_for_readers_at_once_and_from_the_disk_after_the_grace(made):
    early = store.open(made.url)
    early.read("acts:h")
    digest = made.digest(["tokens", "more"])
    drop(made, "acts", "the wrong layer")
    opened = made.refresh()
    assert list(opened.groups) == ["tokens", "more"]
    with pytest.raises(NotFoundError, match="group-missing"):
        opened.read("acts:h")
    with pytest.raises(ConflictError, match="group-dropped"):
        opened.writer("acts", columns=COLUMNS, recipe={})
    with pytest.raises(NotFoundError, match="group-missing"):
        drop(opened, "acts", "again")
    assert early.read("acts:h").shape  # whoever opened it before reads on
    assert collect(opened).keys == []
    gone = collect(aged(made.refresh(), LATER))
    assert {key.split("/")[1] for key in gone.keys} == {"acts"}
    left = [key for key in keys_of(made) if key.startswith("groups/acts/")]
    assert left == [dropped_key("acts"), "groups/acts/group.json"]
    report = store.verify(store.open(made.url))
    assert report.ok
    assert store.open(made.url).digest() == digest


def test_the_grace_of_a_dropped_group_begins_when_it_is_dropped(made):
    opened = aged(made, LATER)
    drop(opened, "acts", "why not")
    storage = opened.view.storage
    modified = storage.modified
    storage.modified = lambda key: modified(key) + (LATER if key == dropped_key("acts") else 0)
    assert collect(opened.refresh()).keys == []


def test_a_retired_part_is_gone_from_every_group_and_row_ids_stay(made):
    parts = list(made.view.parts("tokens"))
    ids, pin = made.row_ids(), made.pin()
    assert retire(made, [parts[0]], "old") == [parts[0]]
    assert retire(made, [parts[0]], "old") == []
    opened = made.refresh()
    assert list(opened.view.parts("acts")) == list(opened.view.parts("tokens")) == parts[1:]
    kept = ids[ids // made.part_stride != parts[0]]
    assert np.array_equal(opened.row_ids(), kept)
    assert np.array_equal(opened.read("acts:h"), values_of(kept, opened.column("acts:h")))
    assert np.array_equal(opened.gather("acts:h", kept[:5]), opened.read("acts:h", slice(0, 5)))
    with pytest.raises(NotFoundError, match="row-missing"):
        opened.gather("acts:h", ids[:1])
    with pytest.raises(NotFoundError, match="purged"):
        store.open(made.url, pin=pin).read("acts:h")
    assert store.verify(opened).ok
    gone = collect(aged(made.refresh(), LATER)).keys
    assert gone
    assert all(f"/parts/{parts[0]:08d}/" in key for key in gone)
    assert store.verify(store.open(made.url)).ok


def test_a_part_may_be_retired_in_one_group_alone(made):
    parts = list(made.view.parts("tokens"))
    retire(made, parts[1:2], "damaged", group="acts")
    opened = made.refresh()
    assert list(opened.view.parts("acts")) == [p for p in parts if p != parts[1]]
    assert list(opened.view.parts("more")) == parts
    gone = collect(aged(made.refresh(), LATER)).keys
    assert gone
    assert all(key.startswith(f"groups/acts/parts/{parts[1]:08d}/") for key in gone)
    assert store.verify(store.open(made.url)).ok


def test_a_ring_store_grows_at_one_end_and_is_retired_at_the_other(url):
    opened = store.create(url, part_rows=256)
    held = []
    for number in range(6):
        writer = opened.refresh().writer("tokens", recipe={})
        writer.put([store.TokenSequence(token_ids=np.arange(100) + number)])
        writer.flush()
        fill(opened.refresh(), "acts", COLUMNS)
        held.append(number)
        if len(held) > 2:
            retire(opened, [held.pop(0)], "older than two parts")
            collect(opened.refresh(), grace_seconds=0)
        now = opened.refresh()
        assert list(now.view.parts("acts")) == held
        assert now.read("token_id")[0] == held[0]
        assert store.verify(now).ok
    opened.refresh().writer("tokens", recipe={}).seal()
    assert opened.refresh().seal("acts")
    assert store.verify(opened.refresh()).ok


def test_a_group_is_sealed_though_parts_were_retired_meanwhile(url):
    opened = tokens_store(url)
    parts = list(opened.view.parts("tokens"))
    retire(opened, parts[:1], "not wanted")
    opened = fill(opened.refresh(), "acts", COLUMNS)
    assert opened.coverage["acts"].sealed
    assert store.verify(opened).ok


def test_what_cannot_be_ended_is_refused_and_nothing_changes(made):
    before = keys_of(made)
    with pytest.raises(InvalidInputError, match="drop-tokens"):
        drop(made, "tokens", "x")
    with pytest.raises(NotFoundError, match="group-missing"):
        drop(made, "nothing", "x")
    with pytest.raises(InvalidInputError, match="reason-missing"):
        drop(made, "acts", " ")
    with pytest.raises(NotFoundError, match=r"part-missing.*parts 0 to"):
        retire(made, [0, 77], "x")
    with pytest.raises(InvalidInputError, match="reason-missing"):
        retire(made, [0], "")
    assert keys_of(made) == before


def test_ages_are_not_believed_where_clocks_differ(made):
    dead_writer(made, at=6)
    before = keys_of(made)
    import time

    for apart in (MOST_SKEW_SECONDS + 60, -MOST_SKEW_SECONDS - 60):
        with pytest.raises(StoreError, match=r"clock-skew.*Set the clocks"):
            collect(made.refresh(), grace_seconds=0, clock=lambda a=apart: time.time() + a)
    assert keys_of(made) == before


def test_a_trial_run_writes_nothing(made):
    """Not even what asks the storage for its time: the store may be read-only."""
    dead_writer(made, at=6)
    numbers = {"part_rows": made.part_rows, "part_stride": made.part_stride}
    plan = Plan()
    watched = store.Store(
        FaultyStorage(open_storage(made.url), plan), {"store": made.id, **numbers}, None
    )
    assert collect(watched, grace_seconds=0, dry_run=True).keys
    assert plan.log == []


def test_a_record_that_cannot_be_read_keeps_its_attempts(made):
    """Nothing is sure there: one of them may be what the record named."""
    storage = made.view.storage
    part = next(iter(made.view.parts("acts")))
    key = f"groups/acts/commits/000000/{part:08d}.0.json"
    from store.testing.faults import overwrite

    overwrite(storage, key, storage.get(key)[:-3])
    assert collect(aged(made.refresh(), LATER)).keys == []


def test_a_small_store_of_every_kind_has_nothing_to_collect(url):
    opened = small_store(url)
    opened.pin()
    opened.put_asset({"a": b"1"})
    assert collect(opened, grace_seconds=0).keys == []


def test_the_doctor_finds_a_sound_storage_sound_and_leaves_nothing(url):
    found = doctor(url)
    assert [one for one in found if not one["ok"]] == []
    assert list(open_storage(url).keys("")) == []


def overwriting(inner):
    """Return a ``create`` that overwrites, though it says that it did not."""

    def create(key, data):
        new = inner.create(key, data)
        if not new:
            inner.delete([key])
            inner.create(key, data)
        return new

    return create


def refusing(key, ranges):
    """Read nothing, and say why."""
    raise UnavailableError("it is too busy", kind="storage-busy", path=key)


def early(inner):
    """Return a ``stream`` whose object is seen while it is written."""

    def stream(key):
        inner.put(key, b"half")
        return inner.stream(key)

    return stream


ILLS = {
    "created-never": ("created once", "create", lambda inner: lambda key, data: False),
    "created-twice": (
        "created once",
        "create",
        lambda inner: lambda key, data: inner.put(f"{key}{len(data)}{data[0]}", data) and True,
    ),
    "overwritten": ("created once", "create", overwriting),
    "not-listed": ("listed at once", "keys", lambda inner: lambda prefix: iter(())),
    "not-read": ("read by ranges", "read_into", lambda inner: lambda key, ranges: None),
    "another-size": ("written in pieces", "size", lambda inner: lambda key: inner.size(key) + 1),
    "half-seen": ("written in pieces", "stream", early),
    "not-deleted": ("deleted is gone", "delete", lambda inner: lambda keys: None),
    "refused": ("read by ranges", "read_into", lambda inner: refusing),
    "clock": ("clock", "modified", lambda inner: lambda key: inner.modified(key) - 4000),
}


@pytest.mark.parametrize(("check", "name", "make"), ILLS.values(), ids=ILLS)
def test_the_doctor_names_what_is_wrong(memory_url, monkeypatch, check, name, make):
    inner = open_storage(memory_url())

    class Ill:
        def __getattr__(self, attribute):
            return make(inner) if attribute == name else getattr(inner, attribute)

    monkeypatch.setattr("store.maintenance.open_storage", lambda _: Ill())
    assert check in [one["check"] for one in doctor("memory://x") if not one["ok"]]


def test_retired_records_lie_where_the_format_says():
    assert retired_key("acts", 7) == "groups/acts/retired/00000007.json"


def test_a_part_that_a_late_listing_does_not_show_yet_can_be_retired(made, monkeypatch):
    storage = made.view.storage
    keys = type(storage).keys
    late = commit_key("acts", 0)
    monkeypatch.setattr(
        type(storage), "keys", lambda self, prefix: (k for k in keys(self, prefix) if k != late)
    )
    assert retire(made, [0], "old", group="acts") == [0]
    with pytest.raises(NotFoundError, match="part 99"):
        retire(made, [99], "old", group="acts")


def test_a_folder_of_another_program_among_the_parts_is_left_alone(made):
    storage = made.view.storage
    storage.put("groups/acts/parts/notes/x/y", b"mine")
    assert collect(made.refresh(), grace_seconds=0).keys == []
    assert storage.get("groups/acts/parts/notes/x/y") == b"mine"


def test_what_was_collected_is_told_to_programs(made):
    dead_writer(made, at=6)
    told = collect(made.refresh(), grace_seconds=0).to_json()
    assert told["objects"] >= 1
    assert told == {"objects": told["objects"], "bytes": told["bytes"], "young": 0}


def test_two_seals_that_differ_are_a_conflict(made):
    sealed = made.view.sealed("acts")
    with pytest.raises(ConflictError, match="sealed-differs"):
        seal(made.view.storage, made.id, "acts", sealed["parts"] + 1, sealed["rows"])
    assert made.refresh().view.sealed("acts") == sealed
