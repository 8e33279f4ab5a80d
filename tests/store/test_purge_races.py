"""Readers, writers and purges at once: what is removed meanwhile is refused or done, never shown as zeros, never kept."""

import collections
import itertools
import threading

import numpy as np
import pytest

import store
import store.compact
import store.tables
from store import CorruptError, Document, InvalidInputError, StoreError, TokenSequence
from store.compact import compact, discard
from store.index_records import index_keys, index_record
from store.maintenance import drop, retire
from store.purge import add_tombstone, purge
from store.testing.faults import Killed, flip, harvest, overwrite, plant
from store.testing.removed import check_holds_nothing_of, check_indexes, documents_of, packed_store
from store.testing.small import codes_of, fill, small_store, tokens_store, values_of
from store.urls import open_storage


class At:
    """A storage that calls something before its n-th call."""

    def __init__(self, inner, at, call):
        self.inner, self.at, self.call, self.calls = inner, at, call, 0

    def __getattr__(self, name):
        value = getattr(self.inner, name)
        if not callable(value):
            return value

        def run(*arguments, **named):
            self.calls += 1
            if self.calls == self.at:
                self.call()
            return value(*arguments, **named)

        return run


def store_in(storage, made):
    numbers = {"part_rows": made.part_rows, "part_stride": made.part_stride}
    return store.Store(storage, {"store": made.id, **numbers}, None)


def refuses(made, name):
    with pytest.raises(StoreError) as caught:
        made.read(name)
    assert caught.value.kind == "removed-since"
    with pytest.raises(StoreError) as caught:
        made.pin()
    assert caught.value.kind == "removed-since"


def test_a_reader_from_before_a_removal_takes_nothing_written_after_it(url):
    """What was written since has empty slots where that reader expects rows."""
    made = tokens_store(url)
    old, other = made.live(), made.live()
    add_tombstone(made, [3], "asked to")
    ids = made.live().row_ids()
    with made.live().writer(
        "late", columns={"h": "float32[16]", "y": "float32"}, recipe={}
    ) as writer:
        writer.put(ids, {n: values_of(ids, column) for n, column in writer.group.columns.items()})
    late = made.live()
    assert np.array_equal(late.read("late:h"), values_of(ids, late.column("late:h")))
    for name in ("late:h", "late:y"):
        refuses(old, name)
    refuses(other, "late:h")
    assert np.array_equal(other.live().read("late:h"), late.read("late:h"))


def test_a_second_removal_amid_a_purge_is_not_read_as_zeros(url, monkeypatch):
    import store.purge

    made = fill(tokens_store(url), "acts", {"h": "float32[16]"})
    add_tombstone(made, [0], "asked to")
    between = []
    rewrite = store.purge._rewrite

    def slowly(view, name, old, reason):
        rewrite(view, name, old, reason)
        if name == "tokens" and not between:
            between.append(made.live())
            add_tombstone(made, [1], "asked to")

    monkeypatch.setattr(store.purge, "_rewrite", slowly)
    purge(made, "asked to")
    refuses(between[0], "acts:h")
    after = made.live()
    assert np.array_equal(after.read("acts:h"), values_of(after.row_ids(), after.column("acts:h")))


@pytest.mark.parametrize("second", [False, True])
def test_a_purge_amid_another_leaves_what_one_alone_leaves(second, memory_url):
    objects = harvest(packed_store(memory_url()).url)

    def purged(made, *, twice):
        add_tombstone(made, [0], "asked to")
        if twice:
            add_tombstone(made.live(), [3], "asked to")
        purge(made.live(), "asked to")
        return made.live()

    wanted = purged(store.open(plant(memory_url(), objects)), twice=second).digest()
    for at in itertools.count(1, 3):
        made = store.open(plant(memory_url(), objects))
        add_tombstone(made, [0], "asked to")

        def other(made=made):
            if second:
                add_tombstone(made.live(), [3], "asked to")
            purge(made.live(), "the other")

        storage = At(open_storage(made.url), at, other)
        purge(store_in(storage, made), "this one")
        purge(made.live(), "a third")
        if storage.calls < at:
            break
        check_holds_nothing_of(made.live(), {0, 3} if second else {0})
        assert made.live().digest() == wanted
    assert at > 40


