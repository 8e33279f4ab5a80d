"""Rows 14 to 18, 24, 26 and 30 of the fault table (store/FORMAT.md §10): damaged and foreign bytes, full disks, clocks."""

import errno
import re
from pathlib import Path

import pytest

import store
from store import ConflictError, CorruptError, StoreError, layout
from store.maintenance import MOST_SKEW_SECONDS, collect, drop
from store.testing.faults import Killed, Plan, flip, harvest, overwrite, plant
from store.testing.steps import (
    COLUMNS,
    begun,
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

FORMAT = Path(store.__file__).with_name("FORMAT.md")


@pytest.fixture(scope="module")
def digest(memory_url):
    return whole(memory_url()).digest()


@pytest.fixture(scope="module")
def objects(memory_url):
    """Key → bytes of the whole store."""
    return harvest(whole(memory_url()).url)


@pytest.fixture
def made(url, objects):
    return store.open(plant(url, objects))


def shard_of(made, part=1):
    return made.view.commit("acts", part).prefix + "h/c/0/0"


# -- bytes that are not what was written ---------------------------------------------------------------------


def test_row_14_rot_and_foreign_bytes_are_errors_that_name_the_place(made, digest, memory_url):
    storage, key = made.view.storage, shard_of(made)
    data = storage.get(key)
    for at, kind in {5000: "chunk-damaged", 20: "foreign-shard", len(data) - 2: None}.items():
        overwrite(storage, key, flip(data, at))
        error = refused(made, *([kind] if kind else ["index-damaged", "object-damaged"]))
        assert (error.where["group"], error.where["part"]) == ("acts", 1)
        assert store.verify(made.live()).problems
    other = whole(memory_url())
    overwrite(storage, key, other.view.storage.get(shard_of(other)))
    refused(made, "foreign-shard")
    overwrite(storage, key, data)
    ends_at(storage, digest)


def test_row_15_another_recipe_is_refused_before_anything_is_written(made, digest):
    before = set(made.view.storage.keys(""))
    for step in (
        lambda: write_acts(made, recipe="other"),
        lambda: write_acts(made, columns={"h": "float32[16]", "y": "int32"}),
        lambda: write_tokens(made, recipe="other"),
        lambda: store.create(made.url, part_rows=512, part_stride=512),
    ):
        with pytest.raises(ConflictError) as caught:
            step()
        assert "Nothing was" in caught.value.message
    assert set(made.view.storage.keys("")) == before
    ends_at(made.view.storage, digest)


def test_row_16_a_disk_that_fills_up_stops_the_job_and_a_rerun_completes_it(
    tmp_path, digest, monkeypatch
):
    """At every write that meets no room; test_storage.py fills a real small disk."""
    made = begun(tmp_path / "s")
    write = store.posix.System.write
    room = 0
    full = True
    while full:
        full = False
        left = [room]

        def limited(self, fd, data, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(self, fd, data)

        with monkeypatch.context() as patch:
            patch.setattr("store.posix.System.write", limited)
            try:
                write_acts(made.live())
            except StoreError as error:
                full = True
                assert error.kind == "disk-full"  # noqa: PT017 - with room enough there is none
        report = is_right(made.view.storage)
        assert report.orphans == []
        room += 1
    assert room > 5
    ends_at(made.view.storage, digest)


def test_row_17_a_record_that_was_cut_is_damage_and_nobody_writes_over_it(made, digest):
    storage, key = made.view.storage, layout.commit_key("acts", 1)
    data = storage.get(key)
    for size in {0, 1, len(data) // 2, len(data) - 1}:
        overwrite(storage, key, data[:size])
        refused(made, "record-damaged")
        with pytest.raises(CorruptError):
            write_again(made, 1)
        assert storage.get(key) == data[:size]
        assert not [k for k in collect(made.live(), grace_seconds=0).keys if "/acts/" in k]
    overwrite(storage, key, data)
    ends_at(storage, digest)


def write_again(made, part):
    """Write a part as whoever does not see its record yet."""
    opened = made.live()
    writer = opened.writer("acts", columns=COLUMNS, recipe={"by": "steps"})
    writer._done.discard(part)
    put_part(writer, opened, part)


def test_row_18_gc_refuses_where_clocks_are_hours_apart_and_goes_by_the_storages_own(made):
    write_half(made)
    storage = made.view.storage
    left = set(storage.keys("groups/more/parts"))
    now = storage.modified("store.json")
    for skew in (-3 * MOST_SKEW_SECONDS, 3 * MOST_SKEW_SECONDS):
        with pytest.raises(StoreError) as caught:
            collect(made.live(), grace_seconds=0, clock=lambda skew=skew: now + skew)
        assert caught.value.kind == "clock-skew"
        assert "Nothing was deleted" in caught.value.message
    for skew in (-MOST_SKEW_SECONDS / 2, MOST_SKEW_SECONDS / 2):
        # A minute old by the storage's clock, whatever ours says.
        found = collect(made.live(), grace_seconds=60, clock=lambda skew=skew: now + skew)
        assert (found.keys, found.young) == ([], len(left))
    assert set(storage.keys("groups/more/parts")) == left
    assert sorted(collect(made.live(), grace_seconds=0).keys) == sorted(left)


def write_half(made):
    """Leave what a dead writer of another group leaves."""
    log = calls_of(made, lambda opened: write_acts(opened, [0], group="count"))
    drop(made.live(), "count", "it was to count")
    collect(made.live(), grace_seconds=0)
    (at,) = numbers_of(log, "create groups/count/commits")
    with pytest.raises(Killed):
        write_acts(through(made, Plan(at=at)), group="more")


def test_row_24_a_stale_shard_copied_into_place_is_refused(made, digest):
    """Of another part, another attempt or another store: of equal size, its checksums right."""
    storage, key = made.view.storage, shard_of(made)
    mine = storage.get(key)
    lost = {}

    class Keep(Plan):
        def run(self, what, call, *arguments):
            if what.startswith("delete"):
                lost.update({k: storage.get(k) for k in arguments[0] if k.endswith("h/c/0/0")})
            return super().run(what, call, *arguments)

    write_again(through(made, Keep()), 1)
    assert [len(data) for data in lost.values()] == [len(mine)]
    for data in (*lost.values(), storage.get(shard_of(made, 0))):
        overwrite(storage, key, data)
        refused(made, "foreign-shard")
        assert store.verify(made.live()).problems
    overwrite(storage, key, mine)
    ends_at(storage, digest)


def test_row_26_an_empty_or_missing_object_is_an_error_and_never_fill(made, digest):
    storage = made.view.storage
    for key in list(storage.keys("groups/acts/parts/00000001")):
        data = storage.get(key)
        for left in (b"", None):
            overwrite(storage, key, left)
            column = "acts:y" if key.endswith("parquet") else "acts:h"
            if not key.endswith("zarr.json"):  # for other readers; ours has it from the group
                refused(made, "object-size", "object-missing", "shard-short", column=column)
            assert store.verify(made.live()).problems
        overwrite(storage, key, data)
    ends_at(storage, digest)


def test_row_30_a_store_with_a_lost_record_is_not_a_shorter_one(made):
    for group in ("tokens", "acts"):
        key = layout.commit_key(group, 1)
        data = made.view.storage.get(key)
        overwrite(made.view.storage, key, None)
        refused(made, "part-missing", column=f"{group}:{'token_id' if group == 'tokens' else 'h'}")
        assert store.verify(made.live()).problems
        overwrite(made.view.storage, key, data)


# -- the table itself ----------------------------------------------------------------------------------------


def test_every_row_of_the_table_has_its_test_and_every_test_its_row():
    table = set(re.findall(r"`(test_row_\w+)`", FORMAT.read_text("utf-8")))
    folder = Path(__file__).parent
    tests = {
        name
        for path in folder.glob("test_fault_table*.py")
        for name in re.findall(r"^def (test_row_\w+)", path.read_text("utf-8"), re.M)
    }
    assert table == tests
    assert {int(name[9:11]) for name in tests} == set(range(1, 31))
