"""What is read through indexes is what the parts say, whatever became of the parts since the indexes were made."""

import pickle

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import store
from store import InvalidInputError, NotFoundError, tables
from store.compact import compact
from store.index_records import index_keys, load_index
from store.layout import commit_key
from store.maintenance import retire
from store.records import make_record
from store.testing.faults import plant
from store.testing.indexed import LATENTS, LENGTHS, made_store, put_codes, rows_only
from store.testing.small import small_store

pytestmark = pytest.mark.usefixtures("small_files")
TABLES = ("tokens", "sequences", "documents", "labels", "codes")


def replace(opened, part):
    """Commit a part of the codes again, under the next n, with other values; return the store as it is then."""
    view = opened.view
    commit = view.commit("codes", part)
    attempt, objects = f"{commit.n + 1:016x}", []
    for path, item in commit.objects.items():
        data = view.table(commit, path)
        value = tables.column(data, "value") * np.float32(2)
        columns = {"row": tables.column(data, "row"), "latent": tables.column(data, "latent")}
        encoded = tables.encode(tables.table({**columns, "value": value}, tables.CODES))
        written = view.storage.put(f"groups/codes/parts/{part:08d}/{attempt}/{path}", encoded)
        crc = f"{written.crc32c:08x}"
        objects.append({"path": path, "size": written.size, "crc32c": crc, "rows": item.rows})
    body = {
        "group": "codes",
        "part": part,
        "n": commit.n + 1,
        "attempt": attempt,
        "rows": commit.rows,
        "recipe": commit.recipe,
        "tokens": commit.tokens,
        "objects": sorted(objects, key=lambda one: one["path"]),
        "summary": {},
        "provenance": {},
        "replaces": commit.hash,
        "reason": "test",
    }
    data, _ = make_record("commit", opened.id, body)
    view.storage.create(commit_key("codes", part, commit.n + 1), data)
    return opened.refresh()


def in_order(frame):
    return frame.sort(["latent", "value", "row"], descending=[False, True, False])


def oracle(plain, latents, count):
    """Return the strongest codes straight from the table of codes."""
    data = plain.arrow("codes")
    row, latent, value = (tables.column(data, name) for name in ("row", "latent", "value"))
    found = []
    for wanted in sorted(set(latents)):
        mine = np.flatnonzero(latent == wanted)
        mine = mine[np.lexsort((row[mine], -value[mine]))][:count]
        found += list(
            zip(row[mine].tolist(), [wanted] * len(mine), value[mine].tolist(), strict=True)
        )
    return found


def check_same(opened, latents, count):
    """Compare every way to read tables with and without indexes, and with the oracle."""
    plain = opened.without_indexes()
    for name in TABLES:
        assert opened.arrow(name).equals(plain.arrow(name)), name
        assert opened.table(name).collect().equals(plain.table(name).collect()), name
    ours, theirs = (one.table("codes_by_latent") for one in (opened, plain))
    latent, value = pl.col("latent"), pl.col("value")
    for condition in (
        pl.lit(value=True),
        latent == latents[0],
        latent.is_in(latents) & (value > 0.5),
        (latent < 40) | (value > 0.9),
        (value > 0.2) & ((latent * 2 + 1 > 300) & latent.is_between(10, 200)),
    ):
        left, right = (in_order(one.filter(condition).collect()) for one in (ours, theirs))
        assert left.equals(right), condition
    assert in_order(pl.DataFrame(opened.arrow("codes_by_latent"))).equals(
        in_order(theirs.collect())
    )
    for number in (count, None):
        found = opened.strongest("codes", latents, number)
        assert found.equals(plain.strongest("codes", latents, number).cast(found.schema))
        assert [tuple(one.values()) for one in found.to_pylist()] == oracle(plain, latents, number)


STEPS = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 5)),
    st.tuples(st.just("compact"), st.sampled_from([None, ["codes"], ["tokens", "labels"]])),
    st.tuples(st.just("retire"), st.integers(0, 15)),
    st.tuples(st.just("retire in codes"), st.integers(0, 15)),
    st.tuples(st.just("replace"), st.integers(0, 15)),
)


