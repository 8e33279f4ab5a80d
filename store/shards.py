"""The sharded Zarr layout of a dense column: identity slot, chunks with crc32c, index.

One shard is one part of one column: a Zarr v3 ``sharding_indexed`` object with its index at the end. The first
4096 bytes say whose shard it is, so a stale or foreign file copied into place is refused even though its size
and checksums fit. Chunks are checked against their crc32c when they are first touched in a process.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from store.checksum import crc32c
from store.codecs import CODECS
from store.codecs.contract import LITTLE
from store.errors import CorruptError, InvalidInputError
from store.layout import ALIGN, CHUNK_ROWS, MISSING, SLOT_BYTES, ShardLayout, shard_path
from store.schema import FORMAT_VERSION, Column, canonical
from store.storage import Storage, Stream, Written
from store.summary import Loss, widened

MAGIC = b"ACTLAKE1"
_CALL_BYTES = (
    8 << 20
)  # read at once, so that what a call holds does not grow with the column's width
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
        coded = self._encoded(chunk)
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
        if self._index:
            index[: len(self._index)] = self._index
        data = index.tobytes()
        self._stream.write(data, crc32c(data).to_bytes(4, "little"))
        return self._stream.finish()

    def abandon(self) -> None:
        """Drop the shard."""
        self._stream.abandon()


class Scratch(threading.local):
    """Buffers kept between calls (fresh memory costs page faults), for all shards of a view, per thread."""

    def __init__(self) -> None:
        self._held: dict[str, Array] = {}

    def take(self, name: str, size_bytes: int) -> Array:
        """Return ``uint8[size_bytes]`` whose contents the next call of that name may overwrite."""
        held = self._held.get(name)
        if held is None or len(held) < size_bytes:
            held = self._held[name] = np.empty(size_bytes, np.uint8)
        return held[:size_bytes]


class ShardReader:
    """Reads chunks of one shard, each verified on first touch.

    Raises
    ------
    CorruptError
        ``object-missing``, ``object-short``, ``object-size``, ``foreign-shard``, ``index-damaged`` or
        ``chunk-damaged``; the message names group, part, column and chunk. Damaged rows are never returned.
    """

    def __init__(
        self,
        storage: Storage,
        prefix: str,
        column: Column,
        who: Identity,
        *,
        rows: int,
        stride_rows: int,
        size: int,
        scratch: Scratch | None = None,
    ) -> None:
        self._storage = storage
        self._column = column
        self._who = who
        self._key = prefix + shard_path(column.name, 1 + len(column.shape))
        self._codec = CODECS.get(column.codec)()
        coded_row = self._codec.row_bytes(column)
        self._fixed_size = coded_row is not None
        self._layout = ShardLayout(
            row_bytes=coded_row or column.row_bytes, rows=rows, stride_rows=stride_rows
        )
        self._chunk_bytes = column.row_bytes * CHUNK_ROWS
        self.rows = rows
        self._index = self._open(size)
        self._verified = np.zeros(self._layout.chunks, bool)
        self._scratch = Scratch() if scratch is None else scratch

    def _open(self, size: int) -> Array:
        try:
            found = self._storage.size(self._key)
        except KeyError as error:
            raise self._damage("object-missing", "is not there") from error
        if found != size:
            raise self._damage("object-size", f"has {found} bytes where its commit says {size}")
        slot = bytearray(SLOT_BYTES)
        tail = np.empty(self._layout.index_bytes, np.uint8)
        if size < SLOT_BYTES + len(tail):
            raise self._damage("object-short", f"has {size} bytes, fewer than its slot and index")
        self._storage.read_into(self._key, [(0, slot), (size - len(tail), tail)])
        if bytes(slot) != identity_slot(self._who):
            raise self._damage("foreign-shard", _slot_owner(bytes(slot), identity_slot(self._who)))
        index = tail[:-4].view("<u8").reshape(-1, 2)
        if crc32c(tail[:-4]) != int.from_bytes(tail[-4:].tobytes(), "little"):
            raise self._damage("index-damaged", "has an index whose crc32c does not fit")
        self._check_index(index, size)
        return index

    def _check_index(self, index: Array, size: int) -> None:
        layout = self._layout
        used = index[: layout.chunks]
        end = np.uint64(size - layout.index_bytes)
        limit = np.uint64(2 * layout.coded_bytes + ALIGN)  # no codec may grow a chunk beyond this
        good = (
            (index[layout.chunks :] == np.uint64(MISSING)).all()
            and (used[:, 0] >= SLOT_BYTES).all()
            and (used[:, 0] % np.uint64(ALIGN) == 0).all()
            and (used[:, 1] <= limit).all()
            and (used[:, 1] > np.uint64(4)).all()
            and (used[:, 0] <= end).all()
            and (used[:, 0] + used[:, 1] <= end).all()
        )
        if good and self._fixed_size:
            offsets = SLOT_BYTES + np.arange(layout.chunks, dtype=np.uint64) * np.uint64(
                layout.spacing
            )
            good = bool((used[:, 0] == offsets).all() and (used[:, 1] == layout.coded_bytes).all())
        if not good:
            raise self._damage("index-damaged", "has an index that does not fit its own size")

    def _damage(self, kind: str, what: str, chunk: int | None = None) -> CorruptError:
        who = self._who
        place = f"group {who['group']!r}, part {who['part']}, column {who['column']!r}"
        if chunk is not None:
            place += f", chunk {chunk} (rows {chunk * CHUNK_ROWS}–{(chunk + 1) * CHUNK_ROWS - 1})"
        return CorruptError(
            f"the shard of {place} {what}. None of its damaged rows were returned; the store was not "
            f"changed. File: {self._key}. Restore it from a copy, or make the group again under "
            "another name.",
            kind=kind,
            path=self._key,
            **{key: who[key] for key in ("group", "part", "column")},
            **({} if chunk is None else {"chunk": chunk}),
        )

    def read_chunks(self, chunks: Sequence[int], out: Sequence[Array]) -> None:
        """Fill ``out[i]`` (``[256, *shape]``, C-contiguous) with chunk ``chunks[i]``."""
        sizes = [int(self._index[chunk, 1]) for chunk in chunks]
        coded = self._scratch.take("coded", sum(sizes))
        ranges, views, at = [], [], 0
        for chunk, size in zip(chunks, sizes, strict=True):
            view = coded[at : at + size]
            ranges.append((int(self._index[chunk, 0]), view))
            views.append(view)
            at += size
        self._storage.read_into(self._key, ranges)
        for chunk, view, target in zip(chunks, views, out, strict=True):
            if not self._verified[chunk]:
                if crc32c(view[:-4]) != int.from_bytes(view[-4:].tobytes(), "little"):
                    raise self._damage("chunk-damaged", "does not fit its crc32c", chunk)
                self._verified[chunk] = True
            try:
                self._codec.decode(view[:-4], target, self._column)
            except ValueError as error:
                what = f"is not coded as {self._column.codec!r}: {error}"
                raise self._damage("chunk-damaged", what, chunk) from error

    def read(self, start: int, stop: int, out: Array) -> None:
        """Fill ``out`` with rows ``start:stop``, a group of chunks at a time."""
        per_call = max(1, _CALL_BYTES // (self._chunk_bytes + 4))
        first, last = start // CHUNK_ROWS, -(-stop // CHUNK_ROWS)
        edge = np.empty((CHUNK_ROWS, *self._column.shape), self._column.stored)
        for low in range(first, last, per_call):
            chunks = range(low, min(low + per_call, last))
            bounds = [(max(start, c * CHUNK_ROWS), min(stop, (c + 1) * CHUNK_ROWS)) for c in chunks]
            whole = [b - a == CHUNK_ROWS for a, b in bounds]
            targets = [
                out[a - start : b - start] if full else edge.copy()
                for (a, b), full in zip(bounds, whole, strict=True)
            ]
            self.read_chunks(chunks, targets)
            for chunk, (a, b), full, target in zip(chunks, bounds, whole, targets, strict=True):
                if not full:
                    out[a - start : b - start] = target[
                        a - chunk * CHUNK_ROWS : b - chunk * CHUNK_ROWS
                    ]

    def scatter(self, slots: Array, place: Array, out: Array) -> None:
        """Copy rows ``slots`` (ascending, repeats allowed) to ``out[place]``, each chunk read once."""
        step = max(1, _CALL_BYTES // (self._chunk_bytes + 4))
        chunks = np.unique(slots // CHUNK_ROWS)
        shape = (min(step, len(chunks)), CHUNK_ROWS, *self._column.shape)
        held = self._scratch.take("rows", shape[0] * self._chunk_bytes)
        buffer = held.view(self._column.stored).reshape(shape)
        flat = buffer.reshape(-1, *self._column.shape)
        for low in range(0, len(chunks), step):
            some = chunks[low : low + step]
            self.read_chunks(some.tolist(), list(buffer[: len(some)]))
            first, last = np.searchsorted(
                slots, [some[0] * CHUNK_ROWS, (some[-1] + 1) * CHUNK_ROWS]
            )
            inside = slots[first:last]
            at = np.searchsorted(some, inside // CHUNK_ROWS) * CHUNK_ROWS + inside % CHUNK_ROWS
            out[place[first:last]] = flat[at]


def _slot_owner(slot: bytes, wanted: bytes) -> str:
    length = int.from_bytes(slot[8:12], "little")
    text = slot[12 : 12 + length]
    stored = int.from_bytes(slot[12 + length : 16 + length], "little")
    if slot[:8] != MAGIC or length > SLOT_BYTES - 16 or crc32c(slot[: 12 + length]) != stored:
        return "belongs to nobody: its identity slot is damaged"
    if slot[: 16 + length] == wanted[: 16 + length]:
        return "has bytes behind its identity where zeros should be"
    return f"belongs to another shard: {text.decode(errors='replace')}"
