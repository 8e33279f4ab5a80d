"""Attention patterns of one sequence, block by block: exact probabilities in bounded memory.

The softmax over all keys needs their log-sum-exp first, so a block of queries passes its keys twice where
they do not fit one block; nothing of the size of the whole pattern ever exists. Each sequence is computed by
itself, so its bits do not depend on what it was batched with, live or from a store.

Dimensions: T queries, S keys, H query heads, G key heads, d head width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ingest.models import attention_sites, scores
from jobs.errors import JobError

if TYPE_CHECKING:
    from torch import Tensor

    from ingest.contract import SequenceBlock
    from ingest.models import AttentionSpec
    from ingest.models.facts import ModelFacts

Array = np.ndarray[Any, np.dtype[Any]]
BLOCK = 256
"""Queries and keys per block; scores of 32 heads take 8 MB."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PatternBlock:
    """Some queries' attention to some keys."""

    query: int
    """Position of the first query."""
    key: int
    """Position of the first key."""
    p: Tensor
    """Probabilities ``[H, T, S]``, 0 where the key is hidden; float32, float64 for float64 inputs."""

    @property
    def queries(self) -> slice:
        """Positions of the queries."""
        return slice(self.query, self.query + self.p.shape[1])

    @property
    def keys(self) -> slice:
        """Positions of the keys."""
        return slice(self.key, self.key + self.p.shape[2])


def pattern_blocks(
    q_THd: Tensor, k_SGd: Tensor, spec: AttentionSpec, *, block: int = BLOCK
) -> Iterator[PatternBlock]:
    """Yield the pattern of one sequence: queries in order and, for each block of them, keys in order.

    Blocks in which every key is hidden are left out.

    Parameters
    ----------
    q_THd, k_SGd
        As attention sees them (`attention_sites`); both begin at position 0.
    spec
        The layer's attention; scale, grouping, causality, window and softcap are honoured.
    block
        Queries and keys per block.

    Raises
    ------
    ModelError
        ``bad-input`` where shapes disagree with ``spec``.
    """
    for query in range(0, len(q_THd), block):
        q = q_THd[None, query : query + block]
        starts = _visible(len(k_SGd), spec, query, query + q.shape[1], block)

        def scored(key: int, q: Tensor = q, query: int = query) -> Tensor:
            k = k_SGd[None, key : key + block]
            return scores(q, k, spec, query_start=query, key_start=key)[0]

        if (
            len(starts) == 1 and spec.window is None
        ):  # every query sees key 0, and all of its keys are here
            p_HTS = torch.softmax(scored(starts[0]), dim=-1)
            yield PatternBlock(query=query, key=starts[0], p=p_HTS)
            continue
        total = None
        for key in starts:
            part = torch.logsumexp(scored(key), dim=-1, keepdim=True)
            total = part if total is None else torch.logaddexp(total, part)
        if total is None:
            continue
        # A query that sees no key has probability nowhere, not NaN.
        total = total.masked_fill(total == -torch.inf, 0.0)
        for key in starts:
            yield PatternBlock(query=query, key=key, p=scored(key).sub_(total).exp_())


def visible_queries(spec: AttentionSpec, queries: int, keys: int) -> Array:
    """Return how many of the first ``queries`` queries may see each key, ``int64[keys]``."""
    j = np.arange(keys)
    reach = keys + queries if spec.window is None else spec.window
    first = j if spec.causal else np.maximum(0, j - reach + 1)
    last = np.minimum(queries - 1, j + reach - 1)
    return np.maximum(0, last - first + 1).astype(np.int64)


def layers_of(model: ModelFacts, layers: tuple[int, ...]) -> tuple[int, ...]:
    """Return the blocks a statistic looks at, ascending: those named, else all.

    Raises
    ------
    ActlakeError
        A block is not there, or how the model attends is not recorded.
    """
    chosen = model.blocks(layers)
    for layer in chosen:
        model.attention(layer)
    return chosen


def pattern_sites(model: ModelFacts, layers: tuple[int, ...]) -> tuple[str, ...]:
    """Return the q and k sites of some blocks, as attention sees them."""
    return tuple(
        site for layer in layers_of(model, layers) for site in attention_sites(model, layer)[:2]
    )


def queries_and_keys(
    block: SequenceBlock, model: ModelFacts, layer: int, rows: slice
) -> tuple[Tensor, Tensor] | None:
    """Return q ``[T, H, d]`` and k ``[T, G, d]`` of one sequence, None where one of them is not finite."""
    q_site, k_site = attention_sites(model, layer)[:2]
    q, k = block.sites[q_site][rows], block.sites[k_site][rows]
    if not (bool(torch.isfinite(q).all()) and bool(torch.isfinite(k).all())):
        return None
    return q, k


def sequences(block: SequenceBlock) -> Iterator[slice]:
    """Yield the rows of each sequence of a block."""
    for low, high in itertools.pairwise(block.bounds.tolist()):
        yield slice(low, high)


def refuse(asked: str, found: str) -> JobError:
    """Return the error of a statistic whose settings mean nothing."""
    return JobError(
        f"{asked} was asked for; {found}. Nothing was started. Mend the statistic's settings.",
        kind="bad-number",
    )


def _visible(keys: int, spec: AttentionSpec, first: int, stop: int, block: int) -> list[int]:
    """Return where the key blocks begin that hold a key one of the queries ``first:stop`` may see."""
    low = 0 if spec.window is None else max(0, first - spec.window + 1)
    high = keys if spec.window is None else min(keys, stop + spec.window - 1)
    high = min(high, stop) if spec.causal else high
    return [start for start in range(0, keys, block) if start < high and start + block > low]
