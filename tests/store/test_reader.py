import pickle

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import store
from store import InvalidInputError, NotFoundError
from store.rows import decoded
from store.testing.faults import plant
from store.testing.small import DENSE, LENGTHS, SCALARS, codes_of, fill, tokens_store, values_of

COLUMNS = [f"acts:{name}" for name in DENSE] + [f"labels:{name}" for name in SCALARS]


@pytest.fixture(scope="module")
def opened(small_objects):
    return store.open(plant("memory://tests-reader", small_objects))


@given(st.data())
@settings(max_examples=40)
def test_any_range_reads_what_was_put(opened, data):
    name = data.draw(st.sampled_from(COLUMNS))
    edge = st.none() | st.integers(-2000, 2000)
    rows = slice(data.draw(edge), data.draw(edge))
    ids = opened.row_ids()[rows]
    assert np.array_equal(opened.row_ids(rows), ids)
    assert np.array_equal(opened.read(name, rows), values_of(ids, opened.column(name)))


@given(st.data())
@settings(max_examples=40)
def test_gather_is_fancy_indexing(opened, data):
    name = data.draw(st.sampled_from(COLUMNS))
    at = data.draw(st.lists(st.integers(0, sum(LENGTHS) - 1), max_size=50))
    ids = opened.row_ids()[np.array(at, np.int64)]
    assert np.array_equal(opened.gather(name, ids), values_of(ids, opened.column(name)))


@pytest.mark.parametrize("name", ["acts:h", "labels:triple"])
def test_raw_gives_the_bits_of_bfloat16_in_shards_and_tables(opened, name):
    bits = opened.read(name, raw=True)
    assert bits.dtype == np.uint16
    assert np.array_equal((bits.astype(np.uint32) << 16).view(np.float32), opened.read(name))
    assert np.array_equal(opened.gather(name, opened.row_ids()[::-1], raw=True), bits[::-1])


@pytest.mark.parametrize("name", ["acts:h", "labels:triple", "acts:f"])
def test_stored_values_are_returned_as_both_kinds_of_columns_are(opened, name):
    column = opened.column(name)
    read = opened.read(name)
    stored = opened.read(name, raw=True) if column.bits else read
    for raw in (False, True):
        found = decoded(stored, column, raw=raw)
        assert np.array_equal(found, opened.read(name, raw=raw))
        assert found.dtype == opened.read(name, raw=raw).dtype


