"""SQL over a store: every table joins by row, only what is named is read, and bad SQL is one error."""

from __future__ import annotations

import importlib

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import JobError
from jobs.features import describe_tables, frame, query, render_frame, table_names
from store.errors import CorruptError, NotFoundError
from store.shard_reader import ShardReader

TABLES = (
    "tokens", "sequences", "documents", "document_parts", "act", "acts", "codes", "codes_by_latent",
    "grad.x-1", "sample",
)  # fmt: skip


@pytest.fixture
def shards_read(monkeypatch):
    """Note which columns' shards are read."""
    seen = []
    read = ShardReader.read

    def spying(self, *arguments, **options):
        seen.append((self._column.name, arguments[:2]))
        return read(self, *arguments, **options)

    monkeypatch.setattr(ShardReader, "read", spying)
    return seen


def column(found, name):
    return found[name].to_numpy()


def test_every_group_is_a_table(held):
    assert sorted(table_names(held)) == sorted(TABLES)
    assert len(set(table_names(held))) == len(table_names(held))


# -- joins -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "address"),
    [("acts", "acts:h.1"), ('"grad.x-1"', "grad.x-1:h.1"), ("sample", "s"), ("acts", "wide")],
)
def test_dense_groups_join_the_tokens_by_row(held, table, address):
    name = address.rpartition(":")[2]
    sql = f'SELECT t.row, t.token_id, a."{name}" AS x FROM tokens t JOIN {table} a ON t.row = a.row ORDER BY t.row'
    found = query(held, sql)
    group = held.view.resolve(address)[0].name
    ids = held.row_ids(group=group)
    assert column(found, "row").tolist() == ids.tolist()
    np.testing.assert_array_equal(column(found, "token_id"), held.gather("token_id", ids))
    values = held.gather(address, ids).reshape(len(ids), -1)
    np.testing.assert_array_equal(np.stack(found["x"].to_list()), values)


def test_scalars_and_codes_join_by_row(held):
    found = query(
        held,
        "SELECT c.row, c.latent, c.value, a.loss, s.score, t.pos FROM codes c JOIN acts a ON a.row = c.row "
        "JOIN act s ON s.row = c.row JOIN tokens t ON t.row = c.row ORDER BY c.row, c.latent",
    )
    codes = held.arrow("codes")
    ids = codes.column("row").to_numpy()
    np.testing.assert_array_equal(column(found, "row"), ids)
    np.testing.assert_array_equal(column(found, "value"), codes.column("value").to_numpy())
    for name in ("loss", "score", "pos"):
        np.testing.assert_array_equal(column(found, name), held.gather(name, ids))


def test_scalar_columns_keep_their_shape_and_type(held):
    found = query(held, "SELECT row, pair, loss FROM acts")
    assert found.schema["pair"] == pl.Array(pl.Int16, 2)
    assert found.schema["loss"] == pl.Float32
    np.testing.assert_array_equal(np.stack(found["pair"].to_list()), held.read("pair"))


def test_codes_by_latent_are_the_same_codes_by_strength(held):
    found = query(held, "SELECT * FROM codes_by_latent")
    assert found.sort("row", "latent").equals(
        query(held, "SELECT * FROM codes ORDER BY row, latent")
    )


def test_sequences_and_documents_cover_the_tokens(held):
    found = query(
        held,
        "SELECT count(*) AS n, count(DISTINCT t.seq_id) AS s, count(DISTINCT t.doc_id) AS d FROM tokens t "
        "JOIN sequences q ON q.seq_id = t.seq_id JOIN documents o ON o.doc_id = t.doc_id",
    )
    rows = held.coverage["tokens"].rows
    assert found.row(0) == (
        rows,
        len(held.arrow("sequences")),
        len(query(held, "SELECT * FROM documents")),
    )


