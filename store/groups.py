"""Groups of a store: declared once under a recipe, sealed when they are complete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from store import layout
from store.codecs import CODECS
from store.commits import exists
from store.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    UnsupportedVersionError,
)
from store.records import canonical, differences, foreign_record, load_record, make_record
from store.schema import Column, Group
from store.storage import Storage


def declare_group(storage: Storage, store_id: str, group: Group) -> Group:
    """Create a group, or join the one of that name if its recipe and columns are the same.

    Raises
    ------
    ConflictError
        ``group-recipe``: the name is taken by another recipe. ``group-dropped``: it was dropped; names are
        never used again.
    """
    if exists(storage, layout.dropped_key(group.name)):
        raise ConflictError(
            f"group {group.name!r} of {storage.url} was dropped, and a dropped name is never used again. "
            "Nothing was written. Choose another name (--group).",
            kind="group-dropped",
        )
    key = layout.group_key(group.name)
    data, _ = make_record("group", store_id, group.to_json())
    if storage.create(key, data):
        return group
    held = load_group(storage, store_id, group.name)
    if canonical(held.to_json()) != canonical(group.to_json()):
        raise ConflictError(
            f"group {group.name!r} of {storage.url} was made by another recipe; they differ in "
            f"{', '.join(differences(held.to_json(), group.to_json())) or 'form'}. Nothing was written "
            f"and the group stands as it was. {_instead(group.name)}",
            kind="group-recipe",
            group=group.name,
        )
    return held


def _instead(group: str) -> str:
    if group == "tokens":
        return "A store has one set of rows: use the same settings, or another store (--out)."
    return "Use another group name (--group), or the same settings."


def load_group(storage: Storage, store_id: str, name: str) -> Group:
    """Read a group's declaration."""
    key = layout.group_key(name)
    record = load_record(storage, key, "group", store_id)
    try:
        group = Group.from_json(record)
        for column in group.columns.values():
            CODECS.get(column.codec)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedVersionError(
            f"group {name!r} of {storage.url} has columns this version does not know ({error}). Nothing "
            "was read or changed. Upgrade actlake.",
            path=key,
        ) from error
    if group.name != name:
        raise foreign_record(key, f"is the declaration of group {group.name!r}")
    return group


def load_sealed(storage: Storage, store_id: str, group: str) -> dict[str, Any] | None:
    """Return ``{parts, rows}`` where a group is sealed."""
    key = layout.sealed_key(group)
    if not exists(storage, key):
        return None
    record = load_record(storage, key, "sealed", store_id)
    if record["group"] != group:
        raise foreign_record(key, f"seals group {record['group']!r}")
    return record


def seal(
    storage: Storage, store_id: str, group: str, parts: int, rows: int, *, retired: bool = False
) -> None:
    """Say that a group is complete: ``parts`` parts, ``rows`` rows. Saying it again is no error.

    Parameters
    ----------
    retired
        Parts among them are retired: whoever sealed before that counted their rows, too.
    """
    body = {"group": group, "parts": parts, "rows": rows}
    key = layout.sealed_key(group)
    data, _ = make_record("sealed", store_id, body)
    storage.settle(layout.commits_prefix(group))  # a seal must not outlive a record it counts
    if not storage.create(key, data):
        held = load_sealed(storage, store_id, group)
        assert held is not None
        if held["parts"] != parts or (held["rows"] != rows and not retired):
            raise ConflictError(
                f"group {group!r} is sealed with {held['parts']} parts and {held['rows']} rows; found "
                f"{parts} parts and {rows} rows. Nothing was written. `actlake verify` says more.",
                kind="sealed-differs",
            )


def resolve(groups: Mapping[str, Group], address: str, url: str) -> tuple[Group, Column]:
    """Return the column behind ``group:site``, or behind ``site`` where only one group has it.

    A gradient keeps the name of its site; ``site`` alone is its values.
    """
    name, found, site = address.rpartition(":")
    if found:
        if name in groups and site in groups[name].columns:
            return groups[name], groups[name].columns[site]
    else:
        every = [group for group in groups.values() if site in group.columns]
        holders = [group for group in every if not group.gradient]
        if len(holders) == 1:
            return holders[0], holders[0].columns[site]
        if holders:
            raise InvalidInputError(
                f"column {site!r} is in several groups: {', '.join(g.name for g in holders)}. Nothing "
                f"was read. Say which: {holders[0].name}:{site}",
                kind="ambiguous-column",
            )
    known = ", ".join(f"{g.name}:{c}" for g in groups.values() for c in g.columns)
    apart = "" if found or not every else f" (of its gradient {every[0].name}:{site})"
    raise NotFoundError(
        f"there is no column {address!r} in {url}{apart}; known: {known or 'none'}. Nothing was "
        f"read. Add it: actlake ingest --into {url} --group NAME --model M --sites {site}",
        kind="column-missing",
        column=address,
    )
