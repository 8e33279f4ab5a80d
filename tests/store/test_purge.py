"""Removed documents: no reader shows their rows; a purge takes their bytes, and nothing else changes."""

import itertools
import json
import random

import numpy as np
import pytest

import store
from store import CorruptError, Document, InvalidInputError, NotFoundError, TokenSequence, tables
from store.codecs import CODECS
from store.compact import compact
from store.index_records import index_keys, load_index
from store.layout import commit_key
from store.maintenance import drop, retire
from store.purge import _purged, add_tombstone, purge
from store.records import make_record, sha256
from store.testing.faults import overwrite, plant
from store.testing.removed import (
    check_holds_nothing_of,
    check_shows,
    documents_of,
    left,
    packed_store,
)
from store.testing.small import LENGTHS, codes_of, fill, tokens_store, values_of
from store.tombstones import list_tombstones, load_tombstone, tombstone_key

_numbers = itertools.count()


@pytest.mark.parametrize("seed", range(8))
def test_removed_documents_are_in_nothing_that_is_read_and_purged_they_are_in_nothing_at_all(
    small_objects, seed
):
    draw = random.Random(seed)
    gone = set(draw.sample(range(len(LENGTHS)), draw.randint(1, 6)))
    url = plant(f"memory://purge-{next(_numbers)}", small_objects)
    whole = store.open(url, pin=store.open(url).pin())
    ids = left(whole, gone)
    add_tombstone(whole, gone, "asked to")
    made = whole.live()
    check_shows(made, ids, whole)
    for doc in gone:
        seq = documents_of(whole)
        mine = [row for row, of in seq.items() if of == doc]
        with pytest.raises(NotFoundError, match="row"):
            made.gather("acts:h", mine[:1])
        with pytest.raises(NotFoundError, match="sequence"):
            made.sequences("acts:h", mine[:1])
    said = made.digest([name for name in made.groups if name != "stat"])
    report = store.verify(made)
    assert report.ok
    assert report.digest == made.digest()
    purged = purge(made, "asked to")
    assert sum(one.rows for one in purged) == len(whole.row_ids()) - len(ids)
    after = made.live()
    check_shows(after, ids, _undisturbed(small_objects))
    assert after.digest([name for name in after.groups if name != "stat"]) == said
    report = store.verify(after)
    assert (report.problems, report.orphans) == ([], [])
    check_holds_nothing_of(after, gone)
    assert purge(after, "again") == []


def test_a_part_that_holds_all_it_ever_held_is_left_as_it_is(memory_url):
    """As a purge finds it that comes second."""
    made = fill(tokens_store(memory_url()), "acts", {"h": "float32[16]"})
    before = set(made.view.storage.keys(""))
    done = _purged(made, 0, "asked to")
    assert (done.rows, list(done.groups)) == (0, [])
    assert set(made.view.storage.keys("")) == before


def _undisturbed(objects):
    return store.open(plant(f"memory://purge-{next(_numbers)}", objects))


def test_a_pin_made_before_shows_the_rows_until_they_are_purged(small_url):
    whole = store.open(small_url)
    before = whole.pin()
    state = next(iter([whole.windows(["acts:h"], seed=1)])).state(0)
    tombstone = add_tombstone(whole, [3], "asked to")
    assert list_tombstones(whole.view.storage) == (tombstone,)
    made = whole.live()
    after = made.pin()
    assert after != before
    assert store.open(small_url, pin=before).row_ids().tolist() == whole.row_ids().tolist()
    assert store.open(small_url, pin=after).row_ids().tolist() == made.row_ids().tolist()
    with pytest.raises(store.ConflictError, match="pin"):
        made.windows(["acts:h"], seed=1).resume(state)
    purge(made, "asked to")
    for pin in (before, after):
        with pytest.raises(NotFoundError) as caught:
            store.open(small_url, pin=pin).read("acts:h")
        assert caught.value.kind == "purged"
    last = made.live().pin()
    assert store.open(small_url, pin=last).row_ids().tolist() == made.row_ids().tolist()
    assert store.verify(made.live()).ok


