"""``synthetic``: rows from a planted dictionary, with the truth stored beside them.

``x = scale · Σ_i a_i f_i + noise``: unit features f drawn uniformly on the sphere, each row with about ``active``
of them on (independent, Zipf-distributed rates), magnitudes |N(1, spread)|. Everything is a function of (seed,
part), so any worker can make any part.

Source: the MiniSynth and A1 fixtures of the dictionary specification (own definitions).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import save

from ingest.errors import SourceError
from ingest.sources.registry import SOURCES
from store.schema import subseed

Array = np.ndarray[Any, np.dtype[Any]]
_MAX_RATE = 0.95
_MAX_ZIPF = 10.0
_BLOCK_ROWS = 1024  # rows made at once: memory does not grow with the part


@SOURCES.register("synthetic")
@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """Rows from a planted dictionary, whose features and codes are stored beside them."""

    width: int = 64
    """Width D of a row."""
    features: int = 128
    """Planted unit features N."""
    active: float = 4.0
    """Mean number of features on in a row, at most 0.95 of ``features``."""
    zipf: float = 0.0
    """Exponent of the firing rates over ranks, at most 10; 0 makes them equal."""
    spread: float = 0.3
    """Standard deviation of magnitudes around 1."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise a coordinate."""
    seed: int = 0
    """Root of the source's seeds."""

    def __post_init__(self) -> None:
        for name in ("active", "zipf", "spread", "noise"):
            object.__setattr__(self, name, float(getattr(self, name)))  # 4 and 4.0: one recipe
        drawn = (self.zipf, self.spread, self.noise)
        legal = self.width > 0 and 0 < self.active <= _MAX_RATE * self.features
        if not (legal and self.zipf <= _MAX_ZIPF and all(0 <= v < math.inf for v in drawn)):
            raise SourceError(
                f"a synthetic source of {self.features} features, {self.active:g} active (at most "
                f"{_MAX_RATE:.0%} of them), width {self.width}, zipf {self.zipf:g}, spread {self.spread:g}, "
                f"noise {self.noise:g} was asked for. Nothing was written. Give a positive width and active, "
                f"and numbers that are not negative, zipf up to {_MAX_ZIPF:g}.",
                kind="bad-source",
            )

    @property
    def columns(self) -> Mapping[str, str]:
        """One column ``x``."""
        return {"x": f"float32[{self.width}]"}

    @functools.cached_property
    def dictionary(self) -> Array:
        """Planted features, ``float32[N, D]``, unit rows."""
        rng = np.random.Generator(np.random.Philox(key=subseed(self.seed, "features")))
        raw_ND = rng.standard_normal((self.features, self.width))
        return np.asarray(raw_ND / np.linalg.norm(raw_ND, axis=1, keepdims=True), np.float32)

    @functools.cached_property
    def rates(self) -> Array:
        """Firing probability of each feature, ``float64[N]``, summing to ``active`` (each below 1)."""
        weight_N = np.arange(1.0, self.features + 1) ** -self.zipf
        rates_N = weight_N * self.active / weight_N.sum()
        while rates_N.max() > _MAX_RATE:  # no feature may be on always: share what is cut
            full = rates_N >= _MAX_RATE
            rates_N[full] = _MAX_RATE
            if full.all():
                break
            rest = self.active - rates_N[full].sum()
            rates_N[~full] *= rest / rates_N[~full].sum()
        return np.asarray(rates_N)

    def truth_codes(self, part: int, rows: int) -> tuple[Array, Array, Array]:
        """Return the planted (row in part, feature, value) of a part, sorted by row and feature."""
        rng = np.random.Generator(np.random.Philox(key=subseed(self.seed, "rows", part)))
        pairs = []
        for low in range(0, rows, _BLOCK_ROWS):
            on_RN = rng.random((min(_BLOCK_ROWS, rows - low), self.features)) < self.rates
            pairs.append(np.argwhere(on_RN) + np.array([low, 0]))
        row, feature = np.concatenate(pairs).T
        value = np.abs(1.0 + self.spread * rng.standard_normal(len(row)))
        return row, feature.astype(np.uint32), value.astype(np.float32)

    def block(self, part: int, rows: int) -> Mapping[str, Any]:
        """Return ``x`` of a part, ``float32[rows, D]``."""
        row, feature, value = self.truth_codes(part, rows)
        x_RD = np.empty((rows, self.width), np.float32)
        for low in range(0, rows, _BLOCK_ROWS):
            first, last = np.searchsorted(row, (low, low + _BLOCK_ROWS))
            code_RN = np.zeros((min(_BLOCK_ROWS, rows - low), self.features), np.float32)
            code_RN[row[first:last] - low, feature[first:last]] = value[first:last]
            np.matmul(code_RN, self.dictionary, out=x_RD[low : low + _BLOCK_ROWS])
        if self.noise:
            rng = np.random.Generator(np.random.Philox(key=subseed(self.seed, "noise", part)))
            x_RD += self.noise * rng.standard_normal(x_RD.shape, np.float32)
        return {"x": x_RD}

    def truth(self) -> Mapping[str, bytes]:
        """Return ``truth.safetensors`` with ``features [N, D]`` and ``rates [N]``."""
        return {"truth.safetensors": save({"features": self.dictionary, "rates": self.rates})}
