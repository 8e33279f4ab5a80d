"""Corpus × recipe → sequences, splits and batches. Pure; nothing here reads or writes.

Batch composition is fixed here and is part of the recipe: bfloat16 kernels give other low bits at another batch
size or padding, so equal batches are what makes stored activations reproducible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
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
    """Sequences ``first:first+count`` of a part, padded to ``length`` tokens and ``size`` sequences."""

    first: int
    count: int
    size: int
    length: int


def batches(
    lengths: Sequence[int], batch_sequences: int, max_positions: int | None = None
) -> Iterator[Batch]:
    """Yield the batches of one part: sequences in order, padded to the longest rounded up to 32.

    The last batch is filled up with padding sequences; padding never becomes a row. A model with fewer
    positions than the rounded length sets the limit.
    """
    for first in range(0, len(lengths), batch_sequences):
        mine = lengths[first : first + batch_sequences]
        length = -(-max(mine) // PAD_MULTIPLE) * PAD_MULTIPLE
        if max_positions is not None:
            length = min(length, max_positions)
        yield Batch(first=first, count=len(mine), size=batch_sequences, length=length)


def padded(
    token_ids: Array, starts: Array, lengths: Array, batch: Batch, pad_id: int
) -> tuple[Array, Array]:
    """Return (ids, mask), ``int64[size, length]``, of a batch.

    Parameters
    ----------
    token_ids
        ``int32[R]`` of the part.
    starts, lengths
        ``int64[S]``: first row (in the part) and rows of each sequence.
    """
    ids_BT = np.full((batch.size, batch.length), pad_id, np.int64)
    mask_BT = np.zeros((batch.size, batch.length), np.int64)
    for slot in range(batch.count):
        start, count = starts[batch.first + slot], lengths[batch.first + slot]
        ids_BT[slot, :count] = token_ids[start : start + count]
        mask_BT[slot, :count] = 1
    mask_BT[batch.count :, 0] = 1  # a sequence that sees nothing would make NaNs in some kernels
    return ids_BT, mask_BT
