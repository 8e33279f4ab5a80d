import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import store
from store import Codes, ConflictError, InvalidInputError, NotFoundError
from store.purge import add_tombstone
from store.schema import DTYPES, Column
from store.summary import bfloat16_bits, float32_of_bits
from store.testing.small import LENGTHS, codes_of, fill, tokens_store, values_of
from store.testing.strategies import columns, cuts, stored_values

ROWS = sum(LENGTHS)


@pytest.fixture(scope="module")
def tokens(memory_url):
    return tokens_store(memory_url())


@pytest.fixture(scope="module")
def numbers():
    """Counts up, so that groups of one store get names of their own."""
    return iter(range(10**6))


@given(st.data())
@settings(max_examples=20)
def test_put_in_any_pieces_reads_back_in_every_dtype_and_shape(tokens, numbers, data):
    declared = data.draw(st.lists(columns(), min_size=1, max_size=3))
    specs = {f"c{n}": column.spec for n, column in enumerate(declared)}
    ids = tokens.row_ids()
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    values = {}
    for name, spec in specs.items():
        column = Column.parse(name, spec)
        sample = data.draw(stored_values(column, 5))
        if column.dtype == "bfloat16" and not column.bits:
            sample = float32_of_bits(bfloat16_bits(sample))
            sample = np.where(np.isfinite(sample), sample, np.float32(1))
        elif column.bits:
            sample = float32_of_bits(sample)
        values[name] = sample[rng.integers(0, 5, ROWS)]
    with tokens.writer(f"g{next(numbers)}", columns=specs, recipe={}) as writer:
        for low, high in data.draw(cuts(ROWS)):
            writer.put(ids[low:high], {name: v[low:high] for name, v in values.items()})
    made = tokens.refresh()
    for name, wanted in values.items():
        found = made.read(f"{writer.group.name}:{name}")
        assert found.dtype == wanted.dtype
        assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ["", "[3]", "[16]", "[4,5]"])
def test_the_extremes_of_every_dtype_survive(tokens, numbers, dtype, shape):
    column = Column.parse("x", dtype + shape)
    if dtype == "bfloat16":
        pool = float32_of_bits(np.array([0, 0x8000, 1, 0x7F7F, 0xFF7F, 0x3F80], np.uint16))
    elif column.stored.kind == "f":
        info = np.finfo(column.stored)
        pool = np.array([0.0, -0.0, info.smallest_subnormal, info.max, info.min, info.eps])
        pool = pool.astype(column.stored)
    else:
        pool = np.array([0, 1, np.iinfo(dtype).min, np.iinfo(dtype).max], column.stored)
    values = np.random.default_rng(0).choice(pool, (ROWS, *column.shape))
    name = f"e{next(numbers)}"
    with tokens.writer(name, columns={"x": column.spec}, recipe={}) as writer:
        writer.put(tokens.row_ids(), {"x": values})
    assert tokens.refresh().read(f"{name}:x").tobytes() == values.tobytes()


@pytest.mark.parametrize("spec", ["bfloat16[16]", "bfloat16[3]", "bfloat16"])
def test_raw_bits_survive_with_all_their_nans(tokens, numbers, spec):
    column = Column.parse("x", spec)
    bits = np.random.default_rng(1).integers(0, 1 << 16, (ROWS, *column.shape), np.uint16)
    name = f"r{next(numbers)}"
    recipe = {"columns": {"x": spec}, "recipe": {}, "allow_nonfinite": True}
    with tokens.writer(name, **recipe) as writer:
        writer.put(tokens.row_ids(), {"x": bits}, raw=True)
    made = tokens.refresh()
    assert np.array_equal(made.read(f"{name}:x", raw=True), bits)
    widened = made.read(f"{name}:x").view(np.uint32)
    assert np.array_equal(widened, bits.astype(np.uint32) << 16)


def test_bits_of_another_width_are_refused(tokens, numbers):
    writer = tokens.writer(f"w{next(numbers)}", columns={"x": "bfloat16[4]"}, recipe={})
    with pytest.raises(InvalidInputError, match=r"raw=True takes uint16 bits") as caught:
        writer.put(tokens.row_ids(), {"x": np.zeros((ROWS, 4), np.float32)}, raw=True)
    assert caught.value.kind == "dtype-mismatch"


