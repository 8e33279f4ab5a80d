"""Attention sinks: how much of everybody's attention the first positions take.

Column means of the pattern and nothing else are kept. The indicator is averaged over samples, not the
attention, for the threshold is not linear; both are reported.

Dimensions: L blocks looked at, H heads (of the widest block), K positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from jobs.circuits.contract import STATISTICS, ModelFacts, SequenceBlock, State, Table
from jobs.circuits.patterns import (
    Array,
    layers_of,
    pattern_blocks,
    pattern_sites,
    queries_and_keys,
    refuse,
    sequences,
    visible_queries,
)


@STATISTICS.register("attention_sinks")
@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionSinks:
    """Sink strength and sink rate of every head at the first positions.

    ``alpha_k = mean over the queries i that may see k of A[i, k]``; for causal attention that is the paper's
    ``1 / (T - k) * sum_{i >= k} A[i, k]`` with k counted from 0 and T = ``queries``. A bidirectional or
    windowed block has the mean over the queries that see the key, and all keys of the sequence take part in
    its softmax. A sample is one sequence; ``sink_rate`` is the share of samples with ``alpha_k > epsilon``.

    Tables
    ------
    ``attention_sinks``
        layer, head, position (k), alpha (mean over samples), sink_rate, n (samples).
    ``sink_heads``
        layer, head, alpha and sink_rate of each sample's strongest position among those that at least
        ``least_queries`` queries see, first_share (samples where that is position 0), n, skipped.
    ``sinks``
        position, sink_rate: the paper's ``Sink_k``, the mean over layers and heads.

    Notes
    -----
    Sequences of fewer than ``queries`` tokens, and those with q or k that are not finite, are left out; the
    latter are counted in ``skipped``. Every token counts, special ones too: sinks mostly are special.
    Diagonal attention makes last positions look like sinks (few queries see them), hence ``least_queries``.

    Source: Gu et al., "When Attention Sink Emerges in Language Models" (arXiv 2410.10781), section 3.2:
    epsilon 0.3, T = 64, 100 sequences. T changes the values.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 2
    positions: int = 4
    """K: first positions reported one by one, 1 to ``queries``."""
    epsilon: float = 0.3
    """A head sinks into a position where alpha is above this, in (0, 1)."""
    queries: int = 64
    """T: queries looked at, from the first token of a sequence on."""
    least_queries: int = 8
    """Positions that fewer queries see are no candidates for the strongest."""
    layers: tuple[int, ...] = ()
    """Blocks looked at; empty for all."""

    def __post_init__(self) -> None:
        if not 1 <= self.positions <= self.queries:
            raise refuse(f"sinks at {self.positions} positions of {self.queries}", "K is 1 to T")
        if not 1 <= self.least_queries <= self.queries:
            raise refuse(f"at least {self.least_queries} of {self.queries} queries", "it is 1 to T")
        if not 0 < self.epsilon < 1:
            raise refuse(f"a threshold of {self.epsilon}", "alpha lies between 0 and 1")

    def requires(self, model: ModelFacts) -> tuple[str, ...]:
        """Return q and k of every block looked at."""
        return pattern_sites(model, self.layers)

    def empty(self, model: ModelFacts) -> _Sinks:
        """Return the partial of no rows."""
        chosen = layers_of(model, self.layers)
        heads = max(model.attention(layer).heads for layer in chosen)
        shape, counts = (len(chosen), heads), (len(chosen),)
        return _Sinks(
            config=self,
            model=model,
            alpha=np.zeros((*shape, self.positions)),
            sinks=np.zeros((*shape, self.positions), np.int64),
            top_alpha=np.zeros(shape),
            top_sinks=np.zeros(shape, np.int64),
            top_first=np.zeros(shape, np.int64),
            n=np.zeros(counts, np.int64),
            skipped=np.zeros(counts, np.int64),
            short=np.zeros(counts, np.int64),
        )

    def from_state(self, model: ModelFacts, state: State) -> _Sinks:
        """Undo ``state``."""
        return _Sinks(
            config=self, model=model, **{name: array.copy() for name, array in state.items()}
        )


