"""``synth_bench``: planted rows with what real features have: trees, company they keep, rates and sizes that fall off.

1. A row's features are those whose Gaussian is above the threshold of their rate: ``g = Az + σ ε``, z shared by all, so that
   features keep company (a Gaussian copula of low rank).
2. Trees: a child is on only where its parent is, and of several children of one parent that would be on, one is, drawn
   evenly. What they are drawn with is raised: a child's rate over its parent's, times one more than the siblings that compete,
   at most .98. Still they are on less often than their nominal rates say (`resulting_rates`).
3. A feature that is on has the magnitude ``max(0, N(size, spread))``, a child's times its parent's share of the parent's size.
   The spread is each feature's own, ``|N(spread, spread)|``.
4. ``x = Σ a_i f_i + bias``; features f are drawn evenly on the sphere.

Rates fall as ``rank ** -zipf``, stretched to run from ``rate_first`` to ``rate_last``; sizes fall evenly from ``size_first`` to
``size_last``. The first ranks are the roots of trees, then come their children, level by level, then features alone.

Source: SynthSAEBench (arXiv 2602.14687), sections 3 and 4, at its own defaults; deviations: everything comes from our seeds, not
its published files; features are not pushed apart, for at its size that leaves the mean largest overlap where it is (.148).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from safetensors.numpy import save

from ingest.errors import SourceError
from ingest.sources.registry import SOURCES
from store.schema import subseed

Array = np.ndarray[Any, np.dtype[Any]]
_BLOCK_ROWS = 512  # rows made at once: memory does not grow with the part
_MOST = 0.98  # chance that anything is drawn with


@SOURCES.register("synth_bench")
@dataclass(frozen=True, kw_only=True)
class SynthBench:
    """Rows from a planted dictionary with trees, correlations, falling rates and sizes, and a bias (SynthSAEBench)."""

    width: int = 768
    """Width D of a row."""
    features: int = 16_384
    """Planted unit features N."""
    zipf: float = 0.5
    """Exponent of the rates over ranks."""
    rate_first: float = 0.4
    """Rate of the first rank."""
    rate_last: float = 5e-4
    """Rate of the last rank."""
    roots: int = 128
    """Trees."""
    branching: int = 4
    """Children of a node."""
    depth: int = 3
    """Generations below a root; the features that no tree takes stand alone."""
    rank: int = 25
    """Numbers a row's features share, z."""
    correlation: float = 0.1
    """Standard deviation of the entries of A."""
    size_first: float = 5.0
    """Mean magnitude of the first rank."""
    size_last: float = 4.0
    """Mean magnitude of the last rank."""
    spread: float = 0.5
    """Standard deviation of magnitudes, and of itself between features."""
    bias: float = 0.5
    """Length of what is added to every row."""
    seed: int = 0
    """Root of the source's seeds."""

    def __post_init__(self) -> None:
        numbers = (
            "zipf", "rate_first", "rate_last", "correlation", "size_first", "size_last", "spread", "bias",
        )  # fmt: skip
        for name in numbers:
            object.__setattr__(self, name, float(getattr(self, name)))  # 4 and 4.0: one recipe
        whole = min(self.width, self.features, self.branching, self.rank, self.roots, self.depth)
        drawn = (self.zipf, self.spread, self.bias, self.size_first, self.size_last)
        legal = (
            whole >= 1
            and all(0 <= value < math.inf for value in drawn)
            and min(self.size_first, self.size_last) > 0
        )
        rates = 0 < self.rate_last <= self.rate_first < 1
        company = 0 <= self.correlation < 1 / math.sqrt(max(self.rank, 1))
        if not (legal and rates and company and self.tree_nodes <= self.features):
            raise SourceError(
                f"a planted dictionary of {self.features} features, {self.tree_nodes} of them in trees, with rates "
                f"{self.rate_first:g} to {self.rate_last:g} and correlation {self.correlation:g} of rank {self.rank} was asked "
                "for. Nothing was written. Give positive whole numbers, no more nodes than features, rates below 1 that fall, "
                "and a correlation below 1 / sqrt(rank).",
                kind="bad-source",
            )

    @property
    def columns(self) -> Mapping[str, str]:
        """One column ``x``."""
        return {"x": f"float32[{self.width}]"}

    @property
    def tree_nodes(self) -> int:
        """Features that stand in trees."""
        return sum(self.roots * self.branching**level for level in range(self.depth + 1))

    def _rng(self, purpose: str, index: int = 0) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=subseed(self.seed, purpose, index)))

    @functools.cached_property
    def dictionary(self) -> Array:
        """Planted features, ``float32[N, D]``, unit rows."""
        raw_ND = self._rng("features").standard_normal((self.features, self.width))
        return np.asarray(raw_ND / np.linalg.norm(raw_ND, axis=1, keepdims=True), np.float32)

    @functools.cached_property
    def rates(self) -> Array:
        """Rate of each feature, ``float64[N]``, falling."""
        fall = np.arange(1.0, self.features + 1) ** -self.zipf
        low, high = fall[-1], fall[0]
        share = (fall - low) / (high - low) if high > low else np.ones_like(fall)
        return np.asarray(self.rate_last + share * (self.rate_first - self.rate_last))

    @functools.cached_property
    def drawn_rates(self) -> Array:
        """Chance each feature is drawn with, ``float64[N]``: raised by what trees take away."""
        chances, inside = self.rates.copy(), self.parents >= 0
        parents = self.parents[inside]
        over = self.rates[parents]
        siblings = np.bincount(parents, self.rates[inside], self.features)[parents]
        others = siblings - self.rates[inside]
        chances[inside] = self.rates[inside] / over * (1.0 + others / over)
        return np.minimum(chances, _MOST)

    @functools.cached_property
    def resulting_rates(self) -> Array:
        """Rate at which each feature is on, ``float64[N]``, features taken as drawn alone: less than ``rates`` inside trees.

        Of children that would be on together one is chosen, and siblings that compete often cannot all have their rates.
        """
        found = self.rates.copy()
        first, count = 0, self.roots
        for _ in range(self.depth):
            parents = np.arange(first, first + count)
            children = first + count + np.arange(count * self.branching)
            chance_PC = self.drawn_rates[children].reshape(count, self.branching)
            share_PC = np.stack([_chosen(chance_PC, at) for at in range(self.branching)], 1)
            found[children] = (found[parents][:, None] * share_PC).reshape(-1)
            first, count = first + count, len(children)
        return found

    @functools.cached_property
    def sizes(self) -> Array:
        """Mean magnitude of each feature, ``float32[N]``, falling."""
        return np.linspace(self.size_first, self.size_last, self.features, dtype=np.float32)

    @functools.cached_property
    def spreads(self) -> Array:
        """Standard deviation of each feature's magnitudes, ``float32[N]``."""
        raw_N = self._rng("spreads").standard_normal(self.features)
        return np.asarray(np.abs(self.spread * (1.0 + raw_N)), np.float32)

    @functools.cached_property
    def parents(self) -> Array:
        """Parent of each feature, ``int64[N]``; −1 for roots and those that stand alone. Parents come before children."""
        found = np.full(self.features, -1, np.int64)
        first, count = 0, self.roots
        for _ in range(self.depth):
            children = first + count + np.arange(count * self.branching)
            found[children] = first + np.arange(len(children)) // self.branching
            first, count = first + count, len(children)
        return found

    @functools.cached_property
    def offset(self) -> Array:
        """What is added to every row, ``float32[D]``."""
        raw_D = self._rng("bias").standard_normal(self.width)
        return np.asarray(self.bias * raw_D / np.linalg.norm(raw_D), np.float32)

    @functools.cached_property
    def _company(self) -> tuple[Array, Array, Array]:
        """Return A ``[N, rank]``, σ ``[N]`` and the thresholds ``[N]``."""
        a_NK = self.correlation * self._rng("company").standard_normal((self.features, self.rank))
        shared_N = (a_NK**2).sum(1)
        a_NK *= np.sqrt(np.minimum(1.0, 0.95 / np.maximum(shared_N, 1e-12)))[
            :, None
        ]  # something of its own is left to each
        normal = NormalDist()
        ends_N = np.array([normal.inv_cdf(1.0 - chance) for chance in self.drawn_rates])
        own_N = np.sqrt(1.0 - (a_NK**2).sum(1))
        return a_NK.astype(np.float32), own_N.astype(np.float32), ends_N.astype(np.float32)

    def _codes(self, rng: np.random.Generator, rows: int) -> Array:
        """Return the planted activations of some rows, ``float32[rows, N]``."""
        a_NK, own_N, ends_N = self._company
        g_RN = rng.standard_normal((rows, self.features), np.float32)
        g_RN *= own_N
        g_RN += rng.standard_normal((rows, self.rank), np.float32) @ a_NK.T
        on_RN = g_RN > ends_N
        row, feature = np.nonzero(on_RN)
        noise = rng.standard_normal(len(row), np.float32)
        sizes = self.sizes[feature] + self.spreads[feature] * noise
        code_RN = np.zeros((rows, self.features), np.float32)
        code_RN[row, feature] = np.maximum(sizes, 0.0)
        self._grow(rng, code_RN)
        return code_RN

    def _grow(self, rng: np.random.Generator, code_RN: Array) -> None:
        """Take away children without parents and all but one of several siblings; scale the others; level by level."""
        first, count = 0, self.roots
        for _ in range(self.depth):
            parents = slice(first, first + count)
            children = slice(first + count, first + count + count * self.branching)
            shape = (len(code_RN), count, self.branching)
            code_RPC = code_RN[:, children].reshape(shape)
            draw_RPC = rng.random(shape, np.float32) * (code_RPC > 0)
            chosen_RPC = (draw_RPC == draw_RPC.max(2, keepdims=True)) & (draw_RPC > 0)
            scale_RP = code_RN[:, parents] / self.sizes[parents]
            code_RN[:, children] = (code_RPC * chosen_RPC * scale_RP[..., None]).reshape(
                len(code_RN), -1
            )
            first, count = first + count, count * self.branching

    def _blocks(self, part: int, rows: int) -> Iterator[tuple[int, Array]]:
        for number, low in enumerate(range(0, rows, _BLOCK_ROWS)):
            rng = self._rng(f"rows/{number}", part)
            yield low, self._codes(rng, min(_BLOCK_ROWS, rows - low))

    def truth_codes(self, part: int, rows: int) -> tuple[Array, Array, Array]:
        """Return the planted (row in part, feature, value) of a part, sorted by row and feature."""
        if self._last and self._last[0] == (part, rows):
            held: tuple[Array, Array, Array] = self._last[1]
            return held
        found = []
        for low, code_RN in self._blocks(part, rows):
            row, feature = np.nonzero(code_RN)
            found.append((row + low, feature, code_RN[row, feature]))
        row, feature, value = (np.concatenate(column) for column in zip(*found, strict=True))
        codes = row, feature.astype(np.uint32), value
        self._last[:] = [(part, rows), codes]
        return codes

    @functools.cached_property
    def _last(self) -> list[Any]:
        """What was drawn last, [(part, rows), codes]: a part's truth is written before its rows."""
        return []

    def block(self, part: int, rows: int) -> Mapping[str, Any]:
        """Return ``x`` of a part, ``float32[rows, D]``."""
        row, feature, value = self.truth_codes(part, rows)
        x_RD = np.empty((rows, self.width), np.float32)
        for low in range(0, rows, _BLOCK_ROWS):
            first, last = np.searchsorted(row, (low, low + _BLOCK_ROWS))
            code_RN = np.zeros((min(_BLOCK_ROWS, rows - low), self.features), np.float32)
            code_RN[row[first:last] - low, feature[first:last]] = value[first:last]
            np.matmul(code_RN, self.dictionary, out=x_RD[low : low + _BLOCK_ROWS])
        x_RD += self.offset
        return {"x": x_RD}

    def truth(self) -> Mapping[str, bytes]:
        """Return ``truth.safetensors``: ``features [N, D]``, ``bias [D]``; rates, sizes, spreads and parents, ``[N]`` each."""
        held = {
            "features": self.dictionary,
            "rates": self.resulting_rates,
            "nominal_rates": self.rates,
            "sizes": self.sizes,
            "spreads": self.spreads,
            "parents": self.parents,
            "bias": self.offset,
        }
        return {"truth.safetensors": save(held)}


def _chosen(chance_PC: Array, at: int) -> Array:
    """Return the chance that a child is on and chosen, ``float64[P]``, where its siblings are on independently of it."""
    others_PC = np.delete(chance_PC, at, axis=1)
    # the chance of k others on, k = 0 …, by adding one sibling after another
    count_PK = np.ones((len(chance_PC), 1))
    for chance_P in others_PC.T:
        grown = np.zeros((len(chance_PC), count_PK.shape[1] + 1))
        grown[:, :-1] = count_PK * (1 - chance_P[:, None])
        grown[:, 1:] += count_PK * chance_P[:, None]
        count_PK = grown
    alone_P = (count_PK / np.arange(1, count_PK.shape[1] + 1)).sum(1)
    return np.asarray(chance_PC[:, at] * alone_P)
