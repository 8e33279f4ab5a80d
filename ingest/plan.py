"""Corpus × recipe → sequences, splits and batches. Pure; nothing here reads or writes.

Batch composition is fixed here and is part of the recipe: bfloat16 kernels give other low bits at another batch
size or padding, so equal batches are what makes stored activations reproducible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
PAD_MULTIPLE = 32
SHARES = (0.90, 0.05, 0.05)


def split_of(text_sha256: str, seed: int = 0, shares: Sequence[float] = SHARES) -> int:
    """Return the split of a document (0 train, 1 val, 2 test) from the hash of its text."""
    digest = hashlib.sha256(f"{seed}/{text_sha256}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    return int(np.searchsorted(np.cumsum(shares)[:-1], point, side="right"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Content tokens ``start:stop`` of a document: one sequence, before special tokens."""

    start: int
    stop: int


def slices(tokens: int, content: int) -> list[Slice]:
    """Cut a document of ``tokens`` tokens into sequences of at most ``content`` tokens, in order."""
    return [Slice(start=low, stop=min(low + content, tokens)) for low in range(0, tokens, content)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Sequences ``first:first+count`` of a part in ``size`` lanes of ``length`` tokens."""

    first: int
    count: int
    size: int
    length: int
    places: tuple[tuple[int, int], ...] | None = None
    """Lane and first token of each sequence; None where each begins a lane of its own."""

    def place(self, slot: int) -> tuple[int, int]:
        """Return lane and first token of a sequence, counted within the batch."""
        return (slot, 0) if self.places is None else self.places[slot]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batching:
    """How the sequences of a part come together in batches; part of a harvest's recipe.

    Parameters
    ----------
    size
        Lanes of a batch.
    lanes
        Tokens of a lane that holds several sequences, none seeing another; None where each sequence has a lane of its own.
    """

    size: int
    lanes: int | None = None

    @classmethod
    def of(cls, size: int, context: int, *, lanes: bool) -> Batching:
        """Return the batching of sequences of at most ``context`` tokens."""
        return cls(size=size, lanes=_rounded(context) if lanes else None)

    @classmethod
    def of_recipe(cls, recipe: Mapping[str, Any]) -> Batching:
        """Return what a recipe says."""
        return cls(size=int(recipe["batch"]["sequences"]), lanes=recipe["batch"].get("lanes"))

    def to_json(self) -> dict[str, Any]:
        """Return what a recipe keeps of it."""
        lanes = {} if self.lanes is None else {"lanes": self.lanes}
        return {"sequences": self.size, "pad_multiple": PAD_MULTIPLE, **lanes}

    def batches(self, lengths: Sequence[int], max_positions: int | None = None) -> Iterator[Batch]:
        """Yield the batches of one part, sequences in order."""
        if self.lanes is None:
            return batches(lengths, self.size, max_positions)
        return lane_batches(lengths, self.size, self.lanes)


def _rounded(length: int) -> int:
    return -(-length // PAD_MULTIPLE) * PAD_MULTIPLE


def batches(
    lengths: Sequence[int], batch_sequences: int, max_positions: int | None = None
) -> Iterator[Batch]:
    """Yield the batches of one part: sequences in order, padded to the longest rounded up to 32.

    The last batch is filled up with padding sequences; padding never becomes a row. A model with fewer
    positions than the rounded length sets the limit.
    """
    for first in range(0, len(lengths), batch_sequences):
        mine = lengths[first : first + batch_sequences]
        length = _rounded(max(mine))
        if max_positions is not None:
            length = min(length, max_positions)
        yield Batch(first=first, count=len(mine), size=batch_sequences, length=length)


def lane_batches(lengths: Sequence[int], size: int, length: int) -> Iterator[Batch]:
    """Yield the batches of one part whose lanes hold several sequences: in order, a lane taking those that fit.

    Rows of a batch, lane by lane, are therefore rows of the part in their order. The last batch is filled up with padding.
    """
    first, at = 0, 0
    places: list[tuple[int, int]] = []
    lane = 0
    for number, count in enumerate(lengths):
        if at + count > length:
            lane, at = lane + 1, 0
        if lane == size:
            yield Batch(
                first=first, count=len(places), size=size, length=length, places=tuple(places)
            )
            first, places, lane = number, [], 0
        places.append((lane, at))
        at += count
    if places:
        yield Batch(first=first, count=len(places), size=size, length=length, places=tuple(places))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Padded:
    """A batch as a model takes it; ``int64[size, length]`` each."""

    ids: Array
    mask: Array
    """1 for tokens, and for one of each lane that holds none: a sequence that sees nothing would make NaNs in some kernels."""
    real: Array
    """Whether a place is a row."""
    positions: Array | None
    """0 where a sequence begins and at padding, of lanes that hold several; None where each holds one."""


def padded(token_ids: Array, starts: Array, lengths: Array, batch: Batch, pad_id: int) -> Padded:
    """Return a batch as a model takes it.

    Parameters
    ----------
    token_ids
        ``int32[R]`` of the part.
    starts, lengths
        ``int64[S]``: first row (in the part) and rows of each sequence.
    """
    shape = batch.size, batch.length
    ids_BT = np.full(shape, pad_id, np.int64)
    real_BT = np.zeros(shape, bool)
    positions_BT = np.zeros(shape, np.int64)
    for slot in range(batch.count):
        start, count = starts[batch.first + slot], lengths[batch.first + slot]
        lane, at = batch.place(slot)
        ids_BT[lane, at : at + count] = token_ids[start : start + count]
        real_BT[lane, at : at + count] = True
        positions_BT[lane, at : at + count] = np.arange(count)
    mask_BT = real_BT.astype(np.int64)
    mask_BT[~real_BT.any(1), 0] = 1
    return Padded(
        ids=ids_BT,
        mask=mask_BT,
        real=real_BT,
        positions=None if batch.places is None else positions_BT,
    )
