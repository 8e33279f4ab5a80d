"""A store in somebody else's hands: one with every kind of record and file, and all that can be asked of it.

Whatever it holds, an answer is a value or a ``StoreError``; nothing else may come of reading it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from store import layout
from store.checksum import crc32c
from store.compact import compact
from store.errors import StoreError
from store.maintenance import drop, retire
from store.opening import open_in
from store.purge import add_tombstone, purge
from store.reader import Store
from store.records import canonical, make_record
from store.storage import Storage
from store.testing.faults import overwrite
from store.testing.small import DENSE, fill, small_store
from store.verify import verify

TABLES = ("tokens", "sequences", "documents", "labels", "codes", "codes_by_latent")
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    3,
    10**30,
    "",
    "../../x",
    "\x1b[2J",
    "0" * 64,
    [],
    [[]],
    [None],
    {},
    {"a": 1},
    {"a": {"b": []}},
)
"""Values that stand where something else belongs."""


LENGTHS = (60, 150, 90, 100, 40)
"""Three parts of it; and five documents."""
ROWS = (3, 80, 610, 650)


def full_store(url: str) -> Store:
    """Make a small store that has been through everything: it holds every kind of record and file there is."""
    made = fill(small_store(url, LENGTHS, part_rows=256, part_stride=512), "gone", DENSE)
    drop(made, "gone", "a trial")
    retire(made, [1], "old", group="sample")
    add_tombstone(made, [2], "asked to")
    purge(made.live(), "asked to")
    add_tombstone(made.refresh(), [4], "asked to, again")
    compact(made.refresh())
    made = made.refresh()
    made.pin()
    made.put_asset({"notes.txt": b"what a small store is for"})
    body = {"group": "acts", "part": 0, "attempt": "0" * 16, "error": "it failed"}
    data, _ = make_record("failed", made.id, body)
    made.view.storage.create(layout.failed_key("acts", 0, "0" * 16), data)
    return made


def said(storage: Storage, rows: Sequence[int] = (3, 400, 1024, 1300)) -> dict[str, Any]:
    """Return everything a store says, by what was asked: a value, or the kind of the error.

    Parameters
    ----------
    rows
        Ids of some that are there.
    """
    found: dict[str, Any] = {}

    def ask(name: str, call: Callable[[], Any]) -> None:
        try:
            found[name] = call()
        except StoreError as error:
            found[name] = error.kind

    def opened() -> Store:
        return open_in(storage)

    ask("groups", lambda: sorted(opened().groups))
    ask("row_ids", lambda: opened().row_ids().tobytes())
    if isinstance(found["groups"], str):
        return found
    for address in ("acts:h", "acts:f", "acts:i", "sample:h", "labels:loss", "labels:triple"):
        ask(address, lambda a=address: opened().read(a).tobytes())  # type: ignore[misc]
    ask("gather", lambda: opened().gather("acts:f", np.array(rows)).tobytes())
    for name in TABLES:
        ask(f"table {name}", lambda n=name: opened().arrow(n).to_pydict())  # type: ignore[misc]
    ask("partial", lambda: {k: v.tobytes() for k, v in opened().partial("stat:state", 0).items()})
    ask("window", lambda: _windows(opened()))
    return found


def _windows(opened: Store) -> list[bytes]:
    windows = opened.windows(["acts:h"], seed=1, window_rows=512)
    return [window.row_ids.tobytes() for window in windows]


def said_at_length(storage: Storage) -> dict[str, Any]:
    """Return what ``said`` does, and what pins, assets, coverage and ``verify`` say."""
    found = said(storage, ROWS)
    for key in list(storage.keys("pins")):
        pin = key.rpartition("/")[2].removesuffix(".json")
        found[key] = _kind(lambda pin=pin: open_in(storage, pin).row_ids().tobytes())  # type: ignore[misc]
    for asset in storage.folders("assets"):
        found[asset] = _kind(lambda asset=asset: open_in(storage).asset(asset))  # type: ignore[misc]
    found["coverage"] = _kind(lambda: open_in(storage).coverage)
    found["verify"] = _kind(lambda: verify(open_in(storage)).problems)
    return found


def _kind(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except StoreError as error:
        return error.kind


def resigned(record: Mapping[str, Any]) -> bytes:
    """Return a record's bytes with the hash that fits what it says."""
    body = {name: value for name, value in record.items() if name != "self"}
    body["self"] = hashlib.sha256(canonical(body)).hexdigest()
    return canonical(body)


def exchange(made: Store, group: str, path: str, data: bytes | None = None, **says: Any) -> Store:
    """Put other bytes in an object's place, let its commit say so with its hash right; return the store, opened again.

    Parameters
    ----------
    data
        The bytes; None: those that are there.
    says
        What the object's entry says besides size and crc32c; under ``commit`` what the record says elsewhere.
    """
    storage, commit = made.view.storage, made.view.stored_commit(group, 0)
    where = layout.commit_key(group, 0, commit.n)
    record = {**json.loads(storage.get(where)), **says.pop("commit", {})}
    (entry,) = (entry for entry in record["objects"] if entry["path"] == path)
    if data is not None:
        overwrite(storage, commit.prefix + path, data)
        entry.update(size=len(data), crc32c=f"{crc32c(data):08x}")
    entry.update(says)
    overwrite(storage, where, resigned(record))
    return open_in(storage)


def odd_records(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield a record with each of its values, however deep, replaced by each odd one; and what was replaced by what."""
    record = json.loads(data)
    record.pop("self")
    for path in list(_paths(record)):
        for odd in ODD:
            changed = json.loads(json.dumps(record))
            at = changed
            for step in path[:-1]:
                at = at[step]
            at[path[-1]] = odd
            yield f"{'.'.join(map(str, path))} = {odd!r}", resigned(changed)


def _paths(value: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value; of a list to its first two."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value[:2]))
    else:
        return
    for name, inner in items:
        yield (name,)
        for rest in _paths(inner):
            yield (name, *rest)
