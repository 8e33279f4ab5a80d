"""What a store holds, as plain JSON: for ``inspect``, ``tables`` and the report."""

from __future__ import annotations

from typing import Any

import numpy as np

from store import Report, Store, tables
from store.layout import shard_path
from store.partials import partial_path
from store.schema import Group
from store.tokens import SPLITS


def summarize(store: Store, *, report: Report | None = None) -> dict[str, Any]:
    """Return a store's groups, columns, bytes, coverage and splits.

    Reads every commit record and the tables of sequences and documents, no rows.

    Parameters
    ----------
    report
        A verification to tell of; it also holds the digest.
    """
    groups = [_group(store, group) for group in store.groups.values()]
    summary: dict[str, Any] = {
        "url": store.url,
        "store": store.id,
        "pin": store.pin_id() if groups else None,
        "part_rows": store.part_rows,
        "part_stride": store.part_stride,
        "groups": groups,
        "splits": _splits(store) if "tokens" in store.groups else [],
    }
    if report is not None:
        problems = [problem["message"] for problem in report.problems]
        summary["digest"] = report.digest
        summary["verify"] = {
            "ok": report.ok,
            "checked_bytes": report.checked_bytes,
            "problems": problems,
            "orphans": len(report.orphans),
        }
    return summary


def _group(store: Store, group: Group) -> dict[str, Any]:
    commits = [store.view.commit(group.name, part) for part in store.view.parts(group.name)]
    coverage = store.view.coverage(group.name)
    files = {
        column.name: partial_path(column.name)
        if column.kind == "partial"
        else shard_path(column.name, 1 + len(column.shape))
        for column in group.columns.values()
        if column.kind in {"dense", "partial"}
    }
    sizes = {
        name: sum(commit.objects[path].size for commit in commits) for name, path in files.items()
    }
    return {
        "name": group.name,
        "rows": coverage.rows,
        "parts": coverage.parts,
        "of_parts": coverage.tokens_parts,
        "sealed": coverage.sealed,
        "masked": group.masked,
        "bytes": sum(item.size for commit in commits for item in commit.objects.values()),
        "columns": [
            {
                "name": column.name,
                "kind": column.kind,
                "dtype": column.dtype or column.kind,
                "shape": list(column.shape),
                "codec": column.codec,
                "bytes": sizes.get(column.name, 0),
            }
            for column in group.columns.values()
        ],
        "recipe": dict(group.recipe),
        "recipe_hash": group.recipe_hash,
    }


def _splits(store: Store) -> list[dict[str, Any]]:
    rows = np.zeros(len(SPLITS), np.int64)
    documents: list[set[int]] = [set() for _ in SPLITS]
    for part in store.view.parts("tokens"):
        commit = store.view.commit("tokens", part)
        sequences = store.view.table(commit, "sequences.parquet")
        np.add.at(rows, tables.column(sequences, "split"), tables.column(sequences, "rows"))
        held = store.view.table(commit, "documents.parquet")
        split, doc_id = tables.column(held, "split"), tables.column(held, "doc_id")
        for number, mine in enumerate(documents):
            mine.update(doc_id[split == number].tolist())
    return [
        {"split": name, "documents": len(documents[i]), "rows": int(rows[i])}
        for i, name in enumerate(SPLITS)
    ]


def describe(summary: dict[str, Any]) -> str:
    """Return a summary as text."""
    lines = [
        f"{summary['url']}  store {summary['store']}",
        f"pin {summary['pin']}",
    ]
    lines += [
        f"  {split['split']:<6} {split['documents']:>8,} documents {split['rows']:>12,} rows"
        for split in summary["splits"]
    ]
    for group in summary["groups"]:
        state = "sealed" if group["sealed"] else "open"
        lines.append(
            f"group {group['name']}: {group['rows']:,} rows in {group['parts']} of {group['of_parts']} parts, "
            f"{state}, {group['bytes'] / 1e6:,.1f} MB, recipe {group['recipe_hash'][:12]}"
        )
        for column in group["columns"]:
            shape = "×".join(map(str, column["shape"]))
            size = f"{column['bytes'] / 1e6:,.1f} MB" if column["bytes"] else ""
            codec = column["codec"] if column["kind"] == "dense" else ""
            lines.append(
                f"    {column['name']:<28} {column['dtype']:<9} {shape:<9} {codec:<6} {size}"
            )
    return "\n".join(lines)
