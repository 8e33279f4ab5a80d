"""``synthetic``: rows from a planted dictionary, with the truth stored beside them.

``x = scale · Σ_i a_i f_i + noise``: unit features f drawn uniformly on the sphere, each row with about ``active``
of them on (independent, Zipf-distributed rates), magnitudes |N(1, spread)|. Everything is a function of (seed,
part), so any worker can make any part.

Source: the MiniSynth and A1 fixtures of the dictionary specification (own definitions).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import save

from ingest.errors import SourceError
from ingest.sources.registry import SOURCES
from store.schema import subseed

Array = np.ndarray[Any, np.dtype[Any]]


@SOURCES.register("synthetic")
@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """A planted dictionary."""

    width: int = 64
    """Width D of a row."""
    features: int = 128
    """Planted unit features N."""
    active: float = 4.0
    """Mean number of features on in a row, below ``features``."""
    zipf: float = 0.0
    """Exponent of the firing rates over ranks; 0 makes them equal."""
    spread: float = 0.3
    """Standard deviation of magnitudes around 1."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise a coordinate."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.active < self.features and self.width > 0 and self.noise >= 0):
            raise SourceError(
                f"a synthetic source of {self.features} features, {self.active} active, width "
                f"{self.width}, noise {self.noise} makes no sense. Nothing was written.",
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
        weight_N = np.arange(1, self.features + 1) ** -self.zipf
        rates_N = weight_N * self.active / weight_N.sum()
        while rates_N.max() > 0.95:  # no feature may be on always: share what is cut
            full = rates_N >= 0.95
            rates_N[full] = 0.95
            rest = self.active - rates_N[full].sum()
            rates_N[~full] *= rest / rates_N[~full].sum()
        return np.asarray(rates_N)

    def truth_codes(self, part: int, rows: int) -> tuple[Array, Array, Array]:
        """Return the planted (row in part, feature, value) of a part, sorted by row and feature."""
        rng = np.random.Generator(np.random.Philox(key=subseed(self.seed, "rows", part)))
        on_RN = rng.random((rows, self.features)) < self.rates
        row, feature = np.nonzero(on_RN)
        value = np.abs(1.0 + self.spread * rng.standard_normal(len(row)))
        return row, feature.astype(np.uint32), value.astype(np.float32)

    def block(self, part: int, rows: int) -> Mapping[str, Any]:
        """Return ``x`` of a part, ``float32[rows, D]``."""
        row, feature, value = self.truth_codes(part, rows)
        code_RN = np.zeros((rows, self.features), np.float32)
        code_RN[row, feature] = value
        x_RD = code_RN @ self.dictionary
        if self.noise:
            rng = np.random.Generator(np.random.Philox(key=subseed(self.seed, "noise", part)))
            x_RD += self.noise * rng.standard_normal(x_RD.shape, np.float32)
        return {"x": x_RD}

    def truth(self) -> Mapping[str, bytes]:
        """Return ``truth.safetensors`` with ``features [N, D]`` and ``rates [N]``."""
        return {"truth.safetensors": save({"features": self.dictionary, "rates": self.rates})}