def test_row_ids_are_unique_ascending_and_name_their_part(opened):
    ids = opened.row_ids()
    assert (np.diff(ids) > 0).all()
    assert len(ids) == sum(LENGTHS)
    for part in opened.view.parts("tokens"):
        mine = ids[ids // opened.part_stride == part] % opened.part_stride
        assert np.array_equal(mine, np.arange(opened.view.commit("tokens", part).rows))


def test_row_ids_do_not_move_when_rows_are_added(memory_url):
    url = memory_url()
    ids = tokens_store(url, LENGTHS[:5], seal=False).row_ids()
    made = store.open(url)
    with made.writer("tokens", recipe={"source": "small", "lengths": list(LENGTHS[:5])}) as writer:
        writer.put([store.TokenSequence(token_ids=np.arange(400))])
        writer.seal()
    assert np.array_equal(made.refresh().row_ids()[: len(ids)], ids)


def test_sequences_come_whole(opened):
    table = opened.arrow("sequences").to_pydict()
    found = opened.sequences("acts:h", table["seq_id"])
    assert [len(rows) for rows in found] == list(LENGTHS) == table["rows"]
    for first, rows in zip(table["first_row"], found, strict=True):
        wanted = values_of(first + np.arange(len(rows)), opened.column("acts:h"))
        assert np.array_equal(rows, wanted)


def test_masked_groups_read_gather_and_name_their_rows(opened):
    ids = opened.row_ids(group="sample")
    assert 0 < len(ids) < sum(LENGTHS)
    for name in ("sample:h", "sample:y"):
        column = opened.column(name)
        assert np.array_equal(opened.read(name), values_of(ids, column))
        assert np.array_equal(opened.read(name, slice(5, 300)), values_of(ids[5:300], column))
        mixed = np.random.default_rng(1).permutation(ids)
        assert np.array_equal(opened.gather(name, mixed), values_of(mixed, column))
    other = np.setdiff1d(opened.row_ids(), ids)[:3]
    with pytest.raises(NotFoundError, match=f"row {other[0]} "):
        opened.gather("sample:h", other)
    with pytest.raises(InvalidInputError) as caught:
        opened.sequences("sample:h", [0])
    assert caught.value.kind == "masked-group"


def test_codes_come_sorted_both_ways(opened):
    wanted = codes_of(opened.row_ids())
    by_row, by_latent = opened.arrow("codes").to_pydict(), opened.table("codes_by_latent").collect()
    rows = sorted(
        zip(wanted.row.tolist(), wanted.latent.tolist(), wanted.value.tolist(), strict=True)
    )
    assert rows == list(zip(by_row["row"], by_row["latent"], by_row["value"], strict=True))
    for part in opened.view.parts("codes"):
        mine = by_latent.filter(pl.col("row") // opened.part_stride == part)
        keys = [(latent, -value, row) for row, latent, value in mine.iter_rows()]
        assert keys == sorted(keys)
    assert sorted(by_latent.rows()) == rows


def test_tables_are_the_same_through_polars_and_arrow(opened):
    for name in ("tokens", "sequences", "documents", "labels", "codes", "sample"):
        assert opened.table(name).collect().to_arrow().to_pydict() == opened.arrow(name).to_pydict()
    joined = opened.tokens().join(opened.table("labels"), on="row").collect()
    assert len(joined) == sum(LENGTHS)
    assert opened.tokens().filter(pl.col("split") == 1).collect()["row"].is_sorted()


def test_tables_of_groups_nobody_filled_are_empty(memory_url):
    made = tokens_store(memory_url())
    made.writer("labels", columns={"y": "float32", "z": "int8[3]"}, recipe={})
    made.writer("codes", columns={"c": "codes"}, recipe={})
    made = made.refresh()
    assert made.arrow("labels").schema.names == ["row", "y", "z"]
    assert made.table("labels").collect().shape == (0, 3)
    assert made.arrow("codes").num_rows == made.table("codes_by_latent").collect().height == 0
    assert made.read("y").shape == (0,)
    assert made.read("z").shape == (0, 3)


def test_a_group_name_with_an_equals_sign_makes_no_column(tmp_path):
    made = fill(tokens_store(tmp_path / "s", [40]), "seed=3", {"y": "float32"})
    assert made.table("seed=3").collect().columns == ["row", "y"]


def test_without_polars_lazy_tables_say_what_to_install(opened, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "polars", None)
    with pytest.raises(InvalidInputError, match="pip install polars") as caught:
        opened.tokens()
    assert caught.value.kind == "missing-package"
    assert opened.arrow("tokens").num_rows == sum(LENGTHS)


def test_the_parts_of_a_group_written_by_two_writers_join(memory_url):
    made = tokens_store(memory_url())
    columns = {"zz": "int32", "aa": "float32"}
    for part in made.view.parts("tokens"):  # each joins the group the first declared
        with made.writer("labels", columns=columns, recipe={}) as writer:
            ids = part * made.part_stride + np.arange(made.view.commit("tokens", part).rows)
            declared = {c.name: c for c in writer.group.columns.values()}
            writer.put(ids, {name: values_of(ids, declared[name]) for name in columns})
    made = made.refresh()
    assert made.arrow("labels").num_rows == sum(LENGTHS)
    assert np.array_equal(made.read("zz"), values_of(made.row_ids(), made.column("zz")))


def test_what_is_there_is_listed(opened):
    assert list(opened.groups) == ["tokens", "acts", "codes", "labels", "sample", "stat"]
    assert opened.sites == ["acts:f", "acts:h", "acts:i", "sample:h"]
    coverage = opened.coverage
    assert coverage["acts"].complete
    assert coverage["acts"].sealed
    assert coverage["acts"].rows == coverage["tokens"].rows == sum(LENGTHS)
    assert coverage["sample"].rows < coverage["acts"].rows
    assert "loss" not in opened.sites


CALLS = {
    "column": (lambda s: s.read("nothing"), "column-missing"),
    "group": (lambda s: s.read("nothing:h"), "group-missing"),
    "column-of-group": (lambda s: s.read("acts:nothing"), "column-missing"),
    "ambiguous": (lambda s: s.read("h"), "ambiguous-column"),
    "step": (lambda s: s.read("f", slice(0, 9, 2)), "bad-rows"),
    "backwards": (lambda s: s.read("f", slice(9, 0, -1)), "bad-rows"),
    "codes": (lambda s: s.read("codes:codes"), "column-kind"),
    "partial": (lambda s: s.read("stat:state"), "column-kind"),
    "partial-of-rows": (lambda s: s.partial("acts:h", 0), "column-kind"),
    "partial-of-no-part": (lambda s: s.partial("stat:state", 99), "part-missing"),
    "partial-table": (lambda s: s.arrow("stat"), "table-missing"),
    "gather-codes": (lambda s: s.gather("codes:codes", [0]), "column-kind"),
    "row-behind-part": (lambda s: s.gather("f", [1000]), "row-missing"),
    "row-negative": (lambda s: s.gather("f", [-1]), "row-missing"),
    "row-far": (lambda s: s.gather("f", [10**12]), "row-missing"),
    "row-in-parts-far-apart": (lambda s: s.gather("f", [0, 10**8 * 1024 - 1]), "row-missing"),
    "row-behind-sample": (lambda s: s.gather("sample:h", [10**6]), "row-missing"),
    "row-out-of-another-form": (
        lambda s: s.read("f", out=np.empty((1045, 4, 5), np.float64)),
        "bad-out",
    ),
    "row-float": (lambda s: s.gather("f", [1.5]), "bad-rows"),
    "sequence": (lambda s: s.sequences("f", [1]), "seq-missing"),
    "sequence-far": (lambda s: s.sequences("f", [10**9]), "part-missing"),
    "table": (lambda s: s.arrow("acts"), "table-missing"),
    "table-unknown": (lambda s: s.table("nothing"), "group-missing"),
    "by-latent-of-scalars": (lambda s: s.table("labels_by_latent"), "table-missing"),
    "pin": (lambda s: store.open(s.url, pin="0" * 64), "pin-missing"),
    "pin-path": (lambda s: store.open(s.url, pin="../store"), "pin-missing"),
    "asset": (lambda s: s.asset("0" * 64), "asset-missing"),
    "store": (lambda s: store.open("memory://nobody-made-this"), "store-missing"),
    "scheme": (lambda s: store.open("ftp://x"), "unsupported-url"),
}


@pytest.mark.parametrize(("call", "kind"), CALLS.values(), ids=CALLS)
def test_what_is_not_there_is_said_clearly(opened, call, kind):
    with pytest.raises(store.StoreError) as caught:
        call(opened)
    assert caught.value.kind == kind
    assert "Nothing" in caught.value.message
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_store_on_disk_travels_between_processes(small_path):
    made = store.open(small_path)
    made.read("acts:h", slice(0, 10))
    back = pickle.loads(pickle.dumps(made))
    assert np.array_equal(back.read("acts:h"), made.read("acts:h"))


def test_opening_a_store_that_is_there_joins_or_refuses(url):
    made = tokens_store(url)
    assert store.create(url, part_rows=512, part_stride=1024).id == made.id
    with pytest.raises(store.ConflictError) as caught:
        store.create(url, part_rows=256, part_stride=1024)
    assert caught.value.kind == "store-differs"
