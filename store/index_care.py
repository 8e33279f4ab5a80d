"""Indexes that have had their time, and whether one says what its parts say.

An index is spent where a larger one replaces it, or where it holds rows of a part that is no more: bytes of what was retired,
replaced or dropped do not outlive the grace, in copies neither. What no record names is an index's that was never finished.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np

from store import layout, tables
from store.assets import ANY_STORE, INDEX_ENDING, MANIFEST
from store.commits import exists
from store.coverage import retired_since
from store.errors import CorruptError, NotFoundError, StoreError
from store.index_records import (
    BY_LATENT,
    Index,
    index_keys,
    index_record,
    load_index,
    named_assets,
)
from store.indexes import Indexes, Share, fitting, places, replaceable
from store.records import load_record
from store.schema import NAME
from store.sorting import sort_key
from store.storage import Storage
from store.values import Codes
from store.view import View

Ending = tuple[list[str], float | None]
"""Keys that go together, and when a record ended them (None: their own age counts)."""


def index_leavings(view: View) -> Iterator[Ending]:
    """Yield the records of spent indexes, and the assets that only those or none name."""
    storage = view.storage
    ended: dict[str, float | None] = {}
    holders: dict[str, list[str]] = {}
    sure = True
    for name in filter(NAME.fullmatch, storage.folders("groups")):
        for key in index_keys(storage, name):
            try:
                record = index_record(storage, view.store_id, key)
            except NotFoundError:
                continue
            except StoreError:
                sure = False  # what it names may be in use
                continue
            for asset in named_assets(record):
                holders.setdefault(asset, []).append(key)
        if name in view.groups:
            spent = _spent(view, name)
            yield from (([key], since) for key, since in spent.items())
            ended |= spent
        elif exists(storage, layout.dropped_key(name)):  # the group's own leavings have the records
            since = storage.modified(layout.dropped_key(name))
            ended |= dict.fromkeys(index_keys(storage, name), since)
    if sure:
        yield from _assets(storage, ended, holders)


def _assets(
    storage: Storage, ended: dict[str, float | None], holders: dict[str, list[str]]
) -> Iterator[Ending]:
    for asset, keys in _index_assets(storage):
        if not any(key.endswith(f"/{MANIFEST}") for key in keys):
            continue  # without a manifest it is a leaving of its own
        mine = holders.get(asset, [])
        if all(key in ended for key in mine):
            times = [since for key in mine if (since := ended[key]) is not None]
            yield _manifest_first(keys), max(times, default=None)


def _manifest_first(keys: Iterable[str]) -> list[str]:
    """Return the keys of an asset in the order to delete them: killed in between, there is no asset, not half of one."""
    return sorted(keys, key=lambda key: (not key.endswith(f"/{MANIFEST}"), key))


def _spent(view: View, group: str) -> dict[str, float | None]:
    """Return the keys of a group's spent indexes and since when they are."""
    storage, found = view.storage, list[Index]()
    for key in index_keys(storage, group):
        try:
            index = load_index(storage, view.store_id, key)
        except StoreError:
            continue  # verify names it, compact makes it anew
        found += [] if index is None else [index]
    spent: dict[str, float | None] = {}
    for index in found:
        if gone := _gone(view, index):
            times = [since for part in gone if (since := _ended(view, group, part)) is not None]
            spent[index.key] = min(times, default=None)
    for index in found:
        if index.key not in spent:
            mine, since = _entries(index), _made(storage, index)
            larger = [
                made
                for other in found
                if other.table == index.table
                and other.key not in spent
                and mine < _entries(other)
                and (made := _made(storage, other)) is not None
            ]
            if larger and since is not None:
                spent[index.key] = max(min(larger), since)
    return spent


def _made(storage: Storage, index: Index) -> float | None:
    """Return when an index was made; None where a purge took it away meanwhile."""
    try:
        return storage.modified(index.key)
    except NotFoundError:
        return None


def _entries(index: Index) -> set[tuple[int, str]]:
    return set(zip(index.parts.tolist(), index.commits, strict=True))


def _gone(view: View, index: Index) -> list[int]:
    """Return the parts of an index that are no more what it is a copy of."""
    gone = []
    for part, commit in _entries(index):
        try:
            live = part in view.parts(index.group) and view.commit(index.group, part).hash == commit
        except StoreError:
            live = True  # nothing is sure there
        if not live:
            gone.append(part)
    return gone


def _ended(view: View, group: str, part: int) -> float | None:
    """Return when a part was retired or replaced."""
    since = retired_since(view.storage, group, part)
    if since is None and (n := view.parts(group).get(part, 0)):
        return view.storage.modified(layout.commit_key(group, part, n))
    return since