def test_documents_have_one_line_each_in_order(held):
    found = query(held, "SELECT * FROM documents")
    pieces = held.arrow("documents")
    ids = pieces.column("doc_id").to_numpy()
    assert len(ids) > len(set(ids))
    assert column(found, "doc_id").tolist() == sorted(set(ids))
    for n, doc_id in enumerate(column(found, "doc_id")):
        mine = pieces.filter(ids == doc_id).to_pydict()
        row = found.row(n, named=True)
        assert row["rows"] == sum(mine["rows"])
        assert (row["char_start"], row["char_end"]) == (
            min(mine["char_start"]),
            max(mine["char_end"]),
        )
        assert row["first_row"] == mine["first_row"][0]
        assert {row["name"]} == set(mine["name"])
    assert "text" not in found.columns
    assert query(held, "SELECT text FROM document_parts").height == len(ids)


# -- what is read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        ("SELECT count(*) AS n FROM acts", set()),
        ("SELECT row, loss FROM acts WHERE loss > 0.5", set()),
        ('SELECT row, "h.1" FROM acts WHERE loss > 0.5', {"h.1"}),
        ("SELECT wide FROM acts", {"wide"}),
        ("SELECT * FROM acts", {"h.1", "wide"}),
        ("SELECT row FROM tokens", set()),
        ("SELECT row FROM sample", set()),
        ("SELECT t.row FROM tokens t JOIN acts a ON a.row = t.row WHERE a.loss < 0.1", set()),
    ],
)
def test_dense_columns_are_read_only_where_named(held, shards_read, sql, columns):
    held = held.refresh()
    query(held, sql)
    assert {name for name, _ in shards_read} == columns
    assert len(shards_read) == len(columns) * len(held.view.parts("acts"))


def test_a_limit_reads_no_further(held, shards_read):
    found = query(held, "SELECT wide FROM acts LIMIT 5")
    assert found.height == 5
    assert [rows for _, rows in shards_read] == [(0, 5)]


@given(limit=st.integers(0, 3000), offset=st.integers(0, 600), bound=st.floats(0, 1))
def test_limits_and_filters_are_those_of_the_whole_table(held, limit, offset, bound):
    whole = query(held, 'SELECT row, loss, "h.1" FROM acts')
    cut = query(held, f'SELECT row, loss, "h.1" FROM acts LIMIT {limit} OFFSET {offset}')
    assert cut.equals(whole.slice(offset, limit))
    some = query(held, f'SELECT row, "h.1" FROM acts WHERE loss > {bound} LIMIT {limit}')
    assert some.equals(whole.filter(pl.col("loss") > bound).select("row", "h.1").head(limit))
    inner = f"SELECT row FROM (SELECT * FROM acts LIMIT {limit}) AS s WHERE loss > {bound}"
    assert query(held, inner).equals(whole.head(limit).filter(pl.col("loss") > bound).select("row"))


def test_tables_that_are_not_named_are_not_opened(held, monkeypatch):
    opened = []
    module = importlib.import_module("jobs.features.query")  # the name is also a function's
    monkeypatch.setattr(
        module, "frame", lambda store, name: opened.append(name) or frame(store, name)
    )
    query(held, "SELECT row FROM act")
    query(held, 'SELECT a.row FROM "grad.x-1" AS a')
    query(held, "SELECT 'sample' AS word FROM acts")
    query(held, "select row from codes_by_latent")
    assert opened[:2] == ["act", "grad.x-1"]
    assert "acts" in opened[2:]
    assert "codes_by_latent" in opened
    assert "codes" not in opened
    assert "tokens" not in opened


# -- what is refused ---------------------------------------------------------------------------------------

BAD = [
    "", "   ", ";", "SELECT", "SELECT FROM", "SELECT * FROM nope", "SELECT nope FROM tokens",
    "SELECT row FROM tokens; SELECT row FROM tokens", "SELECT row FROM tokens WHERE", "SELECT 'open FROM tokens",
    "SELECT row FROM grad.x-1", "SELECT sum(wide) FROM acts", "SELECT row FROM acts WHERE wide > 3",
    "SELECT row FROM tokens GROUP BY pos", "SELECT CAST(row AS nope) FROM tokens", "SELECT nope(row) FROM tokens",
    "SELECT row FROM tokens UNION SELECT row, pos FROM tokens", "SELECT t.row FROM tokens t JOIN acts a ON t.nope = a.row",
    "SELECT row FROM tokens WHERE row = 'x'", "SELECT strptime(row) FROM tokens", "SELECT \x00", "\x00",
    "SELECT * FROM read_csv('/nonexistent')", "SELECT CAST('x' AS INT) FROM tokens",
    "SELECT row FROM tokens LIMIT -1", "WITH q AS (SELECT 1", "(" * 400 + "SELECT 1" + ")" * 400,
    "DROP TABLE tokens", "DELETE FROM tokens", "TRUNCATE tokens", "INSERT INTO tokens VALUES (1)",
    "CREATE TABLE x AS SELECT * FROM tokens", "UPDATE tokens SET row = 1", "/* x */ DROP TABLE tokens",
    "-- x\nDROP TABLE tokens", "-- SELECT", "PRAGMA x", "SELECT x'zz'", "日本",
]  # fmt: skip


