"""The logical digest: what a store says, without who wrote it, when, in which attempt or in what bytes.

sha256 over one line and one value hash for every (group, part, column), in sorted order. Equal digests are what
"logically identical" means: a store whose writer was killed and run again has the digest of one that was not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from store import tables
from store.commits import Commit
from store.partials import partial_hash
from store.records import canonical
from store.schema import Group
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
    for name in sorted(set(groups)):
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
            (f"{path}:{name}", tables.column_hash(data.column(name))) for name in data.column_names
        ]
    for column in group.columns.values():
        if column.kind == "dense":
            hasher = hashlib.sha256(f"{column.spec} {commit.rows}\n".encode())
            shard = view.shard(commit, column)
            step = max(256, (16 << 20) // column.row_bytes // 256 * 256)
            buffer = np.empty((min(step, commit.rows), *column.shape), column.stored)
            for low in range(0, commit.rows, step):
                rows = buffer[: min(step, commit.rows - low)]
                shard.read(low, low + len(rows), rows)
                hasher.update(rows.data)
            found.append((column.name, hasher.hexdigest()))
        elif column.kind == "partial":
            found.append((column.name, partial_hash(view.objects.partial(commit, column))))
    return sorted(found)