HISTORIES = given(
    steps=st.lists(STEPS, min_size=2, max_size=9),
    latents=st.lists(st.integers(0, LATENTS + 3), min_size=1, max_size=5),
    count=st.integers(1, 30),
)


@settings(max_examples=6)
@HISTORIES
def test_any_history_reads_the_same_with_and_without_indexes(memory_url, steps, latents, count):
    check_history(memory_url, steps, latents, count)


@pytest.mark.slow
@settings(max_examples=120)
@HISTORIES
def test_many_histories_read_the_same(memory_url, steps, latents, count):
    check_history(memory_url, steps, latents, count)


def check_history(memory_url, steps, latents, count):
    opened = rows_only(memory_url())
    parts = list(opened.view.parts("tokens"))
    opened, at = put_codes(opened, parts[:3]), 3
    compact(opened)
    for step, what in steps:
        live = list(opened.refresh().view.parts("codes"))
        if step == "add":
            wanted = [p for p in parts[at : at + what] if p in opened.view.parts("tokens")]
            opened, at = put_codes(opened.refresh(), wanted), at + what
        elif step == "compact":
            compact(opened, what)
        elif step == "replace" and what in live:
            opened = replace(opened.refresh(), what)
        elif what in live and len(live) > 1:
            retire(opened, [what], "test", group="codes" if step.endswith("codes") else "tokens")
    opened = opened.refresh()
    check_same(opened, latents, count)
    report = store.verify(opened)
    assert report.problems == []


class Counting:
    """A storage that counts which objects are read."""

    def __init__(self, inner):
        self.inner, self.url, self.read = inner, inner.url, []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def get(self, key, most=None):
        self.read.append(key)
        return self.inner.get(key, most)


def counted(opened):
    """Return the store anew, its commits read, and the list of what is read from then on."""
    storage = Counting(opened.view.storage)
    record = {"store": opened.id, "part_rows": opened.part_rows, "part_stride": opened.part_stride}
    made = store.Store(storage, record, opened.view.pin)
    assert all(made.coverage.values())
    storage.read.clear()
    return made, storage.read


def test_the_codes_of_a_latent_are_one_or_two_files_however_many_parts_there_are(compacted):
    opened = compacted
    made, read = counted(opened)
    made.strongest("codes", [7], 5)
    assert not [key for key in read if "/parts/" in key]
    assert 1 <= len([key for key in read if key.endswith("rows.index.parquet")]) <= 2
    read.clear()
    made.strongest("codes", [7], 5)
    assert [key for key in read if "manifest" in key] == []  # checked once


def test_a_query_of_a_latent_reads_the_files_that_hold_it_and_one_of_all_reads_all(compacted):
    opened = compacted
    (key,) = index_keys(opened.view.storage, "codes", "by_latent")
    files = len(load_index(opened.view.storage, opened.id, key).files)
    assert files > 4
    for condition, least, most in (
        ((pl.col("latent") == 7) & (pl.col("value") > 0), 1, 2),
        (pl.col("latent").is_in([7, 250]), 2, 4),
        (pl.col("value") > 0.5, files, files),
        (pl.col("value").is_not_null() | (pl.col("latent") == 3), files, files),
        (pl.col("latent") == pl.col("latent").max(), files, files),
    ):
        made, read = counted(opened)
        found = made.table("codes_by_latent").filter(condition).collect()
        assert least <= len([k for k in read if "rows.index" in k and "assets" in k]) <= most
        assert not [key for key in read if "/parts/" in key]
        plain = made.without_indexes().table("codes_by_latent").filter(condition).collect()
        assert in_order(found).equals(in_order(plain))


