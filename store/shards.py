"""The sharded Zarr layout of a dense column: identity slot, chunks with crc32c, index.

One shard is one part of one column: a Zarr v3 ``sharding_indexed`` object with its index at the end. The first
4096 bytes say whose shard it is, so a stale or foreign file copied into place is refused even though its size
and checksums fit. Chunks are checked against their crc32c when they are first touched in a process.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from store.checksum import crc32c
from store.codecs import CODECS
from store.codecs.contract import LITTLE
from store.errors import InvalidInputError
from store.layout import ALIGN, CHUNK_ROWS, MISSING, SLOT_BYTES
from store.records import FORMAT_VERSION, canonical
from store.schema import Column
from store.storage import Stream, Written
from store.summary import Loss, widened

MAGIC = b"ACTLAKE1"
Array = np.ndarray[Any, np.dtype[Any]]
Identity = dict[str, Any]


def identity(store_id: str, group: str, part: int, column: str, attempt: str) -> Identity:
    """Return what the identity slot of a shard says: whose bytes these are."""
    return {"store": store_id, "group": group, "part": part, "column": column, "attempt": attempt}


def identity_slot(who: Identity) -> bytes:
    """Return the 4096 bytes a shard starts with: magic, length, canonical JSON, crc32c, zeros."""
    text = canonical(who)
    head = MAGIC + len(text).to_bytes(4, "little") + text
    return (head + crc32c(head).to_bytes(4, "little")).ljust(SLOT_BYTES, b"\0")


def zarr_json(column: Column, rows: int, stride_rows: int) -> bytes:
    """Return the Zarr v3 metadata of one shard: an array of ``[rows, *shape]`` by itself."""
    form = CODECS.get(column.codec)().zarr_form(column)
    meta = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, *form.row_shape],
        "data_type": form.data_type,
        "fill_value": form.fill_value,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [stride_rows, *form.row_shape]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [CHUNK_ROWS, *form.row_shape],
                    "codecs": [*form.chain, {"name": "crc32c"}],
                    "index_codecs": [LITTLE, {"name": "crc32c"}],
                    "index_location": "end",
                },
            }
        ],
        "attributes": {**form.attributes, "actlake": FORMAT_VERSION},
    }
    return json.dumps(meta, sort_keys=True, indent=1).encode()


class ShardWriter:
    """Streams rows of one column into one shard; holds at most one chunk."""

    def __init__(self, stream: Stream, column: Column, who: Identity, stride_rows: int) -> None:
        self._stream = stream
        self._column = column
        self._codec = CODECS.get(column.codec)()
        self._pending = np.zeros((CHUNK_ROWS, *column.shape), column.stored)
        self._held = 0
        self._stride_rows = stride_rows
        self._index: list[tuple[int, int]] = []
        self._at = SLOT_BYTES
        self.rows = 0
        self.loss = Loss() if self._codec.lossy else None
        stream.write(identity_slot(who))

    def append(self, rows: Array) -> None:
        """Append rows ``[R, *shape]`` of the column's stored dtype."""
        self.rows += len(rows)
        while len(rows):
            if self._held == 0 and len(rows) >= CHUNK_ROWS and rows.flags.c_contiguous:
                self._write_chunk(rows[:CHUNK_ROWS])
                rows = rows[CHUNK_ROWS:]
                continue
            take = min(CHUNK_ROWS - self._held, len(rows))
            self._pending[self._held : self._held + take] = rows[:take]
            self._held += take
            rows = rows[take:]
            if self._held == CHUNK_ROWS:
                self._write_chunk(self._pending)
                self._held = 0

    def _write_chunk(self, chunk: Array) -> None:
        self.append_coded(self._encoded(chunk))

    def append_coded(self, coded: Any) -> None:
        """Append a chunk as another shard of the column held it; rows must not be appended beside it."""
        size = memoryview(coded).nbytes + 4
        padding = -size % ALIGN
        tail = crc32c(coded).to_bytes(4, "little") + bytes(padding)
        self._stream.write(coded, tail)
        self._index.append((self._at, size))
        self._at += size + padding

    def _encoded(self, chunk: Array) -> Any:
        try:
            coded = self._codec.encode(chunk, self._column)
        except ValueError as error:
            raise InvalidInputError(
                f"column {self._column.name!r} cannot be coded as {self._column.codec!r}: {error}. The unfinished "
                "part was dropped; committed parts stand. Use --codec raw, or look at those rows.",
                kind="not-codable",
                column=self._column.name,
            ) from error
        if self.loss is not None:
            decoded = np.empty_like(chunk)
            self._codec.decode(coded, decoded, self._column)
            self.loss.update(widened(chunk, self._column.bits), widened(decoded, self._column.bits))
        return coded

    def finish(self) -> Written:
        """Write the last chunk (filled up with zeros) and the index; make the shard durable."""
        if self._held:
            self._pending[self._held :] = 0
            self._write_chunk(self._pending)
            self._held = 0
        slots = self._stride_rows // CHUNK_ROWS
        index = np.full((slots, 2), MISSING, "<u8")
        index[: len(self._index)] = self._index
        data = index.tobytes()
        self._stream.write(data, crc32c(data).to_bytes(4, "little"))
        return self._stream.finish()

    def abandon(self) -> None:
        """Drop the shard."""
        self._stream.abandon()


def slot_owner(slot: bytes, wanted: bytes) -> str:
    """Return what an identity slot that is not the one wanted says, as a part of a sentence."""
    length = int.from_bytes(slot[8:12], "little")
    text = slot[12 : 12 + length]
    stored = int.from_bytes(slot[12 + length : 16 + length], "little")
    if slot[:8] != MAGIC:
        return (
            "has no identity slot, so another program wrote it or its first bytes are damaged (to bring in what "
            "other tools wrote, read it with them and put it through a writer)"
        )
    if length > SLOT_BYTES - 16 or crc32c(slot[: 12 + length]) != stored:
        return "belongs to nobody: its identity slot is damaged"
    if slot[: 16 + length] == wanted[: 16 + length]:
        return "has bytes behind its identity where zeros should be"
    return f"belongs to another shard: {text.decode(errors='replace')}"
