"""Reads chunks of a dense column's shard: each checked when it is first touched, and copied as seldom as can be.

A chunk is read into a buffer that is used again, checked and copied on while it is in the processor's cache. Reading
straight into place saves that copy, and the kernel's own copy into memory that is in no cache may cost far more than that
(reading was 2.5 times as slow on an AMD EPYC with AVX2).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np

from store.buffers import Scratch
from store.checksum import crc32c
from store.codecs import CODECS
from store.errors import CorruptError, NotFoundError, StoreError
from store.layout import ALIGN, CHUNK_ROWS, MISSING, SLOT_BYTES, ShardLayout, shard_path
from store.schema import Column
from store.shards import Identity, identity_slot, slot_owner
from store.storage import Storage
from store.summary import float32_of_bits

_DENSE_ROWS = (
    64  # from so many rows on, reading the chunk is faster than touching its pages one by one
)
_BLOCK_BYTES = 1 << 20  # of chunks that are decoded and widened at once
_BLOCK_ROWS = 1024  # copied at once from a mapped file, by way of the processor's cache
Array = np.ndarray[Any, np.dtype[Any]]


class ShardReader:
    """Reads chunks of one shard, each verified on first touch.

    Raises
    ------
    CorruptError
        ``object-missing``, ``object-short``, ``object-size``, ``foreign-shard``, ``index-damaged`` or
        ``chunk-damaged``; the message names group, part, column and chunk. Damaged rows are never returned.
    StoreError
        What ``gone`` returns, where the shard is not there and that is no damage.
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
        gone: Callable[[], StoreError | None] = lambda: None,
    ) -> None:
        self._gone = gone
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
        self._item = np.dtype((np.void, column.row_bytes))
        self._widest = CHUNK_ROWS * column.row_bytes * (2 if column.bits else 1)
        self._size = size
        self._map: Array | None = None
        self.rows = rows
        self._index = self._open(size)
        self._verified = np.zeros(self._layout.chunks, bool)
        self._scratch = Scratch() if scratch is None else scratch

    def _open(self, size: int) -> Array:
        self._check_size()
        slot = bytearray(SLOT_BYTES)
        tail = np.empty(self._layout.index_bytes, np.uint8)
        if size < SLOT_BYTES + len(tail):
            raise self._damage("object-short", f"has {size} bytes, fewer than its slot and index")
        self._storage.read_into(self._key, [(0, slot), (size - len(tail), tail)])
        if bytes(slot) != identity_slot(self._who):
            raise self._damage("foreign-shard", slot_owner(bytes(slot), identity_slot(self._who)))
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

    def read_chunk(self, chunk: int, out: Array) -> None:
        """Fill ``out`` (``[256, *shape]``, C-contiguous, stored dtype) with a chunk."""
        ((_, block),) = self._fetched([chunk])
        if self._codec.plain:
            out[:] = block.view(self._column.stored).reshape(out.shape)
        else:
            self._decode(chunk, block[0], out)

    def blanked(self, chunk: int, slots: Array) -> Any:
        """Return a chunk as it is coded, verified, with zeros for the rows in some of its slots.

        All other rows decode to what they were, bit for bit; those decode to zeros.
        """
        values = np.empty((CHUNK_ROWS, *self._column.shape), self._column.stored)
        self.read_chunk(chunk, values)
        if not self._codec.lossy:
            values[slots] = 0
            return self._codec.encode(values, self._column)
        coded = np.empty(int(self._index[chunk, 1]), np.uint8)
        self._storage.read_into(self._key, [(int(self._index[chunk, 0]), coded)])
        rows = coded[:-4].reshape(CHUNK_ROWS, -1)
        rows[slots] = self._codec.encode(np.zeros_like(values), self._column).reshape(rows.shape)[0]
        return rows.reshape(-1)

    def read(self, start: int, stop: int, out: Array) -> None:
        """Fill ``out`` (C-contiguous; stored dtype, or float32 of bfloat16) with rows ``start:stop``."""
        for first, block in self._fetched(range(start // CHUNK_ROWS, -(-stop // CHUNK_ROWS))):
            values = self._values(first, block)
            base = first * CHUNK_ROWS
            if start <= base and base + len(values) * CHUNK_ROWS <= stop:
                at = base - start
                self._widen(values, out[at : at + len(values) * CHUNK_ROWS].reshape(values.shape))
                continue
            for rows, low in zip(values, range(base, stop, CHUNK_ROWS), strict=False):
                mine = slice(max(start, low), min(stop, low + CHUNK_ROWS))
                place = out[mine.start - start : mine.stop - start]
                self._widen(rows[mine.start - low : mine.stop - low], place)

    def scatter(self, slots: Array, place: Array, out: Array) -> None:
        """Copy rows ``slots`` (in any order, repeats allowed) to ``out[place]``, each chunk read once.

        ``out`` is C-contiguous, of the stored dtype, or float32 where that is bfloat16. A few rows of a chunk that
        is verified are copied from the mapped file instead, where the storage has one.
        """
        assert out.flags.c_contiguous
        if not len(slots):
            return
        ascending = bool((slots[1:] > slots[:-1]).all())
        if not ascending:
            order = np.argsort(slots, kind="stable")
            slots, place = slots[order], place[order]
        chunk_of = slots // CHUNK_ROWS
        bounds = np.concatenate(
            [[0], np.flatnonzero(chunk_of[1:] != chunk_of[:-1]) + 1, [len(slots)]]
        )
        chunks, counts = chunk_of[bounds[:-1]], np.diff(bounds)
        few = self._verified[chunks] & (counts < _DENSE_ROWS)
        if few.any() and (mapped := self._mapped()) is not None:
            there = np.repeat(few, counts)
            self._scatter_mapped(mapped, slots[there], place[there], out)
        else:
            few[:] = False
        whole = ascending & (slots[bounds[1:] - 1] - slots[bounds[:-1]] == counts - 1)
        self._scatter_chunks(
            [chunks[~few], bounds[:-1][~few], bounds[1:][~few], whole[~few]], slots, place, out
        )

    def _scatter_mapped(self, mapped: Array, slots: Array, place: Array, out: Array) -> None:
        items = _items(out)
        shape, stored = self._column.shape, self._column.stored
        for low in range(0, len(slots), _BLOCK_ROWS):
            some = slots[low : low + _BLOCK_ROWS]
            rows = mapped[some // CHUNK_ROWS, some % CHUNK_ROWS]
            if out.dtype != stored:
                rows = _items(self._as_returned(rows.view(stored).reshape(-1, *shape), out.dtype))
            items[place[low : low + _BLOCK_ROWS]] = rows

    def _scatter_chunks(
        self, pieces: Sequence[Array], slots: Array, place: Array, out: Array
    ) -> None:
        """Copy rows of (chunk, first, last, whether the slots follow one another) of the ascending slots."""
        items = _items(out)
        chunks, firsts, lasts, runs = (piece.tolist() for piece in pieces)
        at = 0
        for number, block in self._fetched(chunks):
            for rows in self._rows(number, block, out.dtype):
                low, high, base = firsts[at], lasts[at], chunks[at] * CHUNK_ROWS
                if runs[at]:
                    first = int(slots[low]) - base
                    items[place[low:high]] = rows[first : first + high - low]
                else:
                    items[place[low:high]] = rows[slots[low:high] - base]
                at += 1

    def _fetched(self, chunks: Sequence[int]) -> Iterator[tuple[int, Array]]:
        """Yield some chunks as coded, ``uint8[C, B]``, checked, and the first one's number.

        They are neighbours in the shard, more than one only where all are of one size; they hold until the next are
        asked for.
        """
        if not chunks:
            return
        step = max(1, self._storage.call_bytes // self._layout.coded_bytes)
        where = self._index[list(chunks)].tolist()
        calls = [_spans(where[low : low + step]) for low in range(0, len(chunks), step)]
        soon = [(span.offset, span.size) for spans in calls for span in spans]
        at = 0
        with self._there(), self._storage.reading(self._key, soon) as read_into:
            for spans in calls:
                ends = list(itertools.accumulate(span.size for span in spans))
                held = self._scratch.take("coded", max(ends[-1], self._storage.call_bytes))
                places = [
                    held[end - span.size : end] for span, end in zip(spans, ends, strict=True)
                ]
                read_into([(span.offset, place) for span, place in zip(spans, places, strict=True)])
                for span, place in zip(spans, places, strict=True):
                    for block in self._blocks(span, place):
                        some = chunks[at : at + len(block)]
                        for chunk, coded in zip(some, block, strict=True):
                            if not self._verified[chunk]:
                                self._check(chunk, coded)
                        yield some[0], block[:, :-4]
                        at += len(some)

    def _blocks(self, span: _Span, held: Array) -> Iterator[Array]:
        """Yield the coded chunks of a span, each with its crc32c: some at once, or one by one where sizes differ."""
        if self._fixed_size:
            spacing, size = self._layout.spacing, self._layout.coded_bytes
            step = max(1, _BLOCK_BYTES // self._widest)
            for low in range(0, len(span.chunks), step):
                count = min(step, len(span.chunks) - low)
                yield np.ndarray((count, size), np.uint8, held, low * spacing, (spacing, 1))
        else:
            for offset, size in span.chunks:
                at = offset - span.offset
                yield held[None, at : at + size]

    def _check(self, chunk: int, coded: Array) -> None:
        if crc32c(coded[:-4]) != int.from_bytes(coded[-4:].tobytes(), "little"):
            raise self._damage("chunk-damaged", "does not fit its crc32c", chunk)
        self._verified[chunk] = True

    def _decode(self, chunk: int, coded: Array, out: Array) -> None:
        try:
            self._codec.decode(coded, out, self._column)
        except ValueError as error:
            what = f"is not coded as {self._column.codec!r}: {error}"
            raise self._damage("chunk-damaged", what, chunk) from error

    def _values(self, first: int, block: Array) -> Array:
        """Return the stored values of coded chunks, ``[C, 256, *shape]``, which hold until the next are asked for."""
        shape = (len(block), CHUNK_ROWS, *self._column.shape)
        if self._codec.plain:
            return block.view(self._column.stored).reshape(shape)
        rows = self._scratch.array("rows", shape, self._column.stored)
        for at, coded in enumerate(block):
            self._decode(first + at, coded, rows[at])
        return rows

    def _rows(self, first: int, block: Array, dtype: np.dtype[Any]) -> Array:
        """Return the rows of coded chunks as single items of a dtype, ``[C, 256]``, which hold until the next are asked for."""
        if self._codec.plain and dtype == self._column.stored:
            return block.view(self._item)
        rows = self._as_returned(self._values(first, block), dtype)
        return _items(rows.reshape(-1, *self._column.shape)).reshape(len(block), CHUNK_ROWS)

    def _as_returned(self, values: Array, dtype: np.dtype[Any]) -> Array:
        """Return stored values in the dtype callers want, which hold until the next are asked for."""
        if values.dtype == dtype:
            return values
        return float32_of_bits(values, self._scratch.array("wide", values.shape, dtype))

    def _widen(self, values: Array, out: Array) -> None:
        if values.dtype == out.dtype:
            out[:] = values
        else:
            float32_of_bits(values, out)

    def _mapped(self) -> Array | None:
        """Return the rows of a plain shard as items ``[chunks, 256]`` in the mapped file, or None."""
        if not self._codec.plain:
            return None
        self._check_size()  # what is gone must not be touched
        if self._map is None:
            with self._there():
                data = self._storage.mapped(self._key)
            self._map = None if data is None else self._rows_of(data)
        return self._map

    def _check_size(self) -> None:
        with self._there():
            found = self._storage.size(self._key)
        if found != self._size:
            raise self._damage(
                "object-size", f"has {found} bytes where its commit says {self._size}"
            )

    @contextmanager
    def _there(self) -> Iterator[None]:
        """Say what it means where the shard is not there."""
        try:
            yield
        except NotFoundError as error:
            raise self._gone() or self._damage("object-missing", "is not there") from error

    def _rows_of(self, data: memoryview) -> Array:
        row_bytes = self._column.row_bytes
        return np.ndarray(
            (self._layout.chunks, CHUNK_ROWS),
            self._item,
            data,
            offset=SLOT_BYTES,
            strides=(self._layout.spacing, row_bytes),
        )


class RowReader(Protocol):
    """Rows of one part of a dense column, by their number among those that may be read."""

    def read(self, start: int, stop: int, out: Array) -> None:
        """Fill ``out`` with rows ``start:stop``."""

    def scatter(self, slots: Array, place: Array, out: Array) -> None:
        """Copy rows ``slots`` (in any order, repeats allowed) to ``out[place]``."""


class SomeRows:
    """The rows of a shard in some of its slots, ascending: the others must not be read."""

    def __init__(self, reader: ShardReader, slots: Array) -> None:
        self._reader, self._slots = reader, slots

    def read(self, start: int, stop: int, out: Array) -> None:
        """See ``RowReader``."""
        self._reader.scatter(self._slots[start:stop], np.arange(stop - start), out)

    def scatter(self, slots: Array, place: Array, out: Array) -> None:
        """See ``RowReader``."""
        self._reader.scatter(self._slots[slots], place, out)


def _items(rows: Array) -> Array:
    """Return C-contiguous rows as single items: NumPy moves them faster than as rows of many numbers."""
    row_bytes = math.prod(rows.shape[1:]) * rows.itemsize
    return rows.reshape(-1).view(np.dtype((np.void, row_bytes)))


class _Span(NamedTuple):
    """What is read at once: where, and (offset, size) of each chunk in it."""

    offset: int
    size: int
    chunks: Sequence[Sequence[int]]


def _spans(where: Sequence[Sequence[int]]) -> list[_Span]:
    """Return some chunks' (offset, size) as spans: neighbours are one, with the padding between them."""
    low, spans = 0, list[_Span]()
    for at, (offset, _) in enumerate(where):
        if at + 1 == len(where) or not 0 <= where[at + 1][0] - sum(where[at]) < ALIGN:
            first = where[low][0]
            spans.append(_Span(first, offset + where[at][1] - first, where[low : at + 1]))
            low = at + 1
    return spans