def test_states_that_were_made_of_removed_rows_are_not_shown_and_none_are_kept(small_url):
    whole = store.open(small_url)
    parts = set(whole.view.parts("stat"))
    part = int(whole.arrow("documents")["first_row"][0].as_py()) // whole.part_stride
    add_tombstone(whole, [0], "asked to")
    made = whole.live()
    assert set(made.view.parts("stat")) == parts - {part}
    with pytest.raises(NotFoundError, match="removed-since"):
        made.partial("state", part)
    with made.writer("other", columns={"s": "partial"}, recipe={}) as writer:
        assert writer.done(part)
        for one in parts:
            writer.put_partial(one, {"s": {"n": np.array([1])}})
    assert set(made.live().view.parts("other")) == parts - {part}
    purge(made, "asked to")
    assert not list(made.view.storage.keys(f"groups/stat/parts/{part:08d}"))
    assert store.verify(made.live()).ok


@pytest.mark.parametrize("codec", CODECS.names())
def test_what_is_kept_keeps_its_bits_whatever_the_codec(codec, memory_url):
    made = tokens_store(memory_url())
    ids = made.row_ids()
    columns = {"a": "bfloat16[70]", "b": "float32[16]", "c": "float16[2,9]"}
    with made.writer("acts", columns=columns, recipe={}, codec=codec) as writer:
        declared = writer.group.columns
        writer.put(ids, {name: values_of(ids, column) for name, column in declared.items()})
    made = made.refresh()
    before = {name: made.read(name, raw=True) for name in columns}
    summary = made.view.commit("acts", 0).summary
    gone = {1, 4, 5, 9}
    keep = np.isin(ids, left(made, gone))
    add_tombstone(made, gone, "asked to")
    purge(made, "asked to")
    made = made.live()
    for name, old in before.items():
        assert made.read(name, raw=True).tobytes() == old[keep].tobytes()
    assert made.view.commit("acts", 0).summary == summary
    assert store.verify(made).ok
    check_holds_nothing_of(made, gone)


def test_a_sequence_that_holds_a_removed_document_goes_whole(url):
    made = packed_store(url)
    add_tombstone(made, [0], "asked to")
    after = made.live()
    assert len(after.row_ids()) == 300
    documents = after.arrow("documents").to_pylist()
    assert [(d["doc_id"], d["rows"], d["first_row"]) for d in documents[:1]] == [(1, 100, 100)]
    assert after.arrow("sequences")["seq_id"].to_pylist()[0] == 100
    said = after.digest()
    purge(after, "asked to")
    assert after.live().digest() == said
    assert after.live().arrow("documents").to_pylist() == documents


def test_a_document_over_two_parts_goes_from_both(url):
    made = packed_store(url)
    add_tombstone(made, [2], "asked to")
    assert made.live().row_ids().tolist() == list(range(200))
    # Nothing of the second part is left, so a purge retires it.
    found = purge(made, "asked to")
    assert [one.rows for one in found] == [200]
    after = made.live()
    assert after.view.retired("acts") == {1}
    assert after.row_ids().tolist() == list(range(200))
    assert not [key for key in after.view.storage.keys("groups") if "/parts/00000001" in key]
    assert store.verify(after).ok


def test_groups_written_later_cover_what_is_left(url):
    made = tokens_store(url)
    ids = made.row_ids()
    columns = {"h": "bfloat16[16]", "y": "int32"}
    for number, (step, kept) in enumerate(
        {"tombstone": left(made, {2, 6}), "purge": left(made, {2, 6, 11})}.items()
    ):
        gone = {2, 6} if step == "tombstone" else {11}
        add_tombstone(made, gone, "asked to")
        if step == "purge":
            purge(made, "asked to")
        made = made.live()
        for masked in (False, True):
            name = f"g{number}{masked}"
            with made.writer(name, columns=columns, recipe={}, masked=masked) as writer:
                mine = kept[:: 1 + masked]
                for low in range(0, len(mine), 77):
                    some = mine[low : low + 77]
                    declared = writer.group.columns.values()
                    writer.put(some, {c.name: values_of(some, c) for c in declared})
            made = made.live()
            for column in columns:
                wanted = values_of(mine, made.column(f"{name}:{column}"))
                assert np.array_equal(made.read(f"{name}:{column}"), wanted)
                assert np.array_equal(made.gather(f"{name}:{column}", mine[::-1]), wanted[::-1])
        with made.writer(f"codes{number}", columns={"c": "codes"}, recipe={}) as writer:
            writer.put(kept, {"c": codes_of(kept)})
        writer = made.writer(f"bad{number}", columns=columns, recipe={})
        values = {c.name: values_of(ids, c) for c in writer.group.columns.values()}
        with pytest.raises(InvalidInputError, match="comes next"):
            writer.put(ids, values)
        assert store.verify(made.live()).ok
        assert made.live().view.sealed(f"g{number}False") is not None


