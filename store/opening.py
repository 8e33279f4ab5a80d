"""Stores are made and opened here: what a URL or a storage holds becomes a ``Store``."""

from __future__ import annotations

import secrets
from pathlib import Path

from store import layout
from store.errors import ConflictError, CorruptError, InvalidInputError, NotFoundError
from store.reader import Store
from store.records import MAX_RECORD_BYTES, make_record, read_record
from store.storage import Storage
from store.urls import open_storage

DEFAULT_PART_ROWS = 16_384
DEFAULT_PART_STRIDE = 65_536


def create(
    url: str | Path, *, part_rows: int = DEFAULT_PART_ROWS, part_stride: int = DEFAULT_PART_STRIDE
) -> Store:
    """Make a store, or open the one there if its row numbering is the same.

    Parameters
    ----------
    url
        Local path, ``file://…`` or ``memory://name``.
    part_rows
        Rows a part takes at most, a multiple of 256; recorded, so that part size never depends on who writes.
    part_stride
        Distance between the first row ids of two parts, a multiple of 256, at least ``part_rows``.

    Raises
    ------
    ConflictError
        ``store-differs``: a store with other part sizes is there.
    """
    layout.check_parts(part_rows, part_stride)
    return create_in(open_storage(str(url)), part_rows=part_rows, part_stride=part_stride)


def create_in(storage: Storage, *, part_rows: int, part_stride: int) -> Store:
    """Make a store in a storage, or open the one there; see ``create``."""
    probe = secrets.token_hex(8)
    body = {"part_stride": part_stride, "part_rows": part_rows, "probe": probe}
    data, _ = make_record("store", secrets.token_hex(16), body)
    if not storage.create(layout.STORE_KEY, data):
        held = open_in(storage)
        if (held.part_rows, held.part_stride) != (part_rows, part_stride):
            raise ConflictError(
                f"{storage.url} holds a store with part_rows={held.part_rows}, "
                f"part_stride={held.part_stride}; asked for {part_rows}, {part_stride}. Nothing was "
                "written. Use another folder, or the same sizes.",
                kind="store-differs",
            )
        return held
    return open_in(storage)


def open_store(url: str | Path, pin: str | None = None) -> Store:
    """Open a store.

    Parameters
    ----------
    url
        Local path, ``file://…`` or ``memory://name``.
    pin
        Id of a pin: see exactly what it lists.

    Raises
    ------
    NotFoundError
        ``store-missing`` or ``pin-missing``.
    UnsupportedVersionError
        The store was written by a newer format.
    """
    return open_in(open_storage(str(url)), pin)


def open_in(storage: Storage, pin: str | None = None) -> Store:
    """Open the store in a storage; see ``open_store``."""
    try:
        data = storage.get(layout.STORE_KEY, MAX_RECORD_BYTES)
    except NotFoundError as error:
        raise NotFoundError(
            f"there is no store at {storage.url} (no {layout.STORE_KEY}). Nothing was changed. Check the "
            "path, or make one: actlake ingest --out PATH …",
            kind="store-missing",
        ) from error
    where = f"{storage.url}/{layout.STORE_KEY}"
    record = read_record(data, "store", None, where)
    try:
        layout.check_parts(record["part_rows"], record["part_stride"])
    except InvalidInputError as error:
        message = f"{where} numbers rows as no store does: {error.message} Restore it from a copy."
        raise CorruptError(message, kind="record-invalid", path=where) from error
    return Store(storage, record, pin)
