import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import store
from store import tables
from store.testing.faults import overwrite, plant
from store.testing.small import LENGTHS, codes_of, small_store, tokens_store, values_of
from store.testing.strategies import cuts

COLUMNS = {"h": "bfloat16[16]", "y": "int8", "t": "float32[3]"}


def written(url, pieces, *, provenance=None, seed=0, masked=False):
    made = tokens_store(url)
    ids = made.row_ids()
    options = {"recipe": {}, "provenance": provenance, "masked": masked}
    with made.writer("g", columns=COLUMNS, **options) as writer:
        for low, high in pieces:
            declared = writer.group.columns.values()
            writer.put(ids[low:high], {c.name: values_of(ids[low:high], c, seed) for c in declared})
    with made.writer("codes", columns={"c": "codes"}, recipe={}) as writer:
        for low, high in pieces:
            writer.put(ids[low:high], {"c": codes_of(ids[low:high])})
    return made.refresh()


@pytest.fixture(scope="module")
def whole(memory_url):
    return written(memory_url(), [(0, sum(LENGTHS))]).digest()


@given(st.data())
@settings(max_examples=8)
def test_the_digest_knows_no_pieces_attempts_or_provenance(memory_url, whole, data):
    pieces = data.draw(cuts(sum(LENGTHS)))
    made = written(memory_url(), pieces, provenance={"host": data.draw(st.text("abc"))})
    assert made.digest() == whole


def test_the_digest_knows_values_rows_recipes_and_columns(memory_url, whole):
    everything = [(0, sum(LENGTHS))]
    others = [written(memory_url(), everything, seed=1).digest()]
    others.append(written(memory_url(), everything, masked=True).digest())
    small = small_store(memory_url())
    others += [small.digest(), small.digest(["acts"]), small.digest(["labels"])]
    assert len({whole, *others}) == 1 + len(others)


def test_the_digest_knows_a_column_type_not_only_its_bytes(memory_url):
    def of(spec):
        made = tokens_store(memory_url(), [30])
        with made.writer("g", columns={"h": spec}, recipe={}) as writer:
            writer.put(made.row_ids(), {"h": np.zeros((30, 16), spec.partition("[")[0])})
        return made.refresh().digest(["g"])

    assert len({of("float32[16]"), of("int32[16]"), of("uint32[16]")}) == 3


def test_the_digest_of_a_pin_is_the_digest_of_what_it_saw(memory_url):
    made = tokens_store(memory_url(), LENGTHS[:5], seal=False)
    pin, digest = made.pin(), made.digest()
    with made.writer("tokens", recipe={"source": "small", "lengths": list(LENGTHS[:5])}) as w:
        w.put([store.TokenSequence(token_ids=[1, 2])])
        w.seal()
    assert made.refresh().digest() != digest
    assert store.open(made.url, pin=pin).digest() == digest


def test_the_digest_is_what_the_format_says(oracle, small_path):
    reader = oracle("numpy_reader").NumpyReader(small_path)
    assert oracle("digest").digest(reader, typed_columns) == store.open(small_path).digest()
    wanted = store.open(small_path).digest(["acts", "sample"])
    assert oracle("digest").digest(reader, typed_columns, {"acts", "sample"}) == wanted


def typed_columns(data):
    """(name, type, values) of a Parquet file, with the names FORMAT.md §7 uses."""

    def name_of(kind):
        if pa.types.is_fixed_size_list(kind):
            return f"list[{kind.list_size}] of {name_of(kind.value_type)}"
        return {"float": "float32", "double": "float64", "halffloat": "float16"}.get(
            str(kind), str(kind)
        )

    table = pq.read_table(pa.BufferReader(data))
    for field in table.schema:
        yield field.name, name_of(field.type), table.column(field.name).to_pylist()


def test_the_digest_does_not_know_how_parquet_was_written():
    data = tables.table({"row": np.arange(9), "t": np.arange(27, dtype=np.float32).reshape(9, 3)})
    renamed = data.cast(
        pa.schema([("row", pa.int64()), ("t", pa.list_(pa.field("other", pa.float32()), 3))])
    )
    for name in data.column_names:
        chunked = pa.concat_tables([renamed.slice(0, 4), renamed.slice(4)])
        assert tables.column_hash(chunked.column(name)) == tables.column_hash(data.column(name))


def test_summaries_and_the_latent_sorted_copy_are_not_part_of_it(small_memory_url, small_objects):
    made = store.open(small_memory_url)
    digest = made.digest()
    for key in small_objects:
        if key.endswith("by_latent.parquet"):
            overwrite(made.view.storage, key, None)
    assert made.refresh().digest() == digest
    assert not store.verify(made).ok


def test_equal_objects_make_equal_stores(memory_url, small_objects):
    one, other = (store.open(plant(memory_url(), small_objects)) for _ in range(2))
    assert one.digest() == other.digest()
    assert one.pin_id() == other.pin_id()