def forget(view: View, parts: Collection[int]) -> None:
    """Delete the indexes that hold what nobody may read any more of some parts, at once, and files no index names.

    Dropped groups' go whole, and so does what is damaged. Whoever is reading through one of them gets an error; whoever is
    making one finds its files gone, and takes it back. An index that names a file which went is looked for again at the
    end: its record may have come in between.
    """
    storage = view.storage
    kept = set[str]()
    for key in _all_keys(storage):
        index = _whole(view, key)
        if index is not None and not set(_gone(view, index)) & set(parts):
            kept |= index.assets
        else:
            storage.delete([key])
    files = [keys for asset, keys in _index_assets(storage) if asset not in kept]
    storage.delete([key for keys in files for key in _manifest_first(keys)])
    storage.delete([key for key in _all_keys(storage) if _whole(view, key) is None])


def _all_keys(storage: Storage) -> list[str]:
    """Return the keys of the indexes of every group, dropped ones' too."""
    names = filter(NAME.fullmatch, storage.folders("groups"))
    return [key for name in names for key in index_keys(storage, name)]


def _whole(view: View, key: str) -> Index | None:
    """Return an index of a group that is there, all its files in place; None for any other."""
    try:
        index = load_index(view.storage, view.store_id, key)
    except StoreError:
        return None
    if index is None or index.group not in view.groups:
        return None
    there = all(exists(view.storage, f"assets/{asset}/{MANIFEST}") for asset in index.assets)
    return index if there else None


def _index_assets(storage: Storage) -> Iterator[tuple[str, list[str]]]:
    """Yield the assets, whole or not, that hold nothing but files of indexes."""
    for asset in filter(NAME.fullmatch, storage.folders("assets")):
        keys = list(storage.keys(f"assets/{asset}"))
        files = [key for key in keys if not key.endswith(f"/{MANIFEST}")] or _listed(storage, asset)
        if files and all(key.endswith(INDEX_ENDING) for key in files):
            yield asset, keys


def _listed(storage: Storage, asset: str) -> list[str]:
    """Return the files an asset's manifest lists; none where it cannot be read."""
    key = f"assets/{asset}/{MANIFEST}"
    try:
        return list(load_record(storage, key, "asset", ANY_STORE)["files"])
    except StoreError:
        return []


# -- what an index says ----------------------------------------------------------------------------------------


def check_index(view: View, key: str) -> None:
    """Read an index and compare it with the parts it is a copy of, as far as those are there.

    Raises
    ------
    CorruptError
        ``index-damaged``, or ``index-differs``: it says something else than its parts.
    """
    index = load_index(view.storage, view.store_id, key)
    if index is None:
        return
    share = Share(index=index, taken=fitting(index, replaceable(view, index.group)))
    same = _same_codes if index.table == BY_LATENT else _same_rows
    if not same(Indexes(view), share):
        raise CorruptError(
            f"{key} of {view.storage.url} does not say what the parts say that it is a copy of. Delete it, then make it "
            f"anew: actlake compact {view.storage.url}",
            kind="index-differs",
            path=key,
        )


def _same_rows(reader: Indexes, share: Share) -> bool:
    view, index = reader.view, share.index
    for number in range(len(index.files)):
        reader.file(index, number)
    same = True
    for part, run in places(share).items():
        mine = reader.file(index, run.file).read(run.low, run.high)
        stored = view.objects.stored_table(view.commit(index.group, part), index.path)
        same &= tables.same(mine, stored)
    return same


def _same_codes(reader: Indexes, share: Share) -> bool:
    view, index = reader.view, share.index
    whole = Share(index=index, taken=np.ones(len(index.parts), bool))
    counts, last, same, total = np.zeros(len(index.latents), np.int64), None, True, 0
    for data in reader.blocks(whole, [(0, int(index.rows.sum()))]):
        codes = Codes.of(data)
        keys = np.stack([sort_key(codes), codes.row.astype(np.uint64)])
        keys = keys if last is None else np.concatenate([last, keys], axis=1)
        rising = (keys[0, 1:] > keys[0, :-1]) | (
            (keys[0, 1:] == keys[0, :-1]) & (keys[1, 1:] > keys[1, :-1])
        )
        at = np.searchsorted(index.latents, codes.latent)
        same &= bool(rising.all()) and bool(np.isin(codes.latent, index.latents).all())
        counts += np.bincount(at[at < len(counts)], minlength=len(counts))
        kept = np.isin(codes.row // view.stride_rows, index.parts[share.taken])
        total += _mixed(codes, kept)
        last = keys[:, -1:]
    for part in index.parts[share.taken].tolist():
        codes = Codes.of(view.objects.stored_table(view.commit(index.group, part), index.path))
        total -= _mixed(codes, slice(None))
    return same and bool(np.array_equal(counts, index.codes)) and total % (1 << 64) == 0


def _mixed(codes: Codes, kept: Any) -> int:
    """Return the sum of a hash of each code, modulo 2^64: the same for the same codes in any order."""
    value = codes.value.view(np.uint32).astype(np.uint64)
    words = codes.row.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words ^= (codes.latent.astype(np.uint64) << np.uint64(32) | value) * np.uint64(
        0xBF58476D1CE4E5B9
    )
    words = (words ^ words >> np.uint64(30)) * np.uint64(0x94D049BB133111EB)
    return int((words ^ words >> np.uint64(31))[kept].sum(dtype=np.uint64))
