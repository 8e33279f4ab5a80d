"""Codes sorted by (latent, −value, row) in bounded memory: sorted runs in scratch files, merged block by block.

What is put is kept until it is a run's worth, sorted and laid down in blocks; at most so many runs are open at once, else they
are merged into one. Memory is a run with its sort, or a block of every run, however much is sorted and however many codes a
latent has. Scratch files take about half of what the codes take in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from store import tables
from store.errors import StoreError
from store.values import Codes

Array = np.ndarray[Any, np.dtype[Any]]
RUN_ROWS = 4 << 20
BLOCK_ROWS = 16 << 10
MOST_RUNS = 256


def sort_key(codes: Codes) -> Array:
    """Return ``uint64[N]`` that orders codes by (latent, −value): zeros of both signs are equal, NaN comes last.

    A stable sort by it leaves codes of one latent and value as they came.
    """
    negated = -codes.value + np.float32(0.0)  # -0.0 becomes 0.0
    bits = negated.view(np.uint32)
    up = bits ^ np.where(bits >> np.uint32(31), np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    up = np.where(np.isnan(negated), np.uint32(0xFFFFFFFF), up)
    return (codes.latent.astype(np.uint64) << np.uint64(32)) | up


def joined(pieces: list[Codes]) -> Codes:
    """Return codes one behind the other."""
    return Codes(
        row=np.concatenate([np.empty(0, np.int64), *(piece.row for piece in pieces)]),
        latent=np.concatenate([np.empty(0, np.uint32), *(piece.latent for piece in pieces)]),
        value=np.concatenate([np.empty(0, np.float32), *(piece.value for piece in pieces)]),
    )


def taken(codes: Codes, at: Any) -> Codes:
    """Return some codes, by an array of places or a slice."""
    return Codes(row=codes.row[at], latent=codes.latent[at], value=codes.value[at])


def sorted_codes(codes: Codes) -> Codes:
    """Return codes by (latent, −value), those of one latent and value as they came."""
    return taken(codes, np.argsort(sort_key(codes), kind="stable"))


@dataclass(kw_only=True)
class CodeSorter:
    """Takes codes in ascending order of rows' parts and gives them back sorted.

    Parameters
    ----------
    scratch
        Folder for scratch files; None: where the system keeps such things. They are gone when the sorter is left.
    """

    scratch: Path | None = None
    run_rows: int = RUN_ROWS
    block_rows: int = BLOCK_ROWS
    most_runs: int = MOST_RUNS
    _held: list[Codes] = field(default_factory=list)
    _rows: int = 0
    _runs: list[Path] = field(default_factory=list)
    _made: int = 0
    _folder: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def put(self, codes: Codes) -> None:
        """Add codes; equal (latent, value) come back in the order they were put."""
        for low in range(0, len(codes.row), self.run_rows):
            piece = taken(codes, slice(low, low + self.run_rows))
            if self._rows and self._rows + len(piece.row) > self.run_rows:
                self._spill()
            self._held.append(piece)
            self._rows += len(piece.row)

    def blocks(self) -> Iterator[Codes]:
        """Yield all codes, sorted, in blocks."""
        if not self._runs:
            whole = sorted_codes(joined(self._held))
            for low in range(0, len(whole.row), self.block_rows):
                yield taken(whole, slice(low, low + self.block_rows))
            return
        self._spill()
        yield from _merge([_read_run(path) for path in self._runs])

    def _spill(self) -> None:
        whole = sorted_codes(joined(self._held))
        self._held, self._rows = [], 0
        lows = range(0, len(whole.row), self.block_rows)
        self._write(taken(whole, slice(low, low + self.block_rows)) for low in lows)
        if len(self._runs) >= self.most_runs:
            merging, self._runs = self._runs, []
            self._write(_merge([_read_run(path) for path in merging]))
            for path in merging:
                path.unlink()

    def _write(self, blocks: Iterable[Codes]) -> None:
        try:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="actlake-", dir=self.scratch)
            path = Path(self._folder.name) / f"{self._made}"
            with path.open("wb") as file:
                for block in blocks:
                    data = tables.pack(
                        block.row.tobytes() + block.latent.tobytes() + block.value.tobytes()
                    )
                    file.write(np.array([len(data), len(block.row)], np.int64).tobytes() + data)
        except OSError as error:
            raise StoreError(
                f"codes are sorted in scratch files, and one of them could not be written ({error}). Nothing in the store "
                "was changed. Free space, or name another folder (--scratch).",
                kind="scratch-failed",
            ) from error
        self._made += 1
        self._runs.append(path)


def _read_run(path: Path) -> Iterator[Codes]:
    at = 0
    while at < path.stat().st_size:
        with path.open("rb") as file:  # not kept open: there may be hundreds
            file.seek(at)
            size, rows = np.frombuffer(file.read(16), np.int64).tolist()
            data = tables.unpack(file.read(size), 16 * rows)
        at += 16 + size
        yield Codes(
            row=np.frombuffer(data, np.int64, rows),
            latent=np.frombuffer(data, np.uint32, rows, 8 * rows),
            value=np.frombuffer(data, np.float32, rows, 12 * rows),
        )


class _Head:
    """What is left of the block a run is read at."""

    def __init__(self, blocks: Iterator[Codes]) -> None:
        self._blocks = blocks
        self.next()

    def next(self) -> None:
        block = next(self._blocks, None)
        self.ended = block is None
        if block is not None:
            self.codes, self.key, self.at = block, sort_key(block), 0

    def take(self, bound: Any, side: Any) -> Codes:
        """Return what comes before (``left``) or up to (``right``) a key, and go behind it."""
        low, self.at = self.at, int(np.searchsorted(self.key, bound, side))
        return taken(self.codes, slice(low, self.at))


def _merge(runs: list[Iterator[Codes]]) -> Iterator[Codes]:
    """Yield the codes of sorted runs, sorted; of equal ones those of earlier runs come first.

    At each step the smallest last key of all blocks is the bound: up to it every run is in memory. The first run that ends a
    block there may go on with that very key in its next block, so runs behind it give only what comes before the bound.
    """
    heads = [head for head in map(_Head, runs) if not head.ended]
    while heads:
        first = min(range(len(heads)), key=lambda number: heads[number].key[-1])
        bound = heads[first].key[-1]
        pieces = [
            head.take(bound, "right" if number <= first else "left")
            for number, head in enumerate(heads)
        ]
        yield sorted_codes(joined(pieces))
        heads[first].next()
        if heads[first].ended:
            del heads[first]