PUTS = {
    "missing-column": ({"h": ...}, "missing-column"),
    "unknown-column": ({"h": ..., "y": ..., "z": 0}, "unknown-column"),
    "width": ({"h": np.zeros((90, 15))}, "width-mismatch"),
    "no-width": ({"h": np.zeros(90)}, "width-mismatch"),
    "fewer-rows": ({"h": np.zeros((89, 16))}, "rows-mismatch"),
    "text": ({"h": np.full((90, 16), "x")}, "dtype-mismatch"),
    "complex": ({"h": np.zeros((90, 16), complex)}, "dtype-mismatch"),
    "floats-into-integers": ({"y": np.zeros(90)}, "dtype-mismatch"),
    "too-large": ({"y": np.full(90, 300)}, "out-of-range"),
    "too-small": ({"y": np.full(90, -129)}, "out-of-range"),
    "unsigned": ({"y": np.full(90, 200, np.uint8)}, "out-of-range"),
    "nan": ({"h": np.full((90, 16), np.nan)}, "nonfinite"),
    "infinite": ({"h": np.full((90, 16), np.inf)}, "nonfinite"),
    "rounds-to-infinity": ({"h": np.full((90, 16), 3.4e38)}, "nonfinite"),
    "float64-too-large": ({"h": np.full((90, 16), 1e300)}, "nonfinite"),
}


@pytest.mark.parametrize(("bad", "kind"), PUTS.values(), ids=PUTS)
def test_values_that_do_not_fit_are_refused_and_nothing_is_left(memory_url, bad, kind):
    made = tokens_store(memory_url())
    good = {"h": np.ones((90, 16), np.float32), "y": np.ones(90, np.int8)}
    values = {name: good.get(name, v) if v is ... else v for name, v in bad.items()}
    if kind not in {"missing-column", "unknown-column"}:
        values = {**good, **values}
    writer = made.writer("g", columns={"h": "bfloat16[16]", "y": "int8"}, recipe={})
    with pytest.raises(InvalidInputError, match="committed parts stand") as caught:
        writer.put(made.row_ids(slice(0, 90)), values)
    assert caught.value.kind == kind
    assert made.view.storage.folders("groups/g/parts") == []
    assert made.refresh().view.parts("g") == {}


def test_the_row_that_is_not_finite_is_named(memory_url):
    made = tokens_store(memory_url())
    ids = made.row_ids()
    values = np.ones((len(ids), 16), np.float32)
    values[700, 3] = np.nan
    recipe = {"columns": {"h": "float32[16]"}, "recipe": {}}
    with made.writer("g", **recipe) as writer:
        writer.put(ids[:600], {"h": values[:600]})
        with pytest.raises(InvalidInputError, match=f"row {ids[700]}") as caught:
            writer.put(ids[600:], {"h": values[600:]})
    assert caught.value.where["row"] == ids[700]
    assert list(made.refresh().view.parts("g")) == [0]
    with made.writer("g", **recipe, allow_nonfinite=True) as writer:
        writer.put(ids, {"h": values})
    assert np.array_equal(made.refresh().read("h"), values, equal_nan=True)


ROW_ORDERS = {
    "repeated": ([0, 1, 1], "row-order"),
    "descending": ([2, 1, 0], "row-order"),
    "gap": ([0, 1, 3], "row-missing"),
    "late-start": ([1, 2, 3], "row-missing"),
    "behind-the-part": (list(range(600)), "row-missing"),
    "no-such-part": ([10**7], "part-missing"),
    "negative": ([-3, -2], "part-missing"),
    "floats": ([0.5, 1.5], "bad-rows"),
}


@pytest.mark.parametrize(("ids", "kind"), ROW_ORDERS.values(), ids=ROW_ORDERS)
def test_row_ids_that_are_not_the_next_are_refused(tokens, numbers, ids, kind):
    writer = tokens.writer(f"o{next(numbers)}", columns={"y": "float32"}, recipe={})
    with pytest.raises(store.StoreError) as caught:
        writer.put(ids, {"y": np.zeros(len(ids))})
    assert caught.value.kind == kind


