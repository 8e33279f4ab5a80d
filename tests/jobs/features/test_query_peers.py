"""DuckDB over a store's Parquet files and ``actlake query`` over the store give the same answers."""

import json

import numpy as np
import pyarrow as pa
import pytest

from jobs import cli
from jobs.features import query
from store.maintenance import retire
from store.testing.small import small_store

duckdb = pytest.importorskip("duckdb")

TABLES = {
    "tokens": "tokens",
    "sequences": "sequences",
    "document_parts": "documents",
    "labels": "labels",
    "codes": "codes",
    "codes_by_latent": "codes_by_latent",
}
"""What a query calls a table, and what the store does."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of several parts, one of them retired: its files are there, and are nobody's."""
    opened = small_store(tmp_path_factory.mktemp("peers") / "s")
    retire(opened, [1], "a test")
    return opened.refresh()


@pytest.fixture
def duck(made):
    """DuckDB with every table of the store, and a dense column beside them as Arrow."""
    with duckdb.connect() as connection:
        for name, ours in TABLES.items():
            files = f"read_parquet({made.files(ours)})"
            connection.sql(f"create view {name} as select * from {files}")
        ids, rows = made.row_ids(), made.read("acts:h")
        values = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
        connection.register("acts", pa.table({"row": ids, "h": values}))
        yield connection


def rows_of(found):
    return [tuple(plain(value) for value in row) for row in found]


def plain(value):
    return list(value) if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_the_same_in_both(made, duck, name):
    theirs = duck.sql(f"select * from {name}").to_arrow_table().to_pydict()
    assert len(next(iter(theirs.values()))) > 0
    assert theirs == query(made, f"SELECT * FROM {name}").to_dict(as_series=False)
    assert theirs == made.table(TABLES[name]).collect().to_dict(as_series=False)
    assert theirs == made.arrow(TABLES[name]).to_pydict()


QUERIES = {
    "codes and tokens": (
        "SELECT t.token_id, count(*) AS n, max(c.value) AS top FROM tokens t JOIN codes c ON c.row = t.row "
        "GROUP BY t.token_id ORDER BY n DESC, t.token_id LIMIT 20"
    ),
    "the rows of a latent": (
        "SELECT c.row, c.latent, c.value, t.pos FROM codes_by_latent c JOIN tokens t ON t.row = c.row "
        "WHERE c.latent IN (7, 8, 9) ORDER BY c.value DESC, c.row, c.latent"
    ),
    "scalars of sequences": (
        "SELECT s.seq_id, count(*) AS n, min(l.loss) AS low, max(l.count) AS high FROM labels l "
        "JOIN tokens t ON t.row = l.row JOIN sequences s ON s.seq_id = t.seq_id GROUP BY s.seq_id ORDER BY s.seq_id"
    ),
    "dense rows of the most active tokens": (
        "SELECT c.row, c.latent, a.h FROM codes c JOIN acts a ON a.row = c.row "
        "ORDER BY c.value DESC, c.row, c.latent LIMIT 30"
    ),
    "dense rows of a condition": (
        "SELECT l.row, l.triple, a.h FROM labels l JOIN acts a ON a.row = l.row JOIN tokens t ON t.row = l.row "
        "WHERE l.loss > 1 AND t.split = 1 ORDER BY l.row"
    ),
}


@pytest.mark.parametrize("sql", QUERIES.values(), ids=QUERIES)
def test_both_answer_a_join_by_row_alike(made, duck, sql):
    theirs, ours = duck.sql(sql), query(made, sql)
    assert ours.columns == theirs.columns
    assert len(ours) >= 10
    assert rows_of(ours.rows()) == rows_of(theirs.fetchall())


def test_dense_rows_that_are_joined_are_the_stores_own(made, duck):
    sql = QUERIES["dense rows of the most active tokens"]
    found = duck.sql(sql).fetchall()
    rows = np.array([row for row, _, _ in found])
    wanted = made.gather("acts:h", rows)
    assert np.array_equal(np.array([h for _, _, h in found], np.float32), wanted)


def test_the_verb_prints_what_duckdb_finds(made, duck, capsys):
    sql = QUERIES["the rows of a latent"]
    assert cli.main(["query", made.url, sql, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    found = duck.sql(sql).to_arrow_table().to_pylist()
    assert said == found


def test_a_pattern_of_names_finds_rows_that_are_nobodys(made, duck):
    """Why the list of files is the committed one: what was retired lies there until it is collected."""
    pattern = f"{made.url}/groups/codes/parts/*/*/codes.parquet"
    count = 'select count(distinct "row") from {}'
    every = duck.sql(count.format(f"read_parquet('{pattern}')")).fetchall()[0][0]
    assert every > duck.sql(count.format("codes")).fetchall()[0][0] == len(made.row_ids())