def test_a_table_of_many_parts_is_few_files(compacted):
    opened = compacted
    parts = len(opened.view.parts("tokens"))
    (found,) = [one for one in compact(opened, ["labels"]) if one.table == "scalars"]
    assert found.parts == parts
    assert found.files * 2 <= parts
    made, read = counted(opened)
    made.arrow("labels")
    assert len([key for key in read if "rows.index" in key]) == found.files
    assert not [key for key in read if "/parts/" in key]


def test_columns_and_limits_of_a_query_are_kept(compacted):
    opened = compacted
    frame = opened.table("codes_by_latent")
    assert frame.filter(pl.col("latent") == 7).select("row").collect().columns == ["row"]
    assert len(frame.head(10).collect()) == 10
    some = frame.filter(pl.col("latent") > 3).select("value").head(5).collect()
    assert some.shape == (5, 1)
    assert frame.select(pl.len()).collect().item() == len(opened.arrow("codes"))


def test_a_pin_reads_through_an_index_what_it_saw_and_nothing_that_came_later(memory_url):
    opened = rows_only(memory_url())
    parts = list(opened.view.parts("tokens"))
    opened = put_codes(opened, parts[:6])
    pin = opened.pin()
    opened = put_codes(opened, parts)
    compact(opened)
    pinned = store.open(opened.url, pin=pin)
    assert set(pinned.strongest("codes", range(LATENTS))["row"].to_numpy() // 512) <= set(parts[:6])
    check_same(pinned, [1, 2, 3], 4)
    made, read = counted(pinned)
    made.strongest("codes", [3])
    assert not [key for key in read if "/parts/" in key]


def test_of_two_indexes_the_larger_is_used_and_the_other_adds_to_it(memory_url):
    opened = rows_only(memory_url())
    parts = list(opened.view.parts("tokens"))
    opened = put_codes(opened, parts[:3])
    compact(opened, ["codes"])
    opened = put_codes(opened, parts)
    pin = opened.pin()
    compact(opened, ["codes"])
    retire(opened, parts[3:], "test", group="codes")
    assert len(index_keys(opened.view.storage, "codes", "by_latent")) == 2
    check_same(opened.refresh(), [5, 6], 3)
    assert pin


def test_a_store_with_indexes_travels_between_processes(tmp_path, compacted_objects):
    compacted = store.open(plant(str(tmp_path / "s"), compacted_objects))
    for opened in (compacted, compacted.without_indexes()):
        opened.strongest("codes", [1])
        thawed = pickle.loads(pickle.dumps(opened))
        assert thawed.strongest("codes", [1]).equals(opened.strongest("codes", [1]))
        assert thawed._indexes.used is opened._indexes.used
        assert thawed._indexes.view is thawed.view
    assert not compacted.without_indexes().refresh()._indexes.used


def test_strongest_refuses_what_is_no_latent_and_no_codes(memory_url):
    opened = made_store(memory_url())
    for bad in ([-1], [1 << 32], [0.5]):
        with pytest.raises(InvalidInputError, match="bad-latents"):
            opened.strongest("codes", bad)
    with pytest.raises(NotFoundError, match="table-missing"):
        opened.strongest("labels", [1])
    with pytest.raises(NotFoundError, match="group-missing"):
        opened.strongest("nothing", [1])
    assert len(opened.strongest("codes", [])) == 0


def test_a_group_without_codes_yet_has_no_strongest(memory_url):
    opened = rows_only(memory_url())
    opened = put_codes(opened, [])
    compact(opened)
    assert len(opened.strongest("codes", [1, 2], 3)) == 0
    assert index_keys(opened.view.storage, "codes") == []


def test_masked_and_dense_groups_read_the_same(memory_url):
    opened = small_store(memory_url(), LENGTHS, part_rows=256, part_stride=512)
    found = compact(opened)
    assert {one.table for one in found if one.group == "sample"} == {"scalars"}
    assert [one for one in found if one.group in {"acts", "stat"}] == []
    opened = opened.refresh()
    assert opened.arrow("sample").equals(opened.without_indexes().arrow("sample"))
    assert opened.digest() == opened.without_indexes().digest()
    assert store.verify(opened).ok