def test_what_was_dropped_or_retired_before_loses_its_bytes_too(url):
    made = packed_store(url)
    made = fill(made, "wrong", {"h": "float32[16]"})
    made = fill(made, "ring", {"h": "float32[16]"})
    drop(made, "wrong", "a try")
    retire(made, [0], "old", group="ring")
    add_tombstone(made, [0], "asked to")
    assert {one.part for one in purge(made, "asked to")} == {0}
    left = {
        key.split("/")[1] for key in made.view.storage.keys("groups") if "/parts/00000000" in key
    }
    assert left == {"tokens", "acts"}
    assert made.live().row_ids(group="ring").tolist() == list(range(256, 456))
    assert store.verify(made.live()).ok


def test_a_commit_of_foreign_tokens_is_not_made_good_by_a_purge(url):
    made = packed_store(url)
    key = commit_key("acts", 0)
    record = json.loads(made.view.storage.get(key))
    body = {
        **{k: v for k, v in record.items() if k not in {"self", "v", "kind", "store"}},
        "tokens": "0" * 64,
    }
    overwrite(made.view.storage, key, make_record("commit", made.id, body)[0])
    add_tombstone(made, [0], "asked to")
    (one,) = purge(made, "asked to")
    assert one.groups == ("tokens",)
    assert one.left == (f"groups/acts/parts/00000000/{record['attempt']}",)
    with pytest.raises(store.StoreError) as caught:
        made.live().read("acts:h")
    assert caught.value.kind == "tokens-mismatch"


