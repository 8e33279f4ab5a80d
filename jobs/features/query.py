"""SQL over a store: tokens, sequences, documents and every group join by ``row``.

Tables are Polars lazy frames over the committed, verified files. ``documents`` has one line a document (the store
keeps one a part, with its slice of text: that table is ``document_parts``). A group of dense columns is a table
too: its columns are read from shards only where the query names them, as fixed-size arrays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.errors import JobError
from store import Store
from store.schema import Group

if TYPE_CHECKING:
    import polars as pl

_FIXED = ("tokens", "sequences", "documents", "document_parts")
_BLOCK_ROWS = 4096


def table_names(store: Store) -> list[str]:
    """Return every name a query may use."""
    names = list(_FIXED)
    for name, group in store.groups.items():
        if name != "tokens":
            names.append(name)
            if _kinds(group) == {"codes"}:
                names.append(f"{name}_by_latent")
    return names


def frame(store: Store, name: str) -> pl.LazyFrame:
    """Return one table as a lazy frame.

    Raises
    ------
    NotFoundError
        ``group-missing``, with the known ones.
    """
    if name == "documents":
        return _documents(store)
    if name == "document_parts":
        return store.table("documents")
    if name in _FIXED or name not in store.groups:
        return store.table(name)
    group = store.groups[name]
    return store.table(name) if "codes" in _kinds(group) else _wide(store, group)


def query(store: Store, sql: str) -> pl.DataFrame:
    """Run a SQL query (Polars' dialect).

    Raises
    ------
    JobError
        ``bad-sql``: the query cannot be understood or names something that is not there.
    """
    import polars as pl

    names = table_names(store)
    used = [name for name in names if re.search(rf"(?<![\w.]){re.escape(name)}(?![\w])", sql)]
    context = pl.SQLContext({name: frame(store, name) for name in used})
    try:
        return context.execute(sql, eager=True)
    except pl.exceptions.PolarsError as error:
        raise JobError(
            f"the query cannot be run: {str(error).splitlines()[0]}. The tables are {', '.join(names)} "
            "(`actlake tables URL` lists their columns). Nothing was changed.",
            kind="bad-sql",
        ) from error


def _documents(store: Store) -> pl.LazyFrame:
    import polars as pl

    pieces = store.table("documents").drop("text")
    return pieces.group_by("doc_id").agg(
        pl.col("name", "sha256", "split").first(),
        pl.col("first_row").min(),
        pl.col("rows").sum(),
        pl.col("char_start").min(),
        pl.col("char_end").max(),
    )


def _kinds(group: Group) -> set[str]:
    return {column.kind for column in group.columns.values()}


def _wide(store: Store, group: Group) -> pl.LazyFrame:
    """Return a group's row ids, scalars and dense columns; only named columns are read."""
    import polars as pl
    from polars.io.plugins import register_io_source

    schema: dict[str, Any] = {"row": pl.Int64()}
    for column in group.columns.values():
        plain = pl.Float32() if column.dtype == "bfloat16" else _polars_dtype(column.stored)
        schema[column.name] = pl.Array(plain, int(np.prod(column.shape))) if column.shape else plain

    def read(
        with_columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        del batch_size
        for block in _blocks(store, group, with_columns or list(schema), schema, n_rows):
            yield block if predicate is None else block.filter(predicate)

    return register_io_source(read, schema=pl.Schema(schema))


def _blocks(
    store: Store, group: Group, names: list[str], schema: dict[str, Any], n_rows: int | None
) -> Iterator[pl.DataFrame]:
    import polars as pl

    total = store.view.coverage(group.name).rows if n_rows is None else n_rows
    for low in range(0, total, _BLOCK_ROWS):
        rows = slice(low, min(low + _BLOCK_ROWS, total))
        columns: dict[str, pl.Series] = {}
        for name in names:
            values = (
                store.row_ids(rows, group.name)
                if name == "row"
                else store.read(f"{group.name}:{name}", rows)
            )
            flat = values.reshape(len(values), -1) if name != "row" and values.ndim > 1 else values
            columns[name] = pl.Series(name, flat, dtype=schema[name])
        yield pl.DataFrame(columns)


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
