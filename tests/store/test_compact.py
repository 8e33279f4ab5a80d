"""Indexes are whole or not there, whoever dies or races; nothing is written twice; gc and drop end them."""

from functools import partial

import numpy as np
import pytest

import store
from store.assets import INDEX_ENDING
from store.compact import compact, table_paths
from store.errors import CorruptError, NotFoundError, StoreError, UnavailableError
from store.index_records import index_keys, index_record, load_index, named_assets
from store.maintenance import GRACE_SECONDS, collect, drop, retire
from store.sorting import CodeSorter
from store.testing.faults import FaultyStorage, Killed, Plan, flip, harvest, overwrite, plant
from store.testing.small import codes_of, small_store, tokens_store

LENGTHS = (100, 150, 200, 56, 90, 120)
LATER = 2 * GRACE_SECONDS


@pytest.fixture(autouse=True, scope="module")
def _small_files():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("store.compact.FILE_ROWS", 1500)
        patch.setattr("store.compact.FILE_PARTS", 2)
        yield


def put_part(opened, writer, part):
    ids = part * opened.part_stride + np.arange(opened.view.commit("tokens", part).rows)
    writer.put(ids, {"codes": codes_of(ids)})


def write_codes(opened):
    """Write the codes of every part that has none yet."""
    with opened.writer("codes", columns={"codes": "codes"}, recipe={"by": "test"}) as writer:
        for part in opened.view.parts("tokens"):
            if not writer.done(part):
                put_part(opened, writer, part)
    return opened.refresh()


@pytest.fixture(scope="module")
def plain_objects(memory_url):
    return harvest(
        write_codes(tokens_store(memory_url(), LENGTHS, part_rows=256, part_stride=512)).url
    )


@pytest.fixture
def made(memory_url, plain_objects):
    """A store of tokens and codes without indexes."""
    return store.open(plant(memory_url(), plain_objects))


def over(opened, storage):
    """Return the store behind another storage."""
    record = {"store": opened.id, "part_rows": opened.part_rows, "part_stride": opened.part_stride}
    return store.Store(storage, record, None)


def indexes_of(opened):
    return {
        key: opened.view.storage.get(key)
        for group in opened.refresh().groups
        for key in index_keys(opened.view.storage, group)
    }


def index_assets(opened):
    keys = opened.view.storage.keys("assets")
    return {key.split("/")[1] for key in keys if key.endswith(INDEX_ENDING)}


# -- dying and racing ------------------------------------------------------------------------------------------


def calls_of_a_build(opened):
    plan = Plan()
    compact(over(opened, FaultyStorage(opened.view.storage, plan)))
    return plan.calls


@pytest.mark.parametrize("mode", ["killed-before", "killed-after", "refused", "answer-lost"])
def test_a_builder_that_ends_at_any_call_leaves_indexes_that_are_whole(
    memory_url, plain_objects, mode
):
    first = store.open(plant(memory_url(), plain_objects))
    calls = calls_of_a_build(first)
    expected, rows = indexes_of(first), first.arrow("codes")
    assert calls > 20
    for at in range(1, calls + 1):
        opened = store.open(plant(memory_url(), plain_objects))
        dying = over(opened, FaultyStorage(opened.view.storage, Plan(at=at, mode=mode)))
        with pytest.raises((Killed, UnavailableError)):
            compact(dying)
        opened = opened.refresh()
        held = indexes_of(opened)
        assert held.items() <= expected.items()
        assert opened.arrow("codes").equals(rows)
        if at % 5 == 0:
            assert store.verify(opened).ok
        compact(opened)
        assert indexes_of(opened) == expected
        collect(aged(opened.refresh()))
        assert index_assets(opened) == {
            asset
            for key in expected
            for asset in named_assets(index_record(opened.view.storage, opened.id, key))
        }


class Meanwhile:
    """A storage during whose n-th call something else happens."""

    def __init__(self, inner, at, what):
        self.inner, self.url, self.left, self.what = inner, inner.url, at, what

    def __getattr__(self, name):
        call = getattr(self.inner, name)
        if name not in {"create", "get", "size", "put"}:
            return call

        def do(*arguments):
            self.left -= 1
            if self.left == 0:
                self.what()
            return call(*arguments)

        return do