@dataclass(kw_only=True)
class _Sinks:
    """`Partial` of `AttentionSinks`; every array starts with the blocks looked at."""

    config: AttentionSinks = field(repr=False)
    model: ModelFacts = field(repr=False)
    alpha: Array
    sinks: Array
    top_alpha: Array
    top_sinks: Array
    top_first: Array
    n: Array
    skipped: Array
    short: Array
    """Sequences of fewer than T tokens, of which nothing is said, ``int64[blocks]``."""

    def update(self, block: SequenceBlock) -> None:
        """Take in every sequence that is long enough."""
        for rows in sequences(block):
            if rows.stop - rows.start < self.config.queries:
                self.short += 1
                continue
            for at, layer in enumerate(layers_of(self.model, self.config.layers)):
                found = queries_and_keys(block, self.model, layer, rows)
                if found is None:
                    self.skipped[at] += 1
                else:
                    self._add(at, *self._columns(layer, *found))

    def _columns(self, layer: int, q: Any, k: Any) -> tuple[Array, Array]:
        """Return the mean attention each key gets, ``float64[H, S]``, and how many queries see it ``[S]``."""
        spec, queries = self.model.attention(layer), self.config.queries
        k = k[:queries] if spec.causal else k
        total_HS = np.zeros((spec.heads, len(k)))
        for part in pattern_blocks(q[:queries], k, spec):
            total_HS[:, part.keys] += part.p.double().sum(1).numpy()
        seen_S = visible_queries(spec, queries, len(k))
        return total_HS / np.maximum(seen_S, 1), seen_S

    def _add(self, at: int, alpha_HS: Array, seen_S: Array) -> None:
        heads, first = len(alpha_HS), alpha_HS[:, : self.config.positions]
        self.n[at] += 1
        self.alpha[at, :heads] += first
        self.sinks[at, :heads] += first > self.config.epsilon
        # Behind a window narrower than that no position is seen by so many: there the most seen ones count.
        least = min(self.config.least_queries, int(seen_S.max()))
        eligible_HS = np.where(seen_S >= least, alpha_HS, -1.0)
        top_H = eligible_HS.max(1)
        self.top_alpha[at, :heads] += top_H
        self.top_sinks[at, :heads] += top_H > self.config.epsilon
        self.top_first[at, :heads] += eligible_HS.argmax(1) == 0

    def merge(self, other: Self) -> Self:
        """Return the partial of both."""
        mine, theirs = self.state(), other.state()
        summed = {name: mine[name] + theirs[name] for name in mine}
        return type(self)(config=self.config, model=self.model, **summed)

    def state(self) -> State:
        """Return the sums and counts."""
        names = ("alpha", "sinks", "top_alpha", "top_sinks", "top_first", "n", "skipped", "short")
        return {name: getattr(self, name) for name in names}

    def finalize(self) -> dict[str, Table]:
        """Return the tables; figures of no samples are NaN."""
        chosen = layers_of(self.model, self.config.layers)
        pairs = [
            (at, head)
            for at, layer in enumerate(chosen)
            for head in range(self.model.attention(layer).heads)
        ]
        at, head = np.array(pairs).reshape(-1, 2).T
        layer, n = np.array(chosen)[at], self.n[at]
        with np.errstate(invalid="ignore"):
            alpha, rate = (a[at, head] / n[:, None] for a in (self.alpha, self.sinks))
            top = [a[at, head] / n for a in (self.top_alpha, self.top_sinks, self.top_first)]
        k = self.config.positions
        return {
            "attention_sinks": {
                "layer": np.repeat(layer, k),
                "head": np.repeat(head, k),
                "position": np.tile(np.arange(k), len(at)),
                "alpha": alpha.reshape(-1),
                "sink_rate": rate.reshape(-1),
                "n": np.repeat(n, k),
            },
            "sink_heads": {
                "layer": layer,
                "head": head,
                "alpha": top[0],
                "sink_rate": top[1],
                "first_share": top[2],
                "n": n,
                "skipped": self.skipped[at],
                "short": self.short[at],
            },
            "sinks": {"position": np.arange(k), "sink_rate": rate.mean(0)},
        }