def test_leaving_with_an_incomplete_part_names_the_missing_rows(url):
    made = tokens_store(url)
    ids = made.row_ids()
    first = made.view.commit("tokens", 0).rows
    writer = made.writer("g", columns={"h": "float32[16]"}, recipe={})
    with pytest.raises(InvalidInputError, match=r"rows 1190…\d+ are missing") as caught, writer:
        writer.put(ids[: first + 166], {"h": np.ones((first + 166, 16))})
    assert caught.value.kind == "part-incomplete"
    made = made.refresh()
    assert list(made.view.parts("g")) == [0]
    assert store.verify(made).orphans == []


def test_an_interrupt_leaves_committed_parts_and_nothing_else(url):
    made = tokens_store(url)
    writer = made.writer("g", columns={"h": "float32[16]"}, recipe={})

    def interrupted():
        with writer:
            writer.put(made.row_ids(slice(0, 700)), {"h": np.ones((700, 16))})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    report = store.verify(made.refresh())
    assert report.ok
    assert report.orphans == []
    assert list(made.refresh().view.parts("g")) == [0]


def test_a_second_run_completes_and_seals(memory_url):
    url = memory_url()
    made = tokens_store(url)
    whole = fill(tokens_store(memory_url()), "g", {"h": "bfloat16[16]"})
    recipe = {"by": "small", "seed": 0}
    with made.writer("g", columns={"h": "bfloat16[16]"}, recipe=recipe) as writer:
        ids = np.arange(made.view.commit("tokens", 0).rows)
        writer.put(ids, {"h": values_of(ids, writer.group.columns["h"])})
    assert not made.refresh().coverage["g"].sealed
    with made.writer("g", columns={"h": "bfloat16[16]"}, recipe=recipe) as writer:
        assert writer.done(0)
        ids = made.row_ids()
        writer.put(ids, {"h": values_of(ids, writer.group.columns["h"])})
        assert writer.passed_rows == made.view.commit("tokens", 0).rows
    made = made.refresh()
    assert made.coverage["g"].sealed
    assert made.digest() == whole.digest()


def test_another_recipe_or_other_columns_are_refused_and_say_what_differs(memory_url):
    made = fill(tokens_store(memory_url()), "g", {"y": "float32"})
    for declared, recipe, what in (
        ({"y": "float32"}, {"by": "small", "seed": 1}, "recipe.seed"),
        ({"y": "float16"}, {"by": "small", "seed": 0}, "columns.y.spec"),
        ({"y": "float32", "z": "int8"}, {"by": "small", "seed": 0}, "columns.z"),
    ):
        with pytest.raises(ConflictError, match=what) as caught:
            made.writer("g", columns=declared, recipe=recipe)
        assert caught.value.kind == "group-recipe"


DECLARED = {
    "none": ({}, "column-kind"),
    "ragged": ({"x": "ragged:float32"}, "column-kind"),
    "partial-and-scalars": ({"x": "partial", "y": "float32"}, "column-kind"),
    "partial-and-codes": ({"x": "partial", "y": "codes"}, "column-kind"),
    "codes-and-scalars": ({"x": "codes", "y": "float32"}, "column-kind"),
    "two-codes": ({"x": "codes", "y": "codes"}, "column-kind"),
    "nonsense": ({"x": "string"}, "bad-column"),
}


@pytest.mark.parametrize(("columns", "kind"), DECLARED.values(), ids=DECLARED)
def test_columns_no_writer_makes_are_refused_before_anything_is_written(tokens, columns, kind):
    with pytest.raises(InvalidInputError, match="Nothing was written") as caught:
        tokens.writer("never", columns=columns, recipe={})
    assert caught.value.kind == kind
    assert "never" not in tokens.refresh().groups


@pytest.mark.parametrize("name", ["sequences", "documents", "x_by_latent", "a/b", "", "../x"])
def test_group_names_that_would_collide_are_refused(tokens, name):
    with pytest.raises(InvalidInputError) as caught:
        tokens.writer(name, columns={"y": "float32"}, recipe={})
    assert caught.value.kind == "bad-name"


