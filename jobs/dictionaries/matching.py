"""How well the rows of two dictionaries pair up.

Dimensions: L and N rows of the two, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
LARGEST = 40_000_000
"""Entries of a similarity matrix above which the pairs are sought among each row's nearest 50 only."""
NEAREST = 50


def similarity(one_LD: Array, other_ND: Array) -> Array:
    """Return ``|cos|`` of every pair of rows, float32 [L, N]."""
    found: Array = np.abs(_unit(one_LD) @ _unit(other_ND).T)
    return found


def matched(cosine_LN: Array) -> tuple[Array, Array]:
    """Return the pairs (rows, columns) of the one-to-one matching with the largest sum: min(L, N) of them.

    Above ``LARGEST`` entries only each row's ``NEAREST`` columns take part, and rows that then find none are left out.
    Source: Kuhn's assignment problem, by ``scipy.optimize``.
    """
    from scipy.optimize import linear_sum_assignment

    if cosine_LN.size <= LARGEST:
        return linear_sum_assignment(cosine_LN, maximize=True)  # type: ignore[no-any-return]
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    if cosine_LN.shape[0] > cosine_LN.shape[1]:
        columns, rows = matched(cosine_LN.T)
        return rows, columns
    near = np.argpartition(-cosine_LN, NEAREST, axis=1)[:, :NEAREST]
    rows = np.repeat(np.arange(len(cosine_LN)), NEAREST)
    cost = 2.0 - cosine_LN[rows, near.ravel()]
    # A column of its own for every row, at a cost no pair has, so that a full matching exists.
    spare = np.arange(len(cosine_LN))
    width = cosine_LN.shape[1]
    data = np.concatenate([cost, np.full(len(spare), 1e3)])
    at = (np.concatenate([rows, spare]), np.concatenate([near.ravel(), width + spare]))
    table = csr_matrix((data, at), shape=(len(cosine_LN), width + len(spare)))
    found, partner = min_weight_full_bipartite_matching(table)
    real = partner < width
    return found[real], partner[real]


def mean_matched(one_LD: Array, other_ND: Array) -> float:
    """Return the mean ``|cos|`` over the one-to-one matching: MCC."""
    cosine = similarity(one_LD, other_ND)
    rows, columns = matched(cosine)
    return float(cosine[rows, columns].mean())


def _unit(rows: Array) -> Array:
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Array = (rows / np.where(norm > 0, norm, 1)).astype(np.float32)
    return unit
