"""Circuit statistics over arrays held whole, in float64 NumPy: slow and obviously right."""

import numpy as np


def moments(x):
    """``x`` is ``[R, D]``: per feature mean, variance, extremes; per row RMS."""
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    return {
        "mean": x.mean(0),
        "variance": ((x - x.mean(0)) ** 2).mean(0),
        "minimum": x.min(0),
        "maximum": x.max(0),
        "rms": np.sqrt((x**2).mean(1)),
    }


def massive(sequences, absolute, ratio):
    """``sequences`` are ``[T, D]``: hits by feature with and without the absolute condition (`np.sort` medians)."""
    width = sequences[0].shape[1]
    hits, ratio_hits = np.zeros(width, int), np.zeros(width, int)
    for x in sequences:
        size = np.abs(np.asarray(x, np.float64))
        middle = np.sort(size.reshape(-1))[(size.size - 1) // 2]
        far = (size >= ratio * middle) & (size > 0)
        ratio_hits += far.sum(0)
        hits += (far & (size > absolute)).sum(0)
    return hits, ratio_hits


def greatest(x, row_ids, count):
    """The greatest magnitudes of ``[R, D]`` as (magnitude, row id, dim, value), of equals the first row, then dim."""
    found = [
        (-abs(float(x[r, d])), int(row_ids[r]), d, float(x[r, d]))
        for r in range(len(x))
        for d in range(x.shape[1])
    ]
    return [(-size, row, d, value) for size, row, d, value in sorted(found)[:count]]