def test_an_unknown_codec_is_refused_before_the_name_is_taken(tokens):
    with pytest.raises(InvalidInputError, match=r"known: .*raw") as caught:
        tokens.writer("never", columns={"h": "float32[16]"}, recipe={}, codec="magic")
    assert caught.value.kind == "unknown-name"
    assert "never" not in tokens.refresh().groups


def test_masked_groups_take_ascending_samples_only(memory_url):
    made = tokens_store(memory_url())
    columns = {"y": "float32"}
    with made.writer("m", columns=columns, recipe={}, masked=True) as writer:
        writer.put([3, 7], {"y": [1.0, 2.0]})
        writer.put([9, 1030], {"y": [3.0, 4.0]})
        with pytest.raises(InvalidInputError) as caught:
            writer.put([11], {"y": [5.0]})
        assert caught.value.kind == "row-order"
        writer.put([2050], {"y": [6.0]})
        with pytest.raises(InvalidInputError) as caught:
            writer.put([2049], {"y": [7.0]})
        assert caught.value.kind == "row-missing"
    made = made.refresh()
    assert made.row_ids(group="m").tolist() == [3, 7, 9]
    assert made.read("y").tolist() == [1, 2, 3]
    add_tombstone(made, [0], "asked to")
    made = made.live()
    assert len(made.read("y")) == 0
    with pytest.raises(NotFoundError, match="row 3 "):
        made.gather("y", [3])


CODES = {
    "foreign-row": Codes(row=np.array([500]), latent=np.array([1]), value=np.array([1.0])),
    "descending": Codes(row=np.array([5, 4]), latent=np.array([1, 1]), value=np.ones(2)),
    "lengths": Codes(row=np.array([5]), latent=np.array([1, 2]), value=np.ones(1)),
    "negative": Codes(row=np.array([5]), latent=np.array([-1]), value=np.ones(1)),
    "floats": Codes(row=np.array([5.0]), latent=np.array([1]), value=np.ones(1)),
    "array": np.zeros((90, 3)),
}


@pytest.mark.parametrize("codes", CODES.values(), ids=CODES)
def test_codes_that_are_not_of_the_rows_are_refused(tokens, codes, numbers):
    writer = tokens.writer(f"k{next(numbers)}", columns={"c": "codes"}, recipe={})
    with pytest.raises(InvalidInputError) as caught:
        writer.put(np.arange(90), {"c": codes})
    assert caught.value.kind == "codes-mismatch"


def test_more_codes_a_row_than_readers_take_are_refused_and_nothing_is_committed(tokens, numbers):
    name = f"c{next(numbers)}"
    ids = tokens.row_ids()
    many = Codes(row=np.zeros(600, np.int64), latent=np.arange(600), value=np.ones(600, np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("store.commits.MAX_CODES_A_ROW", 1 / 4)
        writer = tokens.writer(name, columns={"codes": "codes"}, recipe={})
        with pytest.raises(InvalidInputError, match="Nothing was committed") as caught:
            writer.put(ids, {"codes": many})
    assert caught.value.kind == "part-refused"
    assert tokens.refresh().view.parts(name) == {}


def test_codes_that_are_not_finite_are_refused(tokens, numbers):
    writer = tokens.writer(f"k{next(numbers)}", columns={"c": "codes"}, recipe={})
    codes = codes_of(np.arange(90))
    codes.value[5] = np.inf
    with pytest.raises(InvalidInputError, match=f"row {codes.row[5]}") as caught:
        writer.put(np.arange(90), {"c": codes})
    assert caught.value.kind == "nonfinite"


def test_codes_may_be_absent_everywhere(memory_url):
    made = tokens_store(memory_url())
    none = Codes(row=np.empty(0, np.int64), latent=np.empty(0, np.uint32), value=np.empty(0))
    with made.writer("c", columns={"c": "codes"}, recipe={}) as writer:
        writer.put(made.row_ids(), {"c": none})
    assert made.refresh().arrow("c").num_rows == 0
    assert store.verify(made).ok


def test_a_group_without_tokens_is_refused(memory_url):
    with pytest.raises(store.NotFoundError) as caught:
        store.create(memory_url()).writer("g", columns={"y": "float32"}, recipe={})
    assert caught.value.kind == "group-missing"
