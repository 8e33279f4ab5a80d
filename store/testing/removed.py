"""What holds of a store some documents of which were removed: what is read, and what no object may hold."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

import store
from store import tables
from store.index_records import ROWS
from store.reader import Store
from store.testing.small import fill, values_of
from store.tokens import Document, TokenSequence

Array = np.ndarray[Any, np.dtype[Any]]
DENSE = ("acts:h", "acts:f", "acts:i")
SCALARS = ("loss", "count", "triple")
TABLES = ("tokens", "labels", "codes", "codes_by_latent")


def documents_of(opened: Store) -> dict[int, int]:
    """Return row id → document, of a store nothing was removed from."""
    table = opened.arrow("tokens")
    return dict(zip(table["row"].to_pylist(), table["doc_id"].to_pylist(), strict=True))


def left(opened: Store, gone: Collection[int]) -> Array:
    """Return the ids of the rows of a store nothing was removed from that are of none of some documents."""
    return np.array([r for r, doc in documents_of(opened).items() if doc not in gone], np.int64)


def check_shows(made: Store, ids: Array, whole: Store) -> None:
    """Assert that every way of reading a small store shows exactly some rows, with the values they had.

    Parameters
    ----------
    whole
        The same store with nothing removed.
    """
    assert made.row_ids().tolist() == ids.tolist()
    assert made.coverage["acts"].rows == len(ids)
    for name in DENSE + SCALARS:
        wanted = values_of(ids, made.column(name))
        assert np.array_equal(made.read(name), wanted), name
        assert np.array_equal(made.gather(name, ids[::-1]), wanted[::-1])
        assert np.array_equal(made.read(name, slice(3, 40)), wanted[3:40])
    _check_tables(made, ids, whole)
    kept = whole.row_ids(group="sample")
    kept = kept[np.isin(kept, ids)]
    assert made.row_ids(group="sample").tolist() == kept.tolist()
    assert np.array_equal(made.read("sample:h"), values_of(kept, made.column("sample:h")))
    _check_windows(made, ["acts:h", "loss"], ids)
    _check_windows(made, ["sample:y", "acts:i"], kept)


def _check_tables(made: Store, ids: Array, whole: Store) -> None:
    shown = whole.arrow("tokens").to_pandas().set_index("row").loc[ids]
    assert made.read("token_id").tolist() == shown["token_id"].tolist()
    for name in TABLES:
        old = whole.arrow(name)
        wanted = old.filter(np.isin(old["row"].to_numpy(), ids))
        assert made.arrow(name).equals(wanted), name
        assert made.table(name).collect().to_arrow().cast(old.schema).equals(wanted), name


def _check_windows(made: Store, columns: list[str], wanted: Array) -> None:
    seen = []
    for window in made.windows(columns, seed=3, window_rows=300):
        seen += window.row_ids.tolist()
        for name in columns:
            assert np.array_equal(
                window.columns[name], values_of(window.row_ids, made.column(name))
            )
    assert sorted(seen) == wanted.tolist()
    assert len(wanted) < 20 or seen != wanted.tolist()


def check_holds_nothing_of(made: Store, gone: Collection[int]) -> None:
    """Assert that no object of a store holds anything of some documents: every table, every slot, every file."""
    known = set()
    for name, group in made.groups.items():
        for part in made.view.parts(name):
            commit = made.view.stored_commit(name, part)
            known |= {commit.prefix + path for path in commit.objects}
            for path in commit.objects:
                if path.endswith(".parquet") and path != "rows.parquet":
                    data = made.view.objects.stored_table(commit, path)
                    assert data.equals(made.view.table(commit, path)), path
                    if "doc_id" in data.column_names:
                        assert not set(data["doc_id"].to_pylist()) & set(gone)
            slots = made.view.slots(commit)
            for column in group.columns.values():
                if column.kind == "dense" and slots is not None:
                    out = np.ones((commit.slots, *column.shape), column.stored)
                    made.view.objects.open_shard(commit, column).read(0, commit.slots, out)
                    empty = np.setdiff1d(np.arange(commit.slots), slots)
                    assert not out[empty].any()
                    assert len(empty) == commit.purged > 0
    assert {key for key in made.view.storage.keys("groups") if "/parts/" in key} == known
    check_indexes(made, gone)


def check_indexes(made: Store, gone: Collection[int]) -> None:
    """Assert that no file of an index holds them, whether a record names it or not."""
    storage, shown = made.view.storage, made.row_ids()
    for key in [key for key in storage.keys("assets") if key.endswith(ROWS)]:
        data = tables.decode(storage.get(key), key)
        if "doc_id" in data.column_names:
            assert not set(data["doc_id"].to_pylist()) & set(gone), key
        if "row" in data.column_names:
            assert np.isin(tables.column(data, "row"), shown).all(), key


def packed_store(url: str) -> Store:
    """Two documents in one sequence, a third over two sequences, in two parts."""
    docs = [Document(doc_id=n, name=f"d{n}", text="abcdefgh" * 64) for n in range(4)]
    made = store.create(url, part_rows=256, part_stride=256)
    with made.writer("tokens", recipe={}) as writer:
        for spans in (
            [(0, 0, 60), (1, 60, 100)],
            [(1, 0, 100)],
            [(2, 0, 100)],
            [(2, 0, 90), (3, 90, 100)],
        ):
            at = np.arange(100)
            writer.put(
                [
                    TokenSequence(
                        token_ids=at,
                        spans=[(docs[d], low, high) for d, low, high in spans],
                        char_start=at,
                        char_end=at + 1,
                    )
                ]
            )
        writer.seal()
    return fill(made.refresh(), "acts", {"h": "bfloat16[16]"})