@pytest.mark.parametrize("sql", BAD, ids=[f"{n}-{sql[:24]!a}" for n, sql in enumerate(BAD)])
def test_bad_sql_is_one_clear_error(held, sql):
    with pytest.raises(JobError) as caught:
        query(held, sql)
    assert caught.value.kind == "bad-sql"
    message = str(caught.value)
    assert "\n" not in message
    assert "The tables are tokens, sequences" in message
    assert "Nothing was changed" in message


@given(sql=st.text(st.sampled_from("SELECT row,FROM tokens*()'\"-;=1 WHERE"), max_size=40))
def test_whatever_is_typed_is_an_answer_or_a_job_error(held, sql):
    kind = "bad-sql"
    try:
        query(held, f"SELECT {sql}")
    except JobError as error:
        kind = error.kind
    assert kind == "bad-sql"


@pytest.mark.parametrize(
    "error",
    [
        pl.exceptions.ComputeError("broken\nin two lines"), pl.exceptions.ShapeError("shapes"),
        pl.exceptions.SQLInterfaceError(""), pl.exceptions.PanicException("a panic"),
        pl.exceptions.OutOfBoundsError("far"), pl.exceptions.DuplicateError("twice"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_errors_of_polars_are_bad_sql(held, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(pl.SQLContext, "execute", fail)
    with pytest.raises(JobError, match="bad-sql") as caught:
        query(held, "SELECT row FROM tokens")
    assert "\n" not in str(caught.value)


def test_comments_and_brackets_may_come_first(held):
    found = query(held, "-- all\n/* of\n them */ (SELECT count(*) AS n FROM tokens)")
    assert found.item() == held.coverage["tokens"].rows
    assert query(held, "FROM tokens SELECT count(*) AS n").item() == found.item()


def test_damage_stays_damage_and_an_interrupt_an_interrupt(held, monkeypatch):
    for error in (CorruptError("damaged", kind="chunk-damaged"), KeyboardInterrupt()):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(ShardReader, "read", fail)
        with pytest.raises(type(error)):
            query(held.refresh(), "SELECT wide FROM acts")


def test_an_unknown_table_is_named(held):
    with pytest.raises(NotFoundError, match="group-missing"):
        frame(held, "nope")


# -- showing -----------------------------------------------------------------------------------------------


def test_results_are_shown_up_to_a_number_of_rows(held):
    found = query(held, "SELECT row, token_id FROM tokens ORDER BY row LIMIT 9")
    text = render_frame(found, 4)
    assert "(5 more rows)" in text
    assert "token_id" in text
    whole = render_frame(found, 9)
    assert "more rows" not in whole
    assert all(f"{row}" in whole for row in found["row"])


def test_tables_are_described_with_rows_and_types(held):
    found = {table["table"]: table for table in describe_tables(held)}
    assert set(found) == set(TABLES)
    for name, table in found.items():
        whole = frame(held, name).collect()
        assert table["rows"] == whole.height, name
        assert list(table["columns"]) == whole.columns
    assert found["acts"]["columns"]["h.1"] == "Array(Float32, shape=(16,))"


def test_a_store_without_rows_answers(make_tokens):
    import store

    empty = store.create("memory://query-empty", part_rows=256)
    empty.writer("tokens", recipe={"of": "tests"})
    empty = empty.refresh()
    for name in table_names(empty):
        assert query(empty, f'SELECT * FROM "{name}"').height == 0
    assert [table["rows"] for table in describe_tables(empty)] == [0] * 4
