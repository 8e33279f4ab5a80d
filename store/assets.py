"""Assets: small content-addressed files beside the rows (tokenizers, dictionaries, a synthetic source's truth).

An asset's id depends on its files alone: recipes name assets, and equal recipes in two stores must be equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from store.commits import exists
from store.errors import CorruptError, InvalidInputError, NotFoundError
from store.layout import MAX_TABLE_BYTES
from store.records import foreign_record, load_record, make_record, sha256
from store.schema import check_name
from store.storage import Storage

MANIFEST = "manifest.json"
ANY_STORE = ""  # what a manifest says for `store`
_PIECE_BYTES = 8 << 20
INDEX_ENDING = ".index.parquet"
"""How the files of indexes end, and no others: gc may delete what no index names."""


def manifest(files: Mapping[str, bytes]) -> tuple[bytes, str]:
    """Return the manifest of files and the id of the asset they make."""
    body = {"files": {check_name(n, "asset file"): [len(d), sha256(d)] for n, d in files.items()}}
    return make_record("asset", ANY_STORE, body)


def put_asset(storage: Storage, files: Mapping[str, bytes]) -> str:
    """Write content-addressed files where they are missing; the manifest comes last, so an asset is whole or absent.

    Returns
    -------
    The asset's id: the hash (``self``) of its manifest ``{name: [size, sha256]}``.
    """
    for name in files:
        if name == MANIFEST or name.endswith(INDEX_ENDING):
            raise InvalidInputError(
                f"an asset file may not be called {name}: {MANIFEST} is the asset's own list, and indexes have "
                f"*{INDEX_ENDING}. Nothing was written. Choose another name.",
                kind="bad-name",
            )
    return write_asset(storage, files)


def write_asset(storage: Storage, files: Mapping[str, bytes]) -> str:
    """Write an asset whose files may be an index's; see ``put_asset``."""
    data, asset = manifest(files)
    made = exists(storage, f"assets/{asset}/{MANIFEST}")
    for name, content in files.items():
        if not exists(storage, f"assets/{asset}/{name}"):
            storage.create(f"assets/{asset}/{name}", content)
    storage.settle(f"assets/{asset}")  # whoever put some of it before may have died before that
    if not made:
        storage.create(f"assets/{asset}/{MANIFEST}", data)
    return asset


def get_asset(storage: Storage, asset: str) -> dict[str, bytes]:
    """Return an asset's files, each checked against the manifest.

    Raises
    ------
    NotFoundError
        ``asset-missing``: there is no such asset (its manifest, written last, is not there).
    CorruptError
        ``asset-damaged``: a file is gone or does not fit the manifest.
    """
    found = {}
    for name, (size, digest) in _listed(storage, asset).items():
        path = f"assets/{asset}/{name}"
        try:
            content = storage.get(path, size)
        except NotFoundError:
            content = None
        if content is None or len(content) != size or sha256(content) != digest:
            raise _damaged(path)
        found[name] = content
    return found


def check_asset(storage: Storage, asset: str) -> int:
    """Do the same without holding more than a piece of a file; return the bytes that were looked at."""
    total = 0
    for name, (size, digest) in _listed(storage, asset).items():
        path = f"assets/{asset}/{name}"
        try:
            fits = storage.size(path) == size and _hash(storage, path, size) == digest
        except NotFoundError:
            fits = False
        if not fits:
            raise _damaged(path)
        total += size
    return total


def _hash(storage: Storage, path: str, size: int) -> str:
    hasher, buffer = hashlib.sha256(), bytearray(min(size, _PIECE_BYTES))
    for low in range(0, size, _PIECE_BYTES):
        piece = memoryview(buffer)[: min(_PIECE_BYTES, size - low)]
        storage.read_into(path, [(low, piece)])
        hasher.update(piece)
    return hasher.hexdigest()


def _listed(storage: Storage, asset: str) -> dict[str, tuple[int, str]]:
    """Return size and hash of an asset's files, from its manifest."""
    key = f"assets/{check_name(asset, 'asset')}/{MANIFEST}"
    try:
        record = load_record(storage, key, "asset", ANY_STORE)
    except NotFoundError as error:
        raise NotFoundError(
            f"there is no asset {asset} in {storage.url}. Nothing was changed. Check the id.",
            kind="asset-missing",
            path=key,
        ) from error
    if record["self"] != asset:
        raise foreign_record(key, f"is the manifest of asset {record['self']}")
    found = {}
    for name, entry in record["files"].items():
        good = isinstance(entry, list) and [type(one) for one in entry] == [int, str]
        if not good or not 0 <= entry[0] <= MAX_TABLE_BYTES:
            raise _damaged(f"assets/{asset}/{check_name(name, 'asset file')}")
        found[check_name(name, "asset file")] = (entry[0], entry[1])
    return found


def _damaged(path: str) -> CorruptError:
    return CorruptError(
        f"asset file {path} is gone or does not fit its manifest. It was not used. Restore it from a copy.",
        kind="asset-damaged",
        path=path,
    )
