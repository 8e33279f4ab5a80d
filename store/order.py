"""The global order of rows: a pure function of (seed, epoch, window_rows, where) and the pin's (part, rows).

Chunks of 256 rows are permuted by a 64-bit Feistel network with cycle walking (O(1) memory, any number of
chunks); consecutive permuted chunks form a window; the rows of a window are sorted by words of Philox (NumPy
guarantees a bit generator's words for ever, what ``Generator.permutation`` makes of them it does not). One
window over everything is a full shuffle. Hashes and attempts play no part: a store that was killed and completed gives the
same order as one that was not.

Source: Black and Rogaway, "Ciphers with arbitrary finite domains" (2002), cycle walking; Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3" (2011), Philox.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from store.layout import CHUNK_ROWS
from store.schema import subseed

ORDER_VERSION = 1
_ROUNDS = 6
_U64 = np.uint64
Array = np.ndarray[Any, np.dtype[Any]]


def _mix(values: Array) -> Array:
    """Finalise 64-bit words (the splitmix64 mixer)."""
    values = (values ^ (values >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> _U64(27))) * _U64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> _U64(31)))


def permute(index: Array, count: int, key: int) -> Array:
    """Return where a keyed permutation of ``range(count)`` sends each index.

    Parameters
    ----------
    index
        ``uint64[N]``, values below ``count``.
    count
        Size of the domain, 1 to 2**62.
    key
        64-bit key.
    """
    half = _U64(max(1, -(-max(1, (count - 1).bit_length()) // 2)))
    mask = (_U64(1) << half) - _U64(1)
    keys = _mix(_U64(key) + np.arange(1, _ROUNDS + 1, dtype=_U64) * _U64(0x9E3779B97F4A7C15))
    values = np.array(index, _U64)
    walking = np.ones(values.shape, bool)
    with np.errstate(over="ignore"):
        while (
            walking.any()
        ):  # a value that lands outside walks on; it ends because the map is a bijection
            left, right = values[walking] >> half, values[walking] & mask
            for round_key in keys:
                left, right = right, left ^ (_mix(right + round_key) & mask)
            values[walking] = (left << half) | right
            walking[walking] = values[walking] >= _U64(count)
    return values


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """The order of all rows of a pin.

    Parameters
    ----------
    parts, rows
        ``int64[P]``: parts in ascending order and their row counts.
    """

    parts: Array
    rows: Array
    seed: int
    epoch: int
    window_rows: int

    @property
    def chunk_starts(self) -> Array:
        """``int64[P+1]``: first global chunk of each part."""
        return np.concatenate([[0], np.cumsum(-(-self.rows // CHUNK_ROWS))])

    @property
    def chunks(self) -> int:
        """Chunks of all parts."""
        return int((-(-self.rows // CHUNK_ROWS)).sum())

    @property
    def window_chunks(self) -> int:
        """Chunks of one window."""
        return max(1, self.window_rows // CHUNK_ROWS)

    @property
    def windows(self) -> int:
        """Windows of one epoch; the last may be smaller."""
        return -(-self.chunks // self.window_chunks)

    def window(self, number: int) -> tuple[Array, Array]:
        """Return (part index, chunk in part) of a window's chunks, ``int64[C]`` each, in store order."""
        low = number * self.window_chunks
        high = min(low + self.window_chunks, self.chunks)
        key = subseed(self.seed, "chunks", self.epoch)
        chosen = np.sort(
            permute(np.arange(low, high, dtype=_U64), self.chunks, key).astype(np.int64)
        )
        starts = self.chunk_starts
        part = np.searchsorted(starts, chosen, side="right") - 1
        return part, chosen - starts[part]

    def shuffle(self, number: int, count: int) -> Array:
        """Return the permutation of a window's ``count`` surviving rows, ``int64[count]``."""
        key = subseed(self.seed, f"rows/{self.epoch}", number)
        low_bits = _U64((1 << max(0, count - 1).bit_length()) - 1)
        words = np.random.Philox(key=key).random_raw(count)
        words = (words & ~low_bits) | np.arange(count, dtype=_U64)  # ties fall to the lower index
        words.sort()
        return (words & low_bits).astype(np.int64)

    def state(self, next_position: int) -> Mapping[str, int]:
        """Return the integers of a resume state."""
        return {
            "order": ORDER_VERSION,
            "seed": self.seed,
            "epoch": self.epoch,
            "window_rows": self.window_rows,
            "next_position": next_position,
        }