def test_a_purge_that_finds_what_it_wrote_wrong_makes_nothing_of_it(url, monkeypatch):
    import store.purge

    made = packed_store(url)
    add_tombstone(made, [0], "asked to")
    objects = sorted(made.view.storage.keys(""))
    put = store.purge._put_shard

    def wrong(view, attempt, old, column, slots):
        put(view, attempt, old, column, slots[:-1])

    monkeypatch.setattr(store.purge, "_put_shard", wrong)
    with pytest.raises(StoreError, match=r"purge-incomplete.*does not read as it did"):
        purge(made, "asked to")
    there = set(made.view.storage.keys(""))
    assert {key for key in objects if "/acts/" in key} == {key for key in there if "/acts/" in key}
    monkeypatch.undo()
    purge(made, "asked to")
    after = made.live()
    assert np.array_equal(after.read("acts:h"), values_of(after.row_ids(), after.column("acts:h")))


def test_a_damaged_part_does_not_keep_the_others_from_being_purged(url):
    made = packed_store(url)
    key = made.view.commit("acts", 0).prefix + "h/c/0/0"
    data = made.view.storage.get(key)
    overwrite(made.view.storage, key, flip(data, 9000))
    add_tombstone(made, [0, 3], "asked to")
    with pytest.raises(StoreError, match=r"purge-incomplete.*1 parts could not be \(0\)"):
        purge(made, "asked to")
    assert made.live().view.stored_commit("acts", 1).purged > 0
    overwrite(made.view.storage, key, data)
    purge(made, "asked to")
    check_holds_nothing_of(made.live(), {0, 3})


def test_files_of_writers_that_died_are_no_hindrance(tmp_path):
    made = fill(packed_store(tmp_path / "store"), "wrong", {"h": "float32[16]"})
    prefix = made.view.commit("wrong", 0).prefix
    drop(made, "wrong", "a try")
    (tmp_path / "store" / prefix / ".tmp-0123456789abcdef").write_bytes(b"secret")
    (tmp_path / "store/groups/@eaDir").mkdir()
    add_tombstone(made, [0], "asked to")
    purge(made, "asked to")
    assert not list((tmp_path / "store/groups/wrong/parts").glob("00000000/*/*"))
    assert purge(made, "again") == []


def test_a_sample_takes_no_rows_of_removed_documents(url):
    made = packed_store(url)
    add_tombstone(made, [0], "asked to")
    purge(made, "asked to")
    every = np.arange(0, 200, 2)
    ids = made.live().row_ids()
    with pytest.raises(InvalidInputError, match=r"row-missing.*of removed documents"):
        fill_sample(made.live(), every)
    made = fill_sample(made.live(), ids[::2])
    assert np.array_equal(made.read("some:h"), values_of(ids[::2], made.column("some:h")))
    assert store.verify(made).ok


def fill_sample(made, ids):
    with made.writer(
        "some", columns={"h": "float32[4]"}, recipe={"mask": {"by": "hand"}}
    ) as writer:
        writer.put(ids, {"h": values_of(ids, writer.group.columns["h"])})
    return made.live()


@pytest.mark.parametrize("spans", [[(0, 20), (10, 10)], [(0, 20), (20, 20)], [(0, 20), (3, 5)]])
def test_a_document_without_rows_of_its_own_is_refused(spans, url):
    """It could not be removed: no row says where it is."""
    docs = [Document(doc_id=n, name=str(n), text="x" * 30) for n in range(2)]
    sequence = TokenSequence(
        token_ids=np.arange(20),
        spans=[(doc, *span) for doc, span in zip(docs, spans, strict=True)],
    )
    with (
        store.create(url).writer("tokens", recipe={}) as writer,
        pytest.raises(InvalidInputError, match="bad-sequence"),
    ):
        writer.put([sequence])


# -- copies in indexes, bytes in retired parts -----------------------------------------------------------------