def test_of_two_builders_at_once_one_index_stands(memory_url, plain_objects):
    first = store.open(plant(memory_url(), plain_objects))
    compact(first)
    expected, at, done = indexes_of(first), 0, False
    while not done:
        at += 3
        opened = store.open(plant(memory_url(), plain_objects))
        racing = Meanwhile(opened.view.storage, at, lambda opened=opened: compact(opened))
        compact(over(opened, racing))
        assert indexes_of(opened) == expected
        assert (
            opened.refresh()
            .strongest("codes", range(300))
            .equals(first.without_indexes().strongest("codes", range(300)))
        )
        done = racing.left > 0
    assert at > 100


def test_a_part_that_is_committed_while_an_index_is_made_is_read_by_itself(memory_url):
    opened = write_codes(
        tokens_store(memory_url(), LENGTHS, part_rows=256, part_stride=512, seal=False)
    )
    before = len(opened.view.parts("codes"))

    def grow():
        more = opened.refresh()
        with more.writer("tokens", recipe={"source": "small", "lengths": list(LENGTHS)}) as writer:
            writer.put([store.TokenSequence(token_ids=range(50))], position=99)
            writer.flush()
        write_codes(more.refresh())

    compact(over(opened, Meanwhile(opened.view.storage, 60, grow)))
    opened = opened.refresh()
    assert len(opened.view.parts("codes")) == before + 1
    (key,) = index_keys(opened.view.storage, "codes", "by_latent")
    assert len(load_index(opened.view.storage, opened.id, key).parts) == before
    plain = opened.without_indexes()
    assert opened.strongest("codes", range(300)).equals(plain.strongest("codes", range(300)))
    assert opened.arrow("tokens").equals(plain.arrow("tokens"))


def test_an_asset_that_gc_takes_while_an_index_is_made_takes_the_index_back(made):
    storage = made.view.storage
    create = storage.create

    def taken_away(key, data):
        if "/indexes/by_latent-" in key:
            storage.delete([next(k for k in storage.keys("assets") if k.endswith("manifest.json"))])
        return create(key, data)

    storage.create = taken_away
    try:
        with pytest.raises(StoreError, match=r"index-raced.*Run the same command again"):
            compact(made, ["codes"])
    finally:
        del storage.create
    assert index_keys(storage, "codes", "by_latent") == []
    compact(made, ["codes"])
    assert store.verify(made.refresh()).ok


# -- what is written -------------------------------------------------------------------------------------------


