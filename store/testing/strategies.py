"""Hypothesis strategies for everything a store holds: shapes, values, sequences, cuts, orders, JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from store.layout import CHUNK_ROWS, ShardLayout
from store.schema import DTYPES, SCALAR_ELEMENTS, Column

Array = np.ndarray[Any, np.dtype[Any]]


def names() -> st.SearchStrategy[str]:
    """Legal names of groups and columns."""
    head = "abcXYZ019_"
    return st.builds(
        str.__add__, st.sampled_from(head), st.text(alphabet=head + ".@=-", max_size=20)
    )


def dtypes() -> st.SearchStrategy[str]:
    """Names of every dtype a column may have."""
    return st.sampled_from(sorted(DTYPES))


def shapes(*, dense: bool | None = None) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of a row; only those of dense, or of scalar, columns where said."""
    shape = st.lists(st.integers(1, 9), min_size=0, max_size=3).map(tuple)
    if dense is None:
        return shape
    return shape.filter(lambda s: (int(np.prod(s)) >= SCALAR_ELEMENTS) is dense)


def columns(*, dense: bool | None = None, name: str = "x") -> st.SearchStrategy[Column]:
    """Return declared columns."""

    def declare(dtype: str, shape: tuple[int, ...]) -> Column:
        spec = f"{dtype}[{','.join(map(str, shape))}]" if shape else dtype
        return Column.parse(name, spec)

    return st.builds(declare, dtypes(), shapes(dense=dense))


def shard_layouts() -> st.SearchStrategy[ShardLayout]:
    """Layouts of raw shards, of one row to a full part."""

    def lay(row_bytes: int, chunks: int, rows: int) -> ShardLayout:
        stride = chunks * CHUNK_ROWS
        return ShardLayout(row_bytes=row_bytes, rows=1 + rows % stride, stride_rows=stride)

    return st.builds(lay, st.integers(1, 40_000), st.integers(1, 64), st.integers(0, 1 << 20))


def stored_values(column: Column, rows: int, *, finite: bool = True) -> st.SearchStrategy[Array]:
    """Values ``[rows, *shape]`` in a column's stored dtype; any bit pattern where not ``finite``."""
    bits = np.dtype(f"u{column.stored.itemsize}")
    drawn = hnp.arrays(
        bits, (rows, *column.shape), elements=st.integers(0, 2 ** (8 * bits.itemsize) - 1)
    )
    if not finite:
        return drawn.map(lambda values: values.view(column.stored))
    return drawn.map(lambda values: _finite(values.view(column.stored), column))


def _finite(values: Array, column: Column) -> Array:
    if column.bits:
        return np.where((values & 0x7F80) == 0x7F80, values & 0x807F, values).astype(np.uint16)
    if values.dtype.kind == "f":
        return np.where(np.isfinite(values), values, values.dtype.type(1.5))
    return values


def cuts(rows: int, *, most: int = 6) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Ways to cut ``range(rows)`` into consecutive pieces, empty ones included."""
    edges = st.lists(st.integers(0, rows), max_size=most).map(sorted)
    return edges.map(lambda e: list(zip([0, *e], [*e, rows], strict=True)))


def lengths(*, longest: int, most: int = 12) -> st.SearchStrategy[list[int]]:
    """Lengths of sequences."""
    return st.lists(st.integers(1, longest), min_size=1, max_size=most)


def sequence_groups(*, longest: int, most: int = 10) -> st.SearchStrategy[list[list[int]]]:
    """Lengths of sequences that must share a part: pairs and single ones."""
    group = st.lists(st.integers(1, longest), min_size=1, max_size=2)
    return st.lists(group, min_size=1, max_size=most)


def conditions() -> st.SearchStrategy[tuple[str, str, Any]]:
    """Return filters over the tokens table."""
    return st.one_of(
        st.tuples(
            st.just("token_id"),
            st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
            st.integers(0, 999),
        ),
        st.tuples(st.just("pos"), st.sampled_from(["<", ">="]), st.integers(0, 80)),
        st.tuples(st.just("split"), st.just("in"), st.lists(st.integers(0, 2), max_size=3)),
        st.tuples(
            st.just("flags"), st.sampled_from(["has", "lacks"]), st.sampled_from([1, 2, 4, 6])
        ),
    )


def json_values() -> st.SearchStrategy[Any]:
    """JSON values as recipes hold them, floats included."""
    leaf = (
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats()
        | st.text(st.characters(codec="utf-8"), max_size=8)
    )
    text = st.text(st.characters(codec="utf-8"), max_size=5)
    return st.recursive(
        leaf,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
        max_leaves=12,
    )


def float32_values(count: int) -> st.SearchStrategy[Array]:
    """``float32[count]`` of any bit pattern: subnormals, infinities, NaN payloads."""
    return hnp.arrays(np.uint32, count, elements=st.integers(0, 2**32 - 1)).map(
        lambda bits: bits.view(np.float32)
    )
