"""SQL over a store: tokens, sequences, documents and every group join by ``row``.

Tables are Polars lazy frames over the committed, verified files. ``documents`` has one line a document (the store
keeps one a part, with its slice of text: that table is ``document_parts``). A group of dense columns is a table
too: its columns are read from shards only where the query names them, as fixed-size arrays. A query reads and
changes nothing; names with dots or dashes are quoted: ``"grad.atp"``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.errors import JobError
from store import Store, tables
from store.commits import Commit
from store.rows import decoded
from store.schema import Column, Group

if TYPE_CHECKING:
    import polars as pl

Array = np.ndarray[Any, np.dtype[Any]]
_FIXED = ("tokens", "sequences", "documents", "document_parts")
_BLOCK_ROWS = 4096
_FOREIGN = re.compile(r"\b((?:read|scan)_\w+)\s*\(", re.I)
_READS = re.compile(
    r"(?:\s|\(|--[^\n]*(?:\n|$)|/\*.*?\*/)*(?:select|with|from|values|explain|show|table|describe)\b",
    re.IGNORECASE | re.DOTALL,
)


def table_names(store: Store) -> list[str]:
    """Return every name a query may use."""
    names = list(_FIXED)
    for name, group in store.groups.items():
        if name not in _FIXED and "partial" not in _kinds(group):
            names.append(name)
            if "codes" in _kinds(group):
                names.append(f"{name}_by_latent")
    return names


def frame(store: Store, name: str) -> pl.LazyFrame:
    """Return one table as a lazy frame.

    Raises
    ------
    NotFoundError
        ``group-missing``, with the known ones; ``table-missing``: a group of partial columns has none.
    """
    if name == "documents":
        return _documents(store)
    if name == "document_parts":
        return store.table("documents")
    if name in _FIXED or name not in store.groups:
        return store.table(name)
    group = store.groups[name]
    return store.table(name) if _kinds(group) & {"codes", "partial"} else _wide(store, group)


def query(store: Store, sql: str) -> pl.DataFrame:
    """Run a SQL query (Polars' dialect).

    Raises
    ------
    JobError
        ``bad-sql``: the query cannot be understood, names something that is not there, or would change something.
    StoreError
        What it reads is damaged or gone.
    """
    import polars as pl

    names = table_names(store)
    if not _READS.match(sql):
        raise _bad_sql("a query starts with SELECT, WITH, FROM, VALUES, EXPLAIN or SHOW", names)
    if foreign := _FOREIGN.search(sql):
        raise _bad_sql(f"{foreign[1]} would read files outside the store", names)
    used = [name for name in names if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", sql)]
    context = pl.SQLContext({name: frame(store, name) for name in used})
    try:
        return context.execute(sql, eager=True)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise _bad_sql(
            (str(error).strip() or type(error).__name__).splitlines()[0], names
        ) from error


def _bad_sql(found: str, names: list[str]) -> JobError:
    return JobError(
        f"the query cannot be run: {found.rstrip('.')}. The tables are {', '.join(names)} (`actlake tables URL` "
        "lists their columns); quote names with dots or dashes. Nothing was changed. Mend the query.",
        kind="bad-sql",
    )


def _documents(store: Store) -> pl.LazyFrame:
    import polars as pl

    pieces = store.table("documents").drop("text")
    whole = pieces.group_by("doc_id").agg(
        pl.col("name", "sha256", "split").first(),
        pl.col("first_row").min(),
        pl.col("rows").cast(pl.Int64).sum(),
        pl.col("char_start").min(),
        pl.col("char_end").max(),
    )
    return whole.sort("doc_id")


def _kinds(group: Group) -> set[str]:
    return {column.kind for column in group.columns.values()}


def _wide(store: Store, group: Group) -> pl.LazyFrame:
    """Return a group's row ids, scalars and dense columns; only named columns are read."""
    import polars as pl
    from polars.io.plugins import register_io_source

    schema: dict[str, Any] = {"row": pl.Int64()}
    for column in group.columns.values():
        plain = pl.Float32() if column.dtype == "bfloat16" else _polars_dtype(column.stored)
        schema[column.name] = pl.Array(plain, math.prod(column.shape)) if column.shape else plain

    def read(
        with_columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        del batch_size
        names = list(schema) if with_columns is None else with_columns
        for block in _blocks(store, group, names, schema, n_rows):
            yield block if predicate is None else block.filter(predicate)

    return register_io_source(read, schema=pl.Schema(schema))


def _blocks(
    store: Store, group: Group, names: list[str], schema: dict[str, Any], limit: int | None
) -> Iterator[pl.DataFrame]:
    """Yield the first ``limit`` rows of a group, part by part."""
    import polars as pl

    left = store.view.coverage(group.name).rows if limit is None else limit
    for part in store.view.parts(group.name):
        if not left:
            return
        commit = store.view.commit(group.name, part)
        kept = store.view.kept(commit)
        first = part * store.part_stride
        ids = np.arange(first, first + commit.rows) if kept is None else kept
        for low in range(0, min(commit.rows, left), _BLOCK_ROWS):
            high = min(low + _BLOCK_ROWS, commit.rows, left)
            columns = {
                name: ids[low:high]
                if name == "row"
                else _values(store, commit, group.columns[name], low, high)
                for name in names
            }
            yield pl.DataFrame(
                [pl.Series(name, values, dtype=schema[name]) for name, values in columns.items()]
            )
        left -= min(commit.rows, left)


def _values(store: Store, commit: Commit, column: Column, low: int, high: int) -> Array:
    """Return rows of a column as Polars takes them: shapes flattened, bfloat16 widened."""
    if column.kind == "scalar":
        held = tables.column(store.view.table(commit, "scalars.parquet"), column.name)[low:high]
        return held.reshape(high - low, *([math.prod(column.shape)] if column.shape else []))
    raw = np.empty((high - low, *column.shape), column.stored)
    store.view.shard(commit, column).read(low, high, raw)
    return decoded(raw, column, raw=False).reshape(high - low, math.prod(column.shape))


def _polars_dtype(dtype: np.dtype[Any]) -> Any:
    import polars as pl

    return pl.Series(np.empty(0, dtype if dtype != np.float16 else np.float32)).dtype


def render_frame(found: pl.DataFrame, max_rows: int) -> str:
    """Return a result as a text table of at most ``max_rows`` rows."""
    import polars as pl

    with pl.Config(
        tbl_rows=max_rows,
        tbl_cols=-1,
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        fmt_str_lengths=60,
        tbl_width_chars=160,
    ):
        text = str(found)
    more = f"\n({len(found) - max_rows:,} more rows)" if len(found) > max_rows else ""
    return text + more


def describe_tables(store: Store) -> list[dict[str, Any]]:
    """Return every table's name, rows and columns with their types."""
    found = []
    for name in table_names(store):
        data = frame(store, name)
        found.append(
            {
                "table": name,
                "rows": _rows(store, name, data),
                "columns": {column: str(kind) for column, kind in data.collect_schema().items()},
            }
        )
    return found


def _rows(store: Store, name: str, data: pl.LazyFrame) -> int:
    import polars as pl

    group = store.groups.get(name)
    if group is not None and name != "tokens" and "codes" not in _kinds(group):
        return store.view.coverage(name).rows
    return int(data.select(pl.len()).collect().item())
