"""Attention over any mask, and what can be said of it, in plain loops and float64. Slow and obviously right."""

import math

import numpy as np


def sees(geometry, query, key):
    position = geometry.query_start + query
    if geometry.causal and key > position:
        return False
    return geometry.window is None or abs(position - key) < geometry.window


def visible(geometry):
    return np.array(
        [[sees(geometry, i, j) for j in range(geometry.keys)] for i in range(geometry.queries)]
    ).reshape(geometry.queries, geometry.keys)


def scores(q, k, scale, softcap=None):
    """``[T, d], [S, d] → [T, S]``."""
    found = q.astype(np.float64) @ k.astype(np.float64).T * scale
    return found if softcap is None else softcap * np.tanh(found / softcap)


def attention(q, k, v, mask, scale, softcap=None):
    """Return ``(o [T, d], lse [T], weights [T, S])`` of one head under a mask."""
    queries, keys = mask.shape
    found = scores(q, k, scale, softcap)
    o, lse = np.zeros((queries, v.shape[1])), np.full(queries, -math.inf)
    weights = np.zeros((queries, keys))
    for i in range(queries):
        seen = [j for j in range(keys) if mask[i, j]]
        if not seen:
            continue
        top = max(found[i, j] for j in seen)
        lse[i] = top + math.log(sum(math.exp(found[i, j] - top) for j in seen))
        for j in seen:
            weights[i, j] = math.exp(found[i, j] - lse[i])
            o[i] += weights[i, j] * v[j].astype(np.float64)
    return o, lse, weights


def mask_of(plan, batch, head):
    """Return the pairs a plan keeps for one plan head, from its lists alone."""
    geometry = plan.geometry
    mask = np.zeros((geometry.queries, geometry.keys), bool)
    for i in range(geometry.queries):
        tile, row = divmod(i, plan.bq)
        listed = plan.full_idx[batch, head, tile, : int(plan.full_num[batch, head, tile])].tolist()
        for slot in range(int(plan.kv_num[batch, head, tile])):
            bits = plan.token_bits
            if bits is None or int(bits[batch, head, tile, slot, row // 8]) >> (row % 8) & 1:
                listed.append(int(plan.kv_idx[batch, head, tile, slot]))
        for tile_key in listed:
            for j in range(tile_key * plan.bk, min((tile_key + 1) * plan.bk, geometry.keys)):
                mask[i, j] = sees(geometry, i, j)
    return mask
