"""What statistics are made of: mergeable accumulators in float64 and int64, each with a state of named arrays.

All of them: ``update`` takes rows in, ``merge`` returns a new one and changes neither, an accumulator of nothing is
merge's identity to the bit, ``state(prefix)`` gives arrays and ``restore(state, prefix)`` takes them back. Counts,
extremes and top lists are exact whatever the order; float sums agree to about 1e-12 relative.

Dimensions: R rows, N values, A lanes (independent accumulators side by side), K kept, C parts of a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from jobs.circuits.contract import Array, State

_CHUNK_VALUES = 1 << 20  # float64 copies of a block are made 8 MB at a time


def float64_rows(values: Any) -> Array:
    """Return a tensor or array as ``float64``, exact from every dtype a store keeps."""
    plain = values.double().numpy() if hasattr(values, "numpy") else values
    return np.asarray(plain, np.float64)


@dataclass(kw_only=True)
class Moments:
    """Count, mean and summed squared deviation of every element of a row.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979),
    equation 2.1.
    """

    count: int
    mean: Array
    """``float64[*shape]``; zeros where nothing was counted."""
    m2: Array
    """``float64[*shape]``; variance times count."""

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Self:
        """Return the accumulator of no rows of a shape."""
        return cls(count=0, mean=np.zeros(shape), m2=np.zeros(shape))

    def update(self, x_R: Array) -> None:
        """Take in rows, ``float64[R, *shape]``."""
        rows = max(1, _CHUNK_VALUES // max(1, self.mean.size))
        for low in range(0, len(x_R), rows):
            mine = x_R[low : low + rows]
            mean = mine.mean(axis=0)
            deviation = mine - mean
            seen = type(self)(
                count=len(mine), mean=mean, m2=np.einsum("r...,r...->...", deviation, deviation)
            )
            merged = self.merge(seen)
            self.count, self.mean, self.m2 = merged.count, merged.mean, merged.m2

    def merge(self, other: Self) -> Self:
        """Return the accumulator of both."""
        if not self.count or not other.count:
            full = self if self.count else other
            return type(self)(count=full.count, mean=full.mean.copy(), m2=full.m2.copy())
        count = self.count + other.count
        delta = other.mean - self.mean
        return type(self)(
            count=count,
            mean=self.mean + delta * (other.count / count),
            m2=self.m2 + other.m2 + delta**2 * (self.count * other.count / count),
        )

    @property
    def variance(self) -> Array:
        """Variance over the rows (divided by their count); NaN of none."""
        return self.m2 / self.count if self.count else np.full_like(self.m2, np.nan)

    def state(self, prefix: str) -> State:
        """Return the arrays, their names begun with ``prefix``."""
        count = np.array([self.count], np.int64)
        return {f"{prefix}count": count, f"{prefix}mean": self.mean, f"{prefix}m2": self.m2}

    @classmethod
    def restore(cls, state: State, prefix: str) -> Self:
        """Undo ``state``."""
        return cls(
            count=int(state[f"{prefix}count"][0]),
            mean=state[f"{prefix}mean"],
            m2=state[f"{prefix}m2"],
        )


@dataclass(kw_only=True)
class MinMax:
    """Least and greatest value of every element of a row; ±inf of none, NaN where one was seen."""

    low: Array
    high: Array

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Self:
        """Return the accumulator of no rows of a shape."""
        return cls(low=np.full(shape, np.inf), high=np.full(shape, -np.inf))

    def update(self, x_R: Array) -> None:
        """Take in rows, ``float64[R, *shape]``."""
        if len(x_R):
            self.low = np.minimum(self.low, x_R.min(axis=0))
            self.high = np.maximum(self.high, x_R.max(axis=0))

    def merge(self, other: Self) -> Self:
        """Return the accumulator of both."""
        return type(self)(
            low=np.minimum(self.low, other.low), high=np.maximum(self.high, other.high)
        )

    def state(self, prefix: str) -> State:
        """Return the arrays, their names begun with ``prefix``."""
        return {f"{prefix}low": self.low, f"{prefix}high": self.high}

    @classmethod
    def restore(cls, state: State, prefix: str) -> Self:
        """Undo ``state``."""
        return cls(low=state[f"{prefix}low"], high=state[f"{prefix}high"])


@dataclass(kw_only=True)
class TopK:
    """The K greatest values of each lane with their keys; of equal values those of the smallest keys.

    A key is C integers and names one value of its lane: values come once each. NaN is never kept.
    """

    values: Array
    """``float64[A, K]``, descending; -inf where fewer were seen."""
    keys: Array
    """``int64[A, K, C]``; -1 where fewer were seen."""

    @classmethod
    def empty(cls, lanes: int, k: int, key: int) -> Self:
        """Return the accumulator of no values: ``key`` is C."""
        return cls(values=np.full((lanes, k), -np.inf), keys=np.full((lanes, k, key), -1, np.int64))

    def update(self, lane: int, values_N: Array, keys_NC: Array) -> None:
        """Take in values of one lane, ``float64[N]``, and their keys, ``int64[N, C]``."""
        at = self.candidates(lane, values_N)
        self._take(lane, values_N[at], keys_NC[at])

    def candidates(self, lane: int, values_N: Array) -> Array:
        """Return the indices of the values that might be kept, ``int64[M]``: none below the K-th of either side.

        Where keys are costly to make for every value, make them for these and give only these to ``update``.
        """
        k = self.values.shape[1]
        floor = self.values[lane, -1]
        if floor == -np.inf and len(values_N) > k:
            floor = np.partition(np.where(np.isnan(values_N), -np.inf, values_N), -k)[-k]
        return np.flatnonzero(values_N >= floor) if k else np.empty(0, np.int64)

    def _take(self, lane: int, values_M: Array, keys_MC: Array) -> None:
        held = self.values[lane] > -np.inf
        values = np.concatenate([self.values[lane, held], np.asarray(values_M, np.float64)])
        keys = np.concatenate([self.keys[lane, held], np.asarray(keys_MC, np.int64)])
        order = np.lexsort((*keys.T[::-1], -values))[: self.values.shape[1]]
        order = order[values[order] > -np.inf]
        self.values[lane], self.keys[lane] = -np.inf, -1
        self.values[lane, : len(order)] = values[order]
        self.keys[lane, : len(order)] = keys[order]

    def merge(self, other: Self) -> Self:
        """Return the accumulator of both."""
        merged = type(self)(values=self.values.copy(), keys=self.keys.copy())
        for lane in range(len(merged.values)):
            merged._take(lane, other.values[lane], other.keys[lane])
        return merged

    def state(self, prefix: str) -> State:
        """Return the arrays, their names begun with ``prefix``."""
        return {f"{prefix}values": self.values, f"{prefix}keys": self.keys}

    @classmethod
    def restore(cls, state: State, prefix: str) -> Self:
        """Undo ``state``; the arrays are copied, for updates write into them."""
        return cls(values=state[f"{prefix}values"].copy(), keys=state[f"{prefix}keys"].copy())


_STEP_BITS = 6  # steps an octave: 2^6
_SHIFT = 23 - _STEP_BITS
_BINS = 1 << (31 - _SHIFT)
_INFINITE = 0x7F80_0000 >> _SHIFT


@dataclass(kw_only=True)
class LogHistogram:
    """Counts of magnitudes in fixed bins, 64 an octave over all of float32: quantiles without keeping values.

    A bin is the magnitudes whose float32 bits agree in the exponent and the first 6 bits of the mantissa, so it is at
    most 1/64 of its value wide and its middle is within 1/128 = 0.8 % of everything in it (subnormals, below
    1.2e-38, aside). Finding it takes a shift, no logarithm; counts of 7-bit mantissas (bfloat16) lose one bit.
    """

    counts: Array
    """``int64[A, 16384]``."""

    @classmethod
    def empty(cls, lanes: int) -> Self:
        """Return the accumulator of no values."""
        return cls(counts=np.zeros((lanes, _BINS), np.int64))

    def update(self, lane: int, values_N: Any) -> Array:
        """Take in values of one lane, a float tensor or array of any shape; return their own counts."""
        counts = bin_counts(values_N)
        self.counts[lane] += counts
        return counts

    def quantile(self, q: float) -> Array:
        """Return the quantile of every lane, ``float64[A]``: the middle of the bin it lies in, NaN of no values."""
        low, high = self.bounds(q)
        return (low + high) / 2

    def bounds(self, q: float) -> tuple[Array, Array]:
        """Return the edges ``float64[A]`` of the bins that hold the quantiles; NaN of no values."""
        pairs = [bin_bounds(counts, q) for counts in self.counts]
        low, high = np.array(pairs, np.float64).reshape(-1, 2).T
        return low, high

    def merge(self, other: Self) -> Self:
        """Return the accumulator of both."""
        return type(self)(counts=self.counts + other.counts)

    def state(self, prefix: str) -> State:
        """Return the arrays, their names begun with ``prefix``: the bins that hold something."""
        lane, bins = np.nonzero(self.counts)
        at = np.stack([lane, bins], axis=1).astype(np.int64)
        lanes = np.array([len(self.counts)], np.int64)
        return {
            f"{prefix}lanes": lanes,
            f"{prefix}at": at,
            f"{prefix}counts": self.counts[lane, bins],
        }

    @classmethod
    def restore(cls, state: State, prefix: str) -> Self:
        """Undo ``state``."""
        found = cls.empty(int(state[f"{prefix}lanes"][0]))
        at = state[f"{prefix}at"]
        found.counts[at[:, 0], at[:, 1]] = state[f"{prefix}counts"]
        return found


def bin_counts(values: Any) -> Array:
    """Return how many magnitudes fall into each bin of a ``LogHistogram``, ``int64[16384]``."""
    plain = values.float().numpy() if hasattr(values, "numpy") else values
    bits = np.ascontiguousarray(plain, np.float32).reshape(-1).view(np.uint32)
    return np.bincount((bits & 0x7FFF_FFFF) >> _SHIFT, minlength=_BINS)


def bin_bounds(counts: Array, q: float) -> tuple[float, float]:
    """Return the edges of the bin that holds a quantile (of the finite magnitudes, the lower one of two)."""
    cumulated = np.cumsum(counts[:_INFINITE])
    if not cumulated[-1]:
        return float("nan"), float("nan")
    rank = max(1, int(np.ceil(q * int(cumulated[-1]))))
    index = int(np.searchsorted(cumulated, rank))
    edges = (np.array([index, index + 1], np.uint32) << _SHIFT).view(np.float32)
    return float(edges[0]), float(edges[1])
