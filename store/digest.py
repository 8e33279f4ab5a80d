"""The logical digest: what a store says, without who wrote it, when, in which attempt or in what bytes.

sha256 over one line and one value hash for every (group, part, column), in sorted order. Equal digests are what
"logically identical" means: a store whose writer was killed and run again has the digest of one that was not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from store.commits import Commit
from store.schema import Group, canonical
from store.view import View

_TABLES = {
    "tokens.parquet",
    "sequences.parquet",
    "documents.parquet",
    "scalars.parquet",
    "codes.parquet",
    "rows.parquet",
}


def digest(view: View, groups: Sequence[str]) -> str:
    """Return the digest of some groups, hex."""
    total = hashlib.sha256()
    for name in sorted(groups):
        group = view.group(name)
        for part in view.parts(name):
            commit = view.commit(name, part)
            for column, values in _columns(view, group, commit):
                line = [name, group.recipe_hash, part, column, commit.rows, values]
                total.update(canonical(line) + b"\n")
    return total.hexdigest()


def _columns(view: View, group: Group, commit: Commit) -> list[tuple[str, str]]:
    found = []
    for path in sorted(set(commit.objects) & _TABLES):
        data = view.table(commit, path)
        found += [
            (f"{path}:{name}", table_column_hash(data.column(name))) for name in data.column_names
        ]
    for column in group.columns.values():
        if column.kind == "dense":
            hasher = hashlib.sha256()
            shard = view.shard(commit, column)
            step = max(256, (16 << 20) // column.row_bytes // 256 * 256)
            buffer = np.empty((min(step, commit.rows), *column.shape), column.stored)
            for low in range(0, commit.rows, step):
                rows = buffer[: min(step, commit.rows - low)]
                shard.read(low, low + len(rows), rows)
                hasher.update(rows.data)
            found.append((column.name, hasher.hexdigest()))
    return sorted(found)


def table_column_hash(values: Any) -> str:
    """Return the hash of a table column: its type, which values are null, and the values.

    Strings and lists are hashed as lengths and contents, numbers as little-endian arrays (nulls as zeros).
    """
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    hasher = hashlib.sha256(f"{array.type} {len(array)}\n".encode())
    hasher.update(np.packbits(np.asarray(array.is_null())).tobytes())
    _hash_values(hasher, array)
    return hasher.hexdigest()


def _hash_values(hasher: Any, array: Any) -> None:
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        texts = [b"" if text is None else text.encode() for text in array.to_pylist()]
        hasher.update(np.array([len(text) for text in texts], "<i8").tobytes())
        hasher.update(b"".join(texts))
    elif pa.types.is_fixed_size_list(array.type) or pa.types.is_list(array.type):
        hasher.update(np.asarray(pa.compute.list_value_length(array).fill_null(0)).astype("<i8"))
        _hash_values(hasher, array.flatten())
    else:
        hasher.update(np.ascontiguousarray(array.fill_null(0).to_numpy(zero_copy_only=False)))
