"""Induction heads by their patterns: who looks at what came after the last time.

A pattern score says what a head looks at, not what it does: a head may match perfectly and move nothing.
`jobs.circuits.confirm` asks the model by ablation, `jobs.circuits.copying` asks its weights.

Dimensions: L blocks looked at, H heads (of the widest block), T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np

from jobs.circuits.accumulators import TopK
from jobs.circuits.contract import STATISTICS, ModelFacts, SequenceBlock, State, Table
from jobs.circuits.patterns import (
    BLOCK,
    Array,
    PatternBlock,
    layers_of,
    pattern_blocks,
    pattern_sites,
    queries_and_keys,
    refuse,
    sequences,
)
from jobs.errors import JobError
from store.tokens import FLAG_SPECIAL

TEMPLATES = ("induction", "previous", "duplicate")


@STATISTICS.register("induction")
@dataclass(frozen=True, kw_only=True, slots=True)
class Induction:
    """Prefix matching, previous-token and duplicate-token scores of every head, and telling pairs.

    Templates over causal pairs ``j <= i``: induction ``token[j - 1] == token[i]``, previous ``j == i - 1``,
    duplicate ``token[j] == token[i], j < i``. A query's share of a template is the attention it gives to all
    keys of the template, so several earlier occurrences count together. A score is the mean share over the
    queries that have such a key; the ``_mul`` form is the mean over all queries (``sum(A * D) / sum(A)``), which
    rows without a match lower. On blocks of distinct random tokens repeated with period p,
    ``prefix_matching`` is the mean of ``A[i, i - p + 1]``.

    Special tokens are no queries, no keys of a template, and match nothing: where a sequence holds two
    BOS, every head that rests on the first would seem to match.

    Tables
    ------
    ``heads``
        layer, head, prefix_matching, prefix_matching_mul, previous_token, duplicate_token,
        duplicate_token_mul, matched (queries with an induction key, within a
        layer's window or not), rows (queries), sequences, skipped.
    ``head_contexts``
        layer, head, rank, seq, query_row, key_row, weight, prefix_matching: of the ``top_heads`` best heads,
        the strongest (query, key) pairs of the induction template, at most one a sequence; equal weights in
        the order of their rows.

    Notes
    -----
    Sequences whose q or k are not finite are left out and counted in ``skipped``. A document's end within a
    sequence is not a border, as it is none to attention. The score of a fixed period can be that of a head
    that looks back by a fixed distance: draw periods at random.

    Source: Olsson et al., "In-context Learning and Induction Heads" (arXiv 2209.11895), appendix; templates as
    in TransformerLens' head detector, without its change of the pattern in place.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    contexts: int = 8
    """Pairs kept for each head."""
    top_heads: int = 8
    """Heads by prefix matching whose pairs are reported."""
    layers: tuple[int, ...] = ()
    """Blocks looked at; empty for all."""

    def __post_init__(self) -> None:
        if self.contexts < 1 or self.top_heads < 1:
            raise refuse(f"{self.contexts} pairs of {self.top_heads} heads", "both are 1 or more")

    def requires(self, model: ModelFacts) -> tuple[str, ...]:
        """Return q and k of every block looked at.

        Raises
        ------
        JobError
            ``not-causal``.
        ModelError
            ``facts-missing``: it is not known how the model attends.
        """
        sites = pattern_sites(model, self.layers)
        if not all(model.attention(layer).causal for layer in layers_of(model, self.layers)):
            raise JobError(
                f"induction heads of a {model.family} model were asked for; it is bidirectional, and the "
                "templates are about what came before. Nothing was started. Use a causal model.",
                kind="not-causal",
            )
        return sites

    def empty(self, model: ModelFacts) -> _Induction:
        """Return the partial of no rows."""
        self.requires(model)
        chosen = layers_of(model, self.layers)
        heads = max(model.attention(layer).heads for layer in chosen)
        shape = (len(TEMPLATES), len(chosen))
        return _Induction(
            config=self,
            model=model,
            mass=np.zeros((*shape, heads)),
            having=np.zeros(shape, np.int64),
            rows=np.zeros(len(chosen), np.int64),
            sequences=np.zeros(len(chosen), np.int64),
            skipped=np.zeros(len(chosen), np.int64),
            pairs=TopK.empty(len(chosen) * heads, self.contexts, 3),
        )

    def from_state(self, model: ModelFacts, state: State) -> _Induction:
        """Undo ``state``."""
        plain = {name: state[name].copy() for name in _Induction.SUMS}
        return _Induction(config=self, model=model, pairs=TopK.restore(state, "pairs."), **plain)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Tokens:
    """One sequence's tokens as templates see them: -1 or -2 where special, so that nothing matches."""

    as_query: Array
    as_key: Array
    before: Array
    """The token before each key."""
    having: Array
    """How many queries have a key of each template, in reach of the layer's window or not, ``int64[3]``."""
    row_ids: Array
    seq: int
    held: dict[tuple[int, int], list[tuple[Array, Array]]] = field(default_factory=dict)

    @classmethod
    def of(cls, block: SequenceBlock, rows: slice) -> Self:
        token = np.asarray(block.tokens["token_id"])[rows].astype(np.int64)
        special = (np.asarray(block.tokens["flags"])[rows] & FLAG_SPECIAL) != 0
        as_query, as_key = np.where(special, -1, token), np.where(special, -2, token)
        # A special key is nobody's continuation: attention that rests on it says nothing of a match.
        before = np.where(special, -2, np.concatenate([[-2], as_key[:-1]]))
        i = np.arange(len(token))
        having = [
            (_first(before, as_query) <= i).sum(),
            ((as_query[1:] >= 0) & (as_key[:-1] >= 0)).sum(),
            (_first(as_key, as_query) < i).sum(),
        ]
        return cls(
            as_query=as_query,
            as_key=as_key,
            before=before,
            having=np.array(having, np.int64),
            row_ids=block.row_ids[rows],
            seq=int(np.asarray(block.tokens["seq_id"])[rows.start]),
        )

    def pairs(self, part: PatternBlock) -> list[tuple[Array, Array]]:
        """Return the pairs of each template in a block, as indices into it, queries ascending, then keys.

        They are the same at every layer and kept where the sequence is one block; more would not be bounded.
        """
        found = self.held.get((part.query, part.key))
        if found is None:
            found = [(i, j) for i, j in map(np.nonzero, self._masks(part))]
            if len(self.as_query) <= BLOCK:
                self.held[part.query, part.key] = found
        return found

    def _masks(self, part: PatternBlock) -> tuple[Array, Array, Array]:
        i, j = (np.arange(s.start, s.stop) for s in (part.queries, part.keys))
        query, key = self.as_query[part.queries, None], self.as_key[None, part.keys]
        induction = (query == self.before[None, part.keys]) & (j[None] <= i[:, None])
        previous = (j[None] == i[:, None] - 1) & (query >= 0) & (key >= 0)
        return induction, previous, (query == key) & (j[None] < i[:, None])


def _first(values: Array, wanted: Array) -> Array:
    """Return where each wanted value first occurs among the values, their number where it does not."""
    known, first = np.unique(values, return_index=True)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, first[at], len(values))


