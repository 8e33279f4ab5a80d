"""The sections about what was read: the store, its columns, its corpus and splits.

They show the summary a caller hands in (a plain dictionary, see :data:`SUMMARY`); none of it is
read here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jobs.report import numbers
from jobs.report.markup import (
    Html,
    code,
    definitions,
    details,
    element,
    join,
    meter,
    section,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SUMMARY = """{"url": str, "store": str, "pin": str, "digest": str,
 "groups": [{"name": str, "rows": int, "parts": int, "sealed": bool, "bytes": int, "recipe": {…},
             "columns": [{"name": str, "dtype": str, "shape": [int, …], "bytes": int}, …]}, …],
 "splits": [{"split": str, "documents": int, "rows": int}, …],
 "verify": {"ok": bool, "checked_bytes": int, "problems": [str, …]}}"""
"""What a store summary holds; a key that is missing leaves out its part of the page."""

_SHOWN_FACTS, _SHOWN_ENTRIES = 14, 40

_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def store(key: str, summary: Mapping[str, Any]) -> Html:
    """Return the store section: identity, proof, groups, columns."""
    groups = list(summary.get("groups", []))
    facts = definitions(
        [
            ("address", _code(summary.get("url"))),
            ("store", _code(summary.get("store"))),
            ("pin", _code(summary.get("pin"))),
            ("digest", _code(summary.get("digest"))),
            ("verified", _verified(summary.get("verify"))),
        ]
    )
    parts = [facts]
    if groups:
        parts += [_groups(groups), _columns(groups), _recipes(groups)]
    return section(key, "Store", *parts)


def _code(value: Any) -> Html | None:
    return None if value is None else code(value)


def _verified(outcome: Mapping[str, Any] | None) -> Html | None:
    if outcome is None:
        return None
    read = numbers.size(outcome.get("checked_bytes", 0))
    problems = list(outcome.get("problems", []))
    if outcome.get("ok") and not problems:
        return element("span", f"✓ {read} read back, no problem found", class_="good")
    noun = "problem" if len(problems) == 1 else "problems"
    said = f"✗ {len(problems)} {noun} in {read} read back"
    listed = element("ul", *(element("li", problem) for problem in problems))
    return join([element("span", said, class_="bad"), listed])


def _groups(groups: list[Mapping[str, Any]]) -> Html:
    rows = next((g.get("rows", 0) for g in groups if g.get("name") == "tokens"), 0)
    rows = rows or max((g.get("rows", 0) for g in groups), default=0)
    head = ("group", "rows", "coverage", "parts", "state", "size")
    lines = [
        (
            code(group.get("name", "")),
            numbers.count(group.get("rows", 0)),
            _coverage(group.get("rows", 0), rows),
            numbers.count(group.get("parts", 0)),
            "sealed" if group.get("sealed") else "open",
            numbers.size(_bytes(group)),
        )
        for group in groups
    ]
    total = numbers.size(sum(_bytes(group) for group in groups))
    return table(f"Groups of columns, {total} in all", head, lines)


def _bytes(group: Mapping[str, Any]) -> int:
    columns = group.get("columns", [])
    return int(group.get("bytes") or sum(column.get("bytes", 0) for column in columns))


def _coverage(rows: int, of: int) -> Html:
    share = rows / of if of else 0.0
    return join([meter(share), " ", numbers.share(share)])


def _columns(groups: list[Mapping[str, Any]]) -> Html:
    head = ("column", "dtype", "shape", "size", "per row")
    lines = []
    for group in groups:
        for column in group.get("columns", []):
            size, rows = column.get("bytes", 0), group.get("rows", 0)
            lines.append(
                (
                    code(f"{group.get('name', '')}:{column.get('name', '')}"),
                    column.get("dtype", ""),
                    " × ".join(str(side) for side in column.get("shape", [])) or "–",
                    numbers.size(size) if size else "–",
                    numbers.size(size / rows) if size and rows else "–",
                )
            )
    return details(f"{len(lines)} columns", table("Columns", head, lines, text_columns=2))


def _recipes(groups: list[Mapping[str, Any]]) -> Html:
    blocks = [
        join([element("h4", code(group.get("name", ""))), pretty(group["recipe"])])
        for group in groups
        if group.get("recipe")
    ]
    return details("Recipes", *blocks) if blocks else Html("")


def pretty(value: Any) -> Html:
    """Return JSON values as indented text, long lists cut short: a recipe may name 10 000 files."""
    shown = json.dumps(_shortened(value), indent=2, ensure_ascii=False, default=str)
    return element("pre", shown, tabindex="0")


def _shortened(value: Any) -> Any:
    if isinstance(value, Mapping):
        items = list(value.items())
        kept = {str(name): _shortened(item) for name, item in items[:_SHOWN_ENTRIES]}
        rest = len(items) - _SHOWN_ENTRIES
        return kept | ({"…": f"{numbers.count(rest)} more"} if rest > 0 else {})
    if isinstance(value, list | tuple):
        rest = len(value) - _SHOWN_ENTRIES
        kept_items = [_shortened(item) for item in value[:_SHOWN_ENTRIES]]
        return kept_items + ([f"… {numbers.count(rest)} more"] if rest > 0 else [])
    return value


def corpus(key: str, summary: Mapping[str, Any]) -> Html:
    """Return the corpus section: where the rows come from and how documents were split."""
    tokens: Mapping[str, Any] = next(
        (g for g in summary.get("groups", []) if g.get("name") == "tokens"), {}
    )
    facts = list(_leaves(tokens.get("recipe") or {}))
    parts: list[Html] = []
    if splits := list(summary.get("splits", [])):
        parts.append(_splits(splits))
    if facts:
        parts.append(definitions(facts[:_SHOWN_FACTS]))
    if len(facts) > _SHOWN_FACTS:
        parts.append(element("p", "The whole recipe stands under Store, Recipes.", class_="note"))
    return section(key, "Corpus", *parts) if parts else Html("")


def _splits(splits: list[Mapping[str, Any]]) -> Html:
    total = sum(split.get("rows", 0) for split in splits)
    documents = sum(split.get("documents", 0) for split in splits)
    lines = [
        (
            _SPLITS.get(str(split.get("split")), split.get("split", "")),
            numbers.count(split.get("documents", 0)),
            numbers.count(split.get("rows", 0)),
            _coverage(split.get("rows", 0), total),
        )
        for split in splits
    ]
    said = f"{numbers.count(documents)} documents, {numbers.count(total)} rows, split by document"
    return table(said, ("split", "documents", "rows", "share of rows"), lines)


def _leaves(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the recipe's plain values by their path; lists by their length, hashes shortened."""
    for name, value in recipe.items():
        path = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path} ")
        elif isinstance(value, list):
            plain = all(isinstance(item, str | int | float) for item in value) and len(value) <= 4
            yield (
                path,
                ", ".join(map(str, value)) if plain else f"{numbers.count(len(value))} entries",
            )
        elif value is not None:
            yield path, _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    said = str(value)
    return code(f"{said[:12]}…") if len(said) > 40 and " " not in said else said
