"""Attention patterns and what is read off them, dense and in float64, written from the formulas alone."""

import numpy as np


def pattern(q, k, *, kv_group=1, scale=1.0, causal=True, softcap=None, window=None):
    """Return ``[H, T, S]`` of q ``[T, H, d]`` and k ``[S, G, d]``; zeros where a query sees nothing."""
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    k = np.repeat(k, kv_group, axis=1)
    scores = np.einsum("thd,shd->hts", q, k) * scale
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    seen = np.ones(scores.shape[1:], bool)
    for i in range(seen.shape[0]):
        for j in range(seen.shape[1]):
            if causal and j > i:
                seen[i, j] = False
            if window is not None and abs(i - j) >= window:
                seen[i, j] = False
    scores = np.where(seen, scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = weights.sum(-1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)


def templates(tokens, special):
    """Return induction, previous-token and duplicate-token pairs, bool ``[T, T]`` each, one pair at a time."""
    count = len(tokens)
    found = np.zeros((3, count, count), bool)
    for i in range(count):
        for j in range(i + 1):
            if special[i] or special[j]:
                continue
            found[0, i, j] = j >= 1 and not special[j - 1] and tokens[j - 1] == tokens[i]
            found[1, i, j] = j == i - 1
            found[2, i, j] = j < i and tokens[j] == tokens[i]
    return found


def scores(patterns, tokens, specials):
    """Return, over sequences, mean share of matching rows and of all rows, ``[3, H]`` each.

    ``patterns`` is a list of ``[H, T, T]``.
    """
    mass, having, rows = 0.0, 0, 0
    for p, sequence, special in zip(patterns, tokens, specials, strict=True):
        d = templates(sequence, special)
        mass = mass + np.einsum("hts,cts->ch", p, d.astype(float))
        having = having + d.any(2).sum(1)
        rows += int((~np.asarray(special)).sum())
    return mass / np.asarray(having)[:, None], mass / rows


def best_pairs(patterns, tokens, specials):
    """Return for each head the ``(weight, sequence, i, j)`` of each sequence's strongest induction pair."""
    heads = patterns[0].shape[0]
    found = [[] for _ in range(heads)]
    for number, (p, sequence, special) in enumerate(zip(patterns, tokens, specials, strict=True)):
        d = templates(sequence, special)[0]
        for head in range(heads):
            pairs = [(-p[head, i, j], number, i, j) for i, j in zip(*np.nonzero(d), strict=True)]
            if pairs:
                weight, *at = min(pairs)
                found[head].append((-weight, *at))
    return [sorted(pairs, key=lambda pair: (-pair[0], *pair[1:])) for pairs in found]


def sink_alphas(p, *, causal=True):
    """Return the mean attention each key gets from the queries that may see it, ``[H, T]``."""
    count = p.shape[-1]
    alphas = np.zeros((p.shape[0], count))
    for k in range(count):
        first = k if causal else 0
        alphas[:, k] = p[:, first:, k].sum(1) / (p.shape[1] - first)
    return alphas