@dataclass(kw_only=True, slots=True, eq=False)
class _Best:
    """The strongest pair of each head in one sequence; of equal ones the first met, weight 0 of none."""

    weight: Array
    query: Array
    key: Array

    @classmethod
    def none(cls, heads: int) -> Self:
        return cls(weight=np.zeros(heads), query=np.zeros(heads, int), key=np.zeros(heads, int))

    def take(self, values_HN: Array, i_N: Array, j_N: Array) -> None:
        """Take in pairs ``(i, j)`` in ascending order."""
        first = values_HN.argmax(1)
        top = values_HN.max(1)
        better = top > self.weight
        self.weight = np.where(better, top, self.weight)
        self.query = np.where(better, i_N[first], self.query)
        self.key = np.where(better, j_N[first], self.key)


@dataclass(kw_only=True)
class _Induction:
    """`Partial` of `Induction`."""

    SUMS: ClassVar[tuple[str, ...]] = ("mass", "having", "rows", "sequences", "skipped")
    config: Induction = field(repr=False)
    model: ModelFacts = field(repr=False)
    mass: Array
    """Attention on each template's keys, ``float64[3, L, H]``."""
    having: Array
    """Queries that have a key of the template, ``int64[3, L]``."""
    rows: Array
    sequences: Array
    skipped: Array
    pairs: TopK
    """Lanes are (block, head); keys are (query row, key row, sequence)."""

    def update(self, block: SequenceBlock) -> None:
        """Take in the sequences of a block."""
        layers = layers_of(self.model, self.config.layers)
        heads = self.mass.shape[2]
        weights = np.full((len(block.bounds) - 1, len(layers) * heads), np.nan)
        keys = np.full((*weights.shape, 3), -1, np.int64)
        for number, rows in enumerate(sequences(block)):
            tokens = _Tokens.of(block, rows)
            for at, layer in enumerate(layers):
                found = queries_and_keys(block, self.model, layer, rows)
                if found is None:
                    self.skipped[at] += 1
                    continue
                best = self._add(at, tokens, pattern_blocks(*found, self.model.attention(layer)))
                lanes = slice(at * heads, at * heads + len(best.weight))
                weights[number, lanes] = best.weight
                keys[number, lanes, 0] = tokens.row_ids[best.query]
                keys[number, lanes, 1] = tokens.row_ids[best.key]
                keys[number, lanes, 2] = tokens.seq
        # Never kept: there is no pair, or the layer does not see it.
        weights[weights == 0] = np.nan
        for lane, values in enumerate(weights.T):
            self.pairs.update(lane, values, keys[:, lane])

    def _add(self, at: int, tokens: _Tokens, parts: Iterator[PatternBlock]) -> _Best:
        """Count one sequence at one block; return its strongest induction pair for each head."""
        heads = self.model.attention(layers_of(self.model, self.config.layers)[at]).heads
        best = _Best.none(heads)
        for part in parts:
            p_HTS = part.p.numpy()
            for template, (i, j) in enumerate(tokens.pairs(part)):
                values = p_HTS[:, i, j].astype(np.float64)
                self.mass[template, at, :heads] += values.sum(1)
                if template == 0 and len(i):
                    best.take(values, i + part.query, j + part.key)
        self.having[:, at] += tokens.having
        self.rows[at] += int((tokens.as_query >= 0).sum())
        self.sequences[at] += 1
        return best

    def merge(self, other: Self) -> Self:
        """Return the partial of both."""
        summed = {name: getattr(self, name) + getattr(other, name) for name in self.SUMS}
        pairs = self.pairs.merge(other.pairs)
        return type(self)(config=self.config, model=self.model, pairs=pairs, **summed)

    def state(self) -> State:
        """Return sums, counts and pairs."""
        return {name: getattr(self, name) for name in self.SUMS} | self.pairs.state("pairs.")

    def finalize(self) -> dict[str, Table]:
        """Return the tables; scores of no queries are NaN."""
        chosen = layers_of(self.model, self.config.layers)
        counts = [self.model.attention(layer).heads for layer in chosen]
        at = np.repeat(np.arange(len(chosen)), counts)
        head = np.concatenate([np.arange(count) for count in counts])
        layer, mass = np.array(chosen)[at], self.mass[:, at, head]
        with np.errstate(invalid="ignore"):
            score, mul = mass / self.having[:, at], mass / self.rows[at]
        heads = {
            "layer": layer,
            "head": head,
            "prefix_matching": score[0],
            "prefix_matching_mul": mul[0],
            "previous_token": score[1],
            "duplicate_token": score[2],
            "duplicate_token_mul": mul[2],
            "matched": self.having[0, at],
            "rows": self.rows[at],
            "sequences": self.sequences[at],
            "skipped": self.skipped[at],
        }
        lane = at * self.mass.shape[2] + head
        # NaN sorts last; equal scores in the order of their heads.
        top = np.argsort(-score[0], kind="stable")[: self.config.top_heads]
        return {"heads": heads, "head_contexts": self._contexts(layer, head, lane, score[0], top)}

    def _contexts(self, layer: Array, head: Array, lane: Array, score: Array, top: Array) -> Table:
        held = [(n, r) for n in top for r in np.flatnonzero(self.pairs.keys[lane[n], :, 0] >= 0)]
        which, rank = np.array(held, np.int64).reshape(-1, 2).T
        keys = self.pairs.keys[lane[which], rank]
        return {
            "layer": layer[which],
            "head": head[which],
            "rank": rank,
            "seq": keys[:, 2],
            "query_row": keys[:, 0],
            "key_row": keys[:, 1],
            "weight": self.pairs.values[lane[which], rank],
            "prefix_matching": score[which],
        }