def test_indexes_speak_for_no_part_that_lost_documents_and_go_with_a_purge(small_url):
    whole = store.open(small_url)
    compact(whole)
    storage = whole.view.storage
    keys = [key for name in whole.groups for key in index_keys(storage, name)]
    assert len(keys) > 5
    gone = {0, 11}
    ids = left(whole, gone)
    add_tombstone(whole, gone, "asked to")
    made = whole.live()
    for name in ("tokens", "sequences", "documents", "labels", "codes"):
        assert made.arrow(name).equals(made.without_indexes().arrow(name)), name
        assert made.table(name).collect().equals(made.without_indexes().table(name).collect()), name
    assert set(made.strongest("codes", range(300))["row"].to_pylist()) == set(ids.tolist())
    assets = {key.split("/")[1] for key in storage.keys("assets") if ".index." in key}
    purge(made, "asked to")
    parts = {row // whole.part_stride for row in set(whole.row_ids().tolist()) - set(ids.tolist())}
    for key in [key for name in whole.groups for key in index_keys(storage, name)]:
        assert not parts & set(load_index(storage, whole.id, key).parts.tolist())
    assert {key.split("/")[1] for key in storage.keys("assets") if ".index." in key} < assets
    compact(made.live())
    after = made.live()
    assert after.arrow("codes").equals(made.arrow("codes"))
    assert store.verify(after).ok


def test_what_cannot_be_removed_is_refused_and_nothing_changes(small_url):
    made = store.open(small_url)
    keys = sorted(made.view.storage.keys(""))
    for docs, reason, kind in (
        ([99], "why", "document-missing"),
        ([], "why", "document-missing"),
        ([1], " ", "reason-missing"),
    ):
        with pytest.raises(store.StoreError) as caught:
            add_tombstone(made, docs, reason)
        assert caught.value.kind == kind
    assert sorted(made.view.storage.keys("")) == keys
    add_tombstone(made, [1], "why")
    keys = sorted(made.view.storage.keys(""))
    (there,) = made.live().view.tombstones
    assert add_tombstone(made.live(), [1], "another") == there  # its answer may have been lost
    assert sorted(made.view.storage.keys("")) == keys
    second = add_tombstone(made.live(), [1, 3], "why")
    assert load_tombstone(made.view.storage, second)["doc_id"].tolist() == [3]


def test_documents_that_go_on_in_later_parts_are_removed_there_too(url):
    made = store.create(url, part_rows=256, part_stride=256)
    doc, other = Document(doc_id=0, name="a"), Document(doc_id=1, name="b")

    def put(*which):
        with made.writer("tokens", recipe={}) as writer:
            for one in which:
                writer.put([TokenSequence(token_ids=np.arange(100), spans=[(one, 0, 100)])])
            writer.flush()

    put(doc, other)
    add_tombstone(made, [0], "asked to")
    put(doc, other)
    assert made.live().row_ids().tolist() == [*range(100, 200), *range(356, 456)]
    retire(made, [0], "old")
    assert made.live().row_ids().tolist() == list(range(356, 456))


def test_a_tombstone_that_is_damaged_gone_or_unknown_lets_nothing_be_read(small_url):
    made = store.open(small_url)
    key = tombstone_key(add_tombstone(made, [1], "asked to"))
    storage = made.view.storage
    pin, data = made.live().pin(), storage.get(key)
    storage.delete([key])
    with pytest.raises(CorruptError) as caught:
        store.open(small_url, pin=pin).read("acts:h")
    assert caught.value.kind == "tombstone-damaged"
    storage.put(key, data[:-1] + b"x")
    with pytest.raises(CorruptError) as caught:
        made.live().read("acts:h")
    assert caught.value.kind == "tombstone-damaged"
    assert [one["kind"] for one in store.verify(made).problems].count("tombstone-damaged") >= 1
    storage.delete([key])
    other = tables.write_parquet({"doc_id": np.arange(3)})
    storage.put(tombstone_key(sha256(other)), other)
    with pytest.raises(CorruptError) as caught:
        made.live().read("acts:h")
    assert caught.value.kind == "tombstone-damaged"
    storage.delete([tombstone_key(sha256(other))])
    storage.put("tombstones/another.json", b"{}")
    with pytest.raises(store.UnsupportedVersionError, match="upgrade"):
        made.live()


def test_a_tombstone_that_is_being_written_is_none(tmp_path):
    made = tokens_store(str(tmp_path / "store"))
    (tmp_path / "store" / "tombstones").mkdir()
    (tmp_path / "store" / "tombstones" / ".tmp-0123").write_bytes(b"half")
    assert made.live().row_ids().tolist() == made.row_ids().tolist()


def test_where_nothing_is_removed_a_purge_has_nothing_to_do(small_url):
    made = store.open(small_url)
    before = sorted(made.view.storage.keys(""))
    assert purge(made, "asked to") == []
    assert sorted(made.view.storage.keys("")) == before


def test_tombstones_of_documents_that_are_in_no_row_any_more_take_nothing(small_url):
    """The part was purged of one document; a second tombstone of it finds no row of it there."""
    made = store.open(small_url)
    add_tombstone(made, [0], "asked to")
    purge(made.live(), "asked to")
    before = made.live().row_ids().tolist()
    add_tombstone(made, [0], "asked to once more")
    assert sum(one.rows for one in purge(made.live(), "asked to")) == 0
    assert made.live().row_ids().tolist() == before


def test_a_sound_tombstone_under_another_name_is_none(small_url):
    made = store.open(small_url)
    storage = made.view.storage
    data = storage.get(tombstone_key(add_tombstone(made, [1], "asked to")))
    storage.put(tombstone_key("0" * 64), data)
    with pytest.raises(CorruptError, match="tombstone-damaged"):
        made.live().read("acts:h")
