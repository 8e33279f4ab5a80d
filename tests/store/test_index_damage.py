"""Indexes that are damaged, gone, foreign or wrong: an error that says what to do, never a wrong row."""

import pytest

import store
from store import CorruptError, InvalidInputError, NotFoundError, layout
from store.compact import compact, discard
from store.index_records import index_keys, index_record
from store.records import make_record
from store.testing.faults import flip, overwrite
from store.testing.indexed import LATENTS, made_store

pytestmark = pytest.mark.usefixtures("small_files")


def assets_of(opened):
    """Return what an index of codes by latent consists of: name → key."""
    storage = opened.view.storage
    (key,) = index_keys(storage, "codes", "by_latent")
    record = index_record(storage, opened.id, key)
    first = record["files"][0][0]
    return {
        "record": key,
        "parts": f"assets/{record['parts']}/parts.index.parquet",
        "latents": f"assets/{record['latents']}/latents.index.parquet",
        "rows": f"assets/{first}/rows.index.parquet",
        "manifest": f"assets/{first}/manifest.json",
    }


ILLS = {
    "flipped": lambda data: flip(data, len(data) // 2),
    "cut": lambda data: data[:-5],
    "empty": lambda data: b"",
    "gone": lambda data: None,
}


CASES = [("record", ill) for ill in ILLS]
CASES += [
    (what, ill) for what in ("parts", "latents", "rows", "manifest") for ill in ("flipped", "gone")
]


@pytest.mark.parametrize(("what", "ill"), CASES, ids=["-".join(case) for case in CASES])
def test_a_damaged_index_is_an_error_that_says_what_to_do_and_compact_mends_it(
    compacted, what, ill
):
    opened = compacted
    storage, key = opened.view.storage, assets_of(opened)[what]
    overwrite(storage, key, ILLS[ill](storage.get(key)))
    opened = opened.refresh()
    every = range(LATENTS)
    if (what, ill) == ("record", "gone"):  # nothing names the rest: there is no index
        assert len(opened.strongest("codes", every)) == len(opened.arrow("codes"))
    else:
        for read in (
            lambda: opened.strongest("codes", every),
            lambda: opened.arrow("codes_by_latent"),
        ):
            with pytest.raises(CorruptError, match=r"index-damaged.*actlake compact") as error:
                read()
            assert "not affected" in str(error.value)
        assert not store.verify(opened).ok
    plain = opened.without_indexes()
    assert len(plain.strongest("codes", every)) == len(plain.arrow("codes"))
    compact(opened, ["codes"])
    opened = opened.refresh()
    assert opened.strongest("codes", every).equals(plain.strongest("codes", every))
    assert store.verify(opened).ok


def test_an_index_that_says_something_else_is_found_by_verify(compacted):
    """Its record and files are sound: somebody's program has built it wrongly."""
    opened = compacted
    storage = opened.view.storage
    for group, table in (("codes", "codes"), ("codes", "by_latent"), ("labels", "scalars")):
        (key,) = index_keys(storage, group, table)
        record = index_record(storage, opened.id, key)
        body = {n: v for n, v in record.items() if n not in {"v", "kind", "store", "self"}}
        files = body["files"]
        data, _ = make_record(
            "index", opened.id, {**body, "files": [files[1], files[0], *files[2:]]}
        )
        overwrite(storage, key, data)
        kinds = {problem["kind"] for problem in store.verify(opened.refresh()).problems}
        assert kinds & {"index-differs", "index-damaged"}
        overwrite(storage, key, make_record("index", opened.id, body)[0])
        assert store.verify(opened.refresh()).ok


def test_a_record_under_another_key_is_foreign(compacted):
    opened = compacted
    storage = opened.view.storage
    (key,) = index_keys(storage, "codes", "codes")
    overwrite(storage, layout.index_key("codes", "by_latent", key[-69:-5]), storage.get(key))
    with pytest.raises(CorruptError, match=r"index-damaged.*foreign-record"):
        opened.refresh().strongest("codes", [1])


def test_names_that_are_no_indexes_are_not_looked_at(memory_url):
    opened = made_store(memory_url())
    for name in (
        "notes.json",
        "codes-12.json",
        f"codes-{'0' * 64}.txt",
        f"a/codes-{'0' * 64}.json",
    ):
        opened.view.storage.create(f"groups/codes/indexes/{name}", b"x")
    assert index_keys(opened.view.storage, "codes") == []
    assert len(opened.refresh().arrow("codes"))


def test_indexes_that_are_discarded_are_no_more(compacted):
    opened = compacted
    assert len(discard(opened, ["codes"])) == 2
    assert index_keys(opened.view.storage, "codes") == []
    assert index_keys(opened.view.storage, "labels") != []
    with pytest.raises(NotFoundError, match="group-missing"):
        discard(opened, ["nothing"])
    after = opened.refresh()
    assert after.strongest("codes", [1]).equals(after.without_indexes().strongest("codes", [1]))


def test_no_asset_of_anybody_elses_looks_like_an_indexs(memory_url):
    opened = made_store(memory_url())
    with pytest.raises(InvalidInputError, match="bad-name"):
        opened.put_asset({"rows.index.parquet": b"mine"})
