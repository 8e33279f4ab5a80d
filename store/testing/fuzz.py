"""What a fuzzer calls: bytes in, and nothing may come out but a value or a ``StoreError``.

Hashes and checksums are made right first where damage would otherwise end at them: what lies behind is looked at, too.
Each target has seeds, from which a fuzzer starts: the bytes of a store that holds everything.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from store import layout, tables
from store.assets import get_asset
from store.checksum import crc32c
from store.commits import Commit, check_commit, load_commit
from store.errors import StoreError
from store.groups import load_group, load_sealed
from store.index_records import index_keys, load_index
from store.memory import MemoryStorage
from store.opening import open_in
from store.parquet_bounds import check_file
from store.pins import load_pin
from store.records import read_record, sha256
from store.schema import Column, Group
from store.shard_reader import ShardReader
from store.shards import ShardWriter, identity, identity_slot
from store.testing.faults import harvest
from store.testing.hostile import full_store, resigned
from store.tombstones import load_tombstone

STORE = "0" * 32
WHO = identity(STORE, "g", 0, "x", "0" * 16)
COLUMNS = {
    codec: Column.parse("x", "float32[16]", codec=codec)
    for codec in ("raw", "bitshuffle-zstd", "int8", "dynamic8")
}
STRIDE, ROWS = 1024, 600
INDEX_BYTES = 16 * (STRIDE // layout.CHUNK_ROWS) + 4


def _signed(data: bytes) -> bytes:
    """Return JSON as a record of the store whose hash fits; other bytes as they are."""
    try:
        record = json.loads(data)
        if isinstance(record, dict):
            return resigned({**record, "store": STORE, "v": 1})
    except (ValueError, TypeError, RecursionError):
        pass
    return data


def _holding(**objects: bytes) -> MemoryStorage:
    storage = MemoryStorage("memory://fuzz")
    storage._objects = objects
    storage._times = dict.fromkeys(objects, 0.0)
    return storage


def record(data: bytes) -> None:
    """Read bytes as a record of each kind, from where it would lie."""
    data = _signed(data)
    key = layout.commit_key("g", 0)
    readers: dict[str, Callable[[MemoryStorage], Any]] = {
        layout.group_key("g"): lambda s: load_group(s, STORE, "g"),
        layout.sealed_key("g"): lambda s: load_sealed(s, STORE, "g"),
        key: lambda s: _checked(load_commit(s, STORE, "g", 0, 0)),
        layout.STORE_KEY: open_in,
        "assets/a/manifest.json": lambda s: get_asset(s, "a"),
    }
    for where, read in readers.items():
        with contextlib.suppress(StoreError):
            read(_holding(**{where: data}))
    for kind in ("dropped", "retired", "failed"):
        with contextlib.suppress(StoreError):
            read_record(data, kind, STORE, "here")
    place = {"group": "g", "table": "codes", "pin": "0" * 64}
    with contextlib.suppress(StoreError, ValueError, RecursionError):
        body = json.loads(data)
        if not isinstance(body, dict):
            return
        storage = _holding(**{layout.index_key(*place.values()): resigned({**body, **place})})
        for one in index_keys(storage, "g"):
            load_index(storage, STORE, one)


def _checked(commit: Commit) -> None:
    group = Group(name="g", columns=COLUMNS, recipe={}, aligned_to="tokens")
    check_commit(commit, group, STRIDE)


def pin(data: bytes) -> None:
    """Read bytes as a pin, and as a segment of one."""
    with contextlib.suppress(StoreError):
        load_pin(_holding(**{f"pins/{'0' * 64}.json": _signed(data)}), STORE, "0" * 64)
    with contextlib.suppress(StoreError):
        tables.read_parquet(data, "here", 1000, tables.SEGMENT)


def tombstone(data: bytes) -> None:
    """Read bytes as the table of a tombstone."""
    name = sha256(data)
    with contextlib.suppress(StoreError):
        load_tombstone(_holding(**{f"tombstones/{name}.parquet": data}), name)


def table(data: bytes) -> None:
    """Look at bytes as a Parquet file, which in bounds is small when it is read."""
    with contextlib.suppress(StoreError):
        found = tables.decode(data, "here", 1000)
        assert len(found) <= 1000, "more rows than were to be there"
        assert found.nbytes < 1 << 32, "more bytes than so many rows take"


def shard(data: bytes) -> None:
    """Read a shard of some codec, as its first byte says, with the checksums of slot, index and chunks made right."""
    if len(data) < 2:
        return
    column = list(COLUMNS.values())[data[0] % len(COLUMNS)]
    made, at = bytearray(_shard(column.codec)), 2
    index = len(made) - INDEX_BYTES
    while at + 5 <= len(data):  # three bytes say where, two what
        place = int.from_bytes(data[at : at + 3], "little") % (len(made) - 1)
        made[place : place + 2] = data[at + 3 : at + 5]
        at += 5
    if data[1] & 1:
        made[-4:] = crc32c(bytes(made[index:-4])).to_bytes(4, "little")
    if data[1] & 2:
        made[: layout.SLOT_BYTES] = identity_slot(WHO)
    if data[1] & 4:
        _mend_chunks(made, index)
    key = "a/" + layout.shard_path("x", 2)
    out = np.empty((ROWS, 16), np.float32)
    with contextlib.suppress(StoreError):
        reader = ShardReader(
            _holding(**{key: bytes(made)}),
            "a/",
            column,
            WHO,
            rows=ROWS,
            stride_rows=STRIDE,
            size=len(made),
        )
        reader.read(0, ROWS, out)
        reader.scatter(np.array([599, 3, 255, 3]), np.arange(4), out)


def _mend_chunks(made: bytearray, index: int) -> None:
    """Make the checksum of every chunk the index names right."""
    entries = np.frombuffer(bytes(made[index:-4]), "<u8").reshape(-1, 2).tolist()
    for offset, size in entries:
        if 4 < size <= index and offset + size <= index:
            made[offset + size - 4 : offset + size] = crc32c(
                bytes(made[offset : offset + size - 4])
            ).to_bytes(4, "little")


@functools.cache
def _shard(codec: str) -> bytes:
    storage = MemoryStorage("memory://fuzz")
    key = "a/" + layout.shard_path("x", 2)
    writer = ShardWriter(storage.stream(key), COLUMNS[codec], WHO, STRIDE)
    writer.append(np.arange(ROWS * 16, dtype=np.float32).reshape(ROWS, 16))
    writer.finish()
    return storage.get(key)


def parquet_bounds(data: bytes) -> None:
    """Look at what a Parquet file would become; Arrow reads none of it."""
    with contextlib.suppress(ValueError):
        check_file(data, 1000)


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "record": record,
    "pin": pin,
    "tombstone": tombstone,
    "table": table,
    "shard": shard,
    "parquet_bounds": parquet_bounds,
}


def seeds(target: str) -> Iterator[bytes]:
    """Yield bytes to start from."""
    if target == "shard":
        for codec in range(len(COLUMNS)):
            yield bytes([codec, 7, 0, 16, 0, 1, 2])
        return
    full_store("memory://fuzz-seeds")
    for key, data in harvest("memory://fuzz-seeds").items():
        wanted = {
            "record": key.endswith(".json") and not key.endswith("zarr.json"),
            "pin": key.startswith(("pins/", "segments/")),
            "tombstone": key.startswith("tombstones/"),
            "table": key.endswith(".parquet"),
            "parquet_bounds": key.endswith(".parquet"),
        }
        if wanted[target]:
            yield data
    MemoryStorage._named.pop("fuzz-seeds")