def test_what_is_there_is_kept_and_only_files_of_new_parts_are_written(memory_url):
    opened = tokens_store(memory_url(), LENGTHS * 3, part_rows=256, part_stride=512, seal=False)
    parts = list(opened.view.parts("tokens"))
    for count in (4, len(parts) // 2 * 2):
        with opened.refresh().writer("y", columns={"y": "int32"}, recipe={}) as writer:
            for part in parts[:count]:
                rows = opened.view.commit("tokens", part).rows
                if not writer.done(part):
                    writer.put(part * 512 + np.arange(rows), {"y": np.arange(rows)})
        (found,) = compact(opened.refresh(), ["y"])
        assert (found.parts, found.files) == (count, count // 2)
        assert found.written == (2 if count == 4 else count // 2 - 2)
        (again,) = compact(opened.refresh(), ["y"])
        assert (again.files, again.written) == (found.files, 0)


def test_codes_come_from_scratch_files_where_they_do_not_fit(made, tmp_path, monkeypatch):
    whole = compact(made, ["codes"])
    expected = indexes_of(made)
    for key in expected:
        made.view.storage.delete([key])
    monkeypatch.setattr(
        "store.compact.CodeSorter", partial(CodeSorter, run_rows=500, block_rows=100, most_runs=3)
    )
    said = []
    again = compact(made, ["codes"], scratch=tmp_path, progress=lambda *words: said.append(words))
    assert indexes_of(made) == expected
    assert [one.rows for one in again] == [one.rows for one in whole]
    assert list(tmp_path.iterdir()) == []
    for table in ("codes by_latent", "codes codes"):
        steps = [(done, total) for name, done, total in said if name == table]
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1] > 0


def test_every_kind_of_group_is_asked_for_its_tables(memory_url):
    opened = small_store(memory_url())
    found = {name: table_paths(group) for name, group in opened.groups.items()}
    assert found == {
        "tokens": ["documents.parquet", "sequences.parquet", "tokens.parquet"],
        "acts": [],
        "codes": ["by_latent.parquet", "codes.parquet"],
        "labels": ["scalars.parquet"],
        "sample": ["scalars.parquet"],
        "stat": [],
    }
    with pytest.raises(NotFoundError, match="group-missing"):
        compact(opened, ["nothing"])


def test_damaged_parts_are_not_copied(made):
    storage = made.view.storage
    commit = made.view.commit("codes", 1)
    key = commit.prefix + "by_latent.parquet"
    overwrite(storage, key, flip(storage.get(key), 200))
    with pytest.raises(CorruptError, match="object-damaged"):
        compact(made.refresh(), ["codes"])
    assert index_keys(storage, "codes", "by_latent") == []


# -- gc --------------------------------------------------------------------------------------------------------


def aged(opened, seconds=LATER):
    """Let everything in a store be as old."""
    storage = opened.view.storage
    modified = type(storage).modified.__get__(storage)
    storage.modified = lambda key: modified(key) - (0 if "probe-" in key else seconds)
    return opened


def test_an_index_in_use_is_nothing_for_gc(made):
    compact(made)
    before = set(made.view.storage.keys(""))
    assert collect(aged(made.refresh())).keys == []
    assert set(made.view.storage.keys("")) == before


def test_an_index_that_a_larger_one_replaces_goes_after_the_grace_with_what_it_alone_names(
    memory_url,
):
    opened = tokens_store(memory_url(), LENGTHS * 2, part_rows=256, part_stride=512, seal=False)
    parts = list(opened.view.parts("tokens"))
    with opened.writer("codes", columns={"codes": "codes"}, recipe={}) as writer:
        for part in parts[:4]:
            put_part(opened, writer, part)
    compact(opened, ["codes"])
    old = set(indexes_of(opened))
    with opened.refresh().writer("codes", columns={"codes": "codes"}, recipe={}) as writer:
        for part in parts[4:]:
            put_part(opened, writer, part)
    compact(opened, ["codes"])
    new = set(indexes_of(opened)) - old
    assert (len(old), len(new)) == (2, 2)
    assert collect(opened.refresh()).keys == []  # somebody may be reading it
    gone = collect(aged(opened.refresh())).keys
    assert old < set(gone)
    assert set(indexes_of(opened)) == new
    named = {
        asset
        for key in new
        for asset in named_assets(index_record(opened.view.storage, opened.id, key))
    }
    assert index_assets(opened) == named
    assert any(INDEX_ENDING in key for key in gone)
    assert store.verify(opened.refresh()).ok


def test_an_index_with_rows_of_a_retired_part_goes_after_the_grace(made):
    compact(made)
    before = set(indexes_of(made))
    retire(made, [0], "must go")
    assert collect(made.refresh()).keys == []
    compact(made)
    new = set(indexes_of(made)) - before
    gone = set(collect(aged(made.refresh())).keys)
    assert before <= gone
    assert set(indexes_of(made)) == new
    report = store.verify(made.refresh())
    assert report.ok


def test_a_dropped_groups_indexes_go_with_it_in_one_go(made):
    compact(made)
    others = {key for key in indexes_of(made) if "/tokens/" in key}
    drop(made, "codes", "a try")
    assert collect(made.refresh()).keys == []
    collect(aged(made.refresh()))
    opened = made.refresh()
    assert set(indexes_of(opened)) == others
    assert not [key for key in opened.view.storage.keys("groups/codes") if "/indexes/" in key]
    assert index_assets(opened) == {
        asset
        for key in others
        for asset in named_assets(index_record(opened.view.storage, opened.id, key))
    }
    assert store.verify(opened).ok


def test_while_an_index_cannot_be_read_no_index_asset_goes(made):
    compact(made)
    key = min(indexes_of(made))
    overwrite(made.view.storage, key, b"{}")
    assert collect(aged(made.refresh())).keys == []
    made.view.storage.delete([key])
    assert collect(made.refresh()).keys


def test_an_index_that_a_purge_takes_while_gc_looks_is_nothing_to_collect(memory_url, monkeypatch):
    opened = tokens_store(memory_url(), LENGTHS * 2, part_rows=256, part_stride=512, seal=False)
    parts = list(opened.view.parts("tokens"))
    for some in (parts[:4], parts[4:]):
        with opened.refresh().writer("codes", columns={"codes": "codes"}, recipe={}) as writer:
            for part in some:
                put_part(opened, writer, part)
        compact(opened, ["codes"])
    storage = opened.view.storage
    modified = storage.modified

    def gone(key):
        if "/indexes/" in key:
            storage.delete([key])
        return modified(key)

    monkeypatch.setattr(storage, "modified", gone)
    collect(opened.refresh())
    monkeypatch.undo()
    assert store.verify(opened.refresh()).ok