@pytest.fixture
def indexed(memory_url):
    """A small store of an index for each table, the rows of document 3 and their parts."""
    made = small_store(memory_url(), part_rows=512, part_stride=512)
    compact(made)
    rows = [row for row, doc in documents_of(made).items() if doc == 3]
    return made, sorted({row // 512 for row in rows})


def retire_its_parts(made, parts):
    add_tombstone(made, [3], "asked to")
    retire(made, parts, "old")


def drop_groups(made, _parts):
    for name in ("codes", "labels"):
        drop(made, name, "a try")


def damage_indexes(made, _parts):
    storage = made.view.storage
    for name in made.groups:
        for key in index_keys(storage, name):
            parts = index_record(storage, made.id, key)["parts"]
            storage.delete([f"assets/{parts}/parts.index.parquet"])


@pytest.mark.parametrize(
    "before",
    [retire_its_parts, drop_groups, lambda made, _: discard(made), damage_indexes],
    ids=["retired", "dropped", "discarded", "damaged"],
)
def test_no_copy_in_an_index_outlives_a_purge(before, indexed):
    made, parts = indexed
    before(made, parts)
    if not made.live().view.tombstones:
        add_tombstone(made, [3], "asked to")
    purge(made, "asked to")
    check_indexes(made.live(), {3})
    assert store.verify(made.live()).ok


def test_an_index_that_is_being_made_amid_a_purge_is_taken_back(indexed, monkeypatch):
    made, _ = indexed
    discard(made)
    record = store.compact._Builder._record

    def late(self, *arguments):
        monkeypatch.undo()
        add_tombstone(made, [3], "asked to")
        purge(made, "asked to")
        return record(self, *arguments)

    monkeypatch.setattr(store.compact._Builder, "_record", late)
    with pytest.raises(StoreError, match="index-raced"):
        compact(made, ["labels"])
    check_holds_nothing_of(made.live(), {3})
    compact(made.live())
    assert store.verify(made.live()).ok


def test_documents_of_retired_parts_can_be_removed_and_purged(url):
    made = packed_store(url)
    retire(made, [1], "old")
    add_tombstone(made, [2], "asked to")
    (one,) = purge(made, "asked to")
    assert (one.part, one.rows) == (1, 0)
    assert one.deleted_bytes > 0
    assert not [key for key in made.view.storage.keys("groups") if "/parts/00000001" in key]
    assert purge(made, "again") == []
    retire(made, [0], "old")
    with pytest.raises(StoreError, match="document-missing"):
        add_tombstone(made, [17], "asked to")


def test_a_purge_killed_while_it_deletes_a_retired_part_is_completed(memory_url):
    """Whatever is left of such a part may be what was to go."""
    made = packed_store(memory_url())
    retire(made, [0], "old")
    add_tombstone(made, [0], "asked to")
    storage = made.view.storage
    documents = next(key for key in storage.keys("groups/tokens/parts/00000000") if "docu" in key)
    storage.delete([documents])
    (one,) = purge(made, "asked to")
    assert one.part == 0
    assert not [key for key in storage.keys("groups") if "/parts/00000000" in key]


def test_an_index_is_forgotten_though_the_purge_was_killed_before(indexed, monkeypatch):
    import store.purge

    made, _ = indexed

    def dies(*_):
        raise Killed

    add_tombstone(made, [3], "asked to")
    monkeypatch.setattr(store.purge, "forget", dies)
    with pytest.raises(Killed):
        purge(made, "asked to")
    monkeypatch.undo()
    purge(made, "again")
    check_holds_nothing_of(made.live(), {3})


def test_a_group_that_waited_for_a_part_that_goes_whole_is_complete(url):
    made = packed_store(url)
    add_tombstone(made, [2], "asked to")
    ids = made.live().row_ids()
    with made.live().writer("late", columns={"y": "int32"}, recipe={}) as writer:
        writer.put(ids, {"y": ids})
    assert made.live().view.sealed("late") is None
    purge(made, "asked to")
    assert made.live().coverage["late"].complete
    assert made.live().view.sealed("late") is not None


def test_a_reader_whose_files_a_purge_deleted_is_told_to_open_the_store_again(url):
    made = packed_store(url)
    old, other = made.live(), made.live()
    assert old.row_ids().size
    assert other.gather("acts:h", [0]).size
    add_tombstone(made, [0], "asked to")
    purge(made, "asked to")
    for ask in (
        lambda: old.arrow("sequences"),
        lambda: other.gather("acts:h", [0]),
        lambda: other.read("acts:h"),
    ):
        with pytest.raises(StoreError) as caught:
            ask()
        assert caught.value.kind == "purged"
        assert "Open the store again" in caught.value.message


# -- threads ---------------------------------------------------------------------------------------------------


def test_threads_share_the_files_of_an_index(tmp_path, monkeypatch):
    """More of them than are kept open."""
    monkeypatch.setattr(store.compact, "FILE_ROWS", 200)
    monkeypatch.setattr(store.compact, "BLOCK_ROWS", 100)
    monkeypatch.setattr(store.tables, "ROW_GROUP_ROWS", 20)
    made = tokens_store(tmp_path / "store", (90, 200, 150, 256) * 4)
    ids = made.row_ids()
    with made.writer("codes", columns={"c": "codes"}, recipe={}) as writer:
        writer.put(ids, {"c": codes_of(ids)})
    compact(made, ["codes"])
    shared, plain = made.refresh(), made.refresh().without_indexes()
    wanted = {latent: plain.strongest("codes", [latent]) for latent in range(0, 300, 7)}
    said = collections.Counter()

    def ask(seed):
        for latent in np.random.default_rng(seed).choice(list(wanted), 60).tolist():
            try:
                said[shared.strongest("codes", [latent]).equals(wanted[latent])] += 1
            except CorruptError as error:
                said[error.kind] += 1

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {True: 12 * 60}
